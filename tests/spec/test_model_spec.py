from typing import Any

import pytest
from pydantic import ValidationError

from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec, MoESpec

FIELDS = {
    "name": "m",
    "layers": 6,
    "hidden": 64,
    "heads": 8,
    "kv_heads": 2,
    "head_dim": 8,
    "ffn_hidden": 256,
    "vocab": 1000,
}

# what the expert rule says of six layers
RULES = [
    ({}, [0, 1, 2, 3, 4, 5]),
    ({"every": 2}, [1, 3, 5]),
    ({"first_layer": 1}, [1, 2, 3, 4, 5]),
    ({"first_layer": 2, "every": 2}, [3, 5]),
    ({"dense_layers": (0, 5)}, [1, 2, 3, 4]),
    ({"every": 2, "dense_layers": (3,)}, [1, 5]),
]


@pytest.mark.parametrize(("rule", "layers"), RULES)
def test_which_layers_hold_experts(rule: dict[str, Any], layers: list[int]) -> None:
    model = ModelSpec(**FIELDS, moe=MoESpec(experts=4, top_k=2, ffn_hidden=32, **rule))

    assert [layer for layer in range(6) if model.is_moe_layer(layer)] == layers
    assert model.moe_layers == len(layers)


def test_dense_model_has_no_expert_layer() -> None:
    assert ModelSpec(**FIELDS).moe_layers == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_heads": 3}, "heads=8 is not a multiple of kv_heads=3"),
        ({"layers": 0}, "greater than 0"),
        ({"hiden": 4}, "Extra inputs"),
    ],
)
def test_impossible_models(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSpec(**(FIELDS | changes))


def test_top_k_within_experts() -> None:
    with pytest.raises(ValidationError, match="top_k=5 exceeds experts=4"):
        MoESpec(experts=4, top_k=5, ffn_hidden=32)


def test_records_are_frozen_and_round_trip() -> None:
    model = ModelSpec(**FIELDS, moe=MoESpec(experts=4, top_k=2, ffn_hidden=32))
    job = JobSpec(global_batch=512, seq_len=4096, software=SoftwareSpec(name="nanotron"))

    assert ModelSpec.model_validate_json(model.model_dump_json()) == model
    assert JobSpec.model_validate_json(job.model_dump_json()) == job
    with pytest.raises(ValidationError):
        model.layers = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        JobSpec(global_batch=0, seq_len=4096)
