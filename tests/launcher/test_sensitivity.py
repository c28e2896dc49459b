"""The equivalence tolerance discriminates: one wrong gradient anywhere breaks it."""

from collections.abc import Callable

import pytest

from planner.launcher.model import Decoder
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan, deepseek, gpt, llama, mixtral, neox
from tests.launcher.reference import reference_losses
from tests.launcher.test_equivalence import TOLERANCE

# model, part of the parameter names whose gradient is wrong
PARTS = [
    (llama(), "embedding.weight"),
    (llama(), "layers.0.attention_norm.weight"),
    (llama(), "layers.0.attention.query.weight"),
    (llama(), "layers.3.attention.key.weight"),
    (llama(), "layers.1.attention.value.weight"),
    (llama(), "layers.2.attention.out.weight"),
    (llama(), "layers.2.mlp_norm.weight"),
    (llama(), "layers.3.mlp.gate.weight"),
    (llama(), "layers.1.mlp.up.weight"),
    (llama(), "layers.0.mlp.down.weight"),
    (llama(), "norm.weight"),
    (llama(), "head.weight"),
    (gpt(), "embedding.weight"),
    (gpt(), "positions.weight"),
    (gpt(), "layers.1.attention.query.bias"),
    (gpt(), "layers.1.attention.out.bias"),
    (gpt(), "layers.3.mlp.up.bias"),
    (gpt(), "layers.0.mlp.down.bias"),
    (gpt(), "layers.2.mlp_norm.bias"),
    (neox(), "layers.0.attention.query_norm.weight"),
    (neox(), "layers.3.attention.key_norm.weight"),
    (mixtral(), "layers.0.mlp.router.weight"),
    (mixtral(), "layers.3.mlp.experts.gate"),
    (mixtral(), "layers.1.mlp.experts.up"),
    (mixtral(), "layers.2.mlp.experts.down"),
    (deepseek(), "layers.0.attention.query_down.weight"),
    (deepseek(), "layers.0.attention.query_norm.weight"),
    (deepseek(), "layers.2.attention.query_up.weight"),
    (deepseek(), "layers.3.attention.key_value_down.weight"),
    (deepseek(), "layers.0.attention.key_value_norm.weight"),
    (deepseek(), "layers.1.attention.key_value_up.weight"),
    (deepseek(), "layers.2.mlp.shared.down.weight"),
]


def scaled(part: str, factor: float) -> Callable[[Decoder], None]:
    def spoil(model: Decoder) -> None:
        for name, parameter in model.named_parameters():
            if part in name and parameter.grad is not None:
                parameter.grad.mul_(factor)

    return spoil


def shift(model: ModelSpec, part: str, factor: float, optimizer: str = "sgd") -> float:
    plan = build_plan(model)
    lr = 0.5 if optimizer == "sgd" else 0.01
    right = reference_losses(plan, 2, lr, optimizer)
    wrong = reference_losses(plan, 2, lr, optimizer, spoil=scaled(part, factor))
    return max(abs(a - b) for a, b in zip(right, wrong, strict=True))


@pytest.mark.parametrize(("model", "part"), PARTS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_wrong_gradient_of_one_parameter_shows(model: ModelSpec, part: str, factor: float) -> None:
    assert shift(model, part, factor) > 3 * TOLERANCE


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_wrong_scale_of_all_gradients_shows(factor: float) -> None:
    assert shift(llama(), "", factor) > 1000 * TOLERANCE


def test_adamw_would_hide_a_wrong_scale() -> None:
    assert shift(llama(), "", 2.0, "adamw") < 4 * TOLERANCE
