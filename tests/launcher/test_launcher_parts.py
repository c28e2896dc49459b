"""The parts that need no process group: loss, tokens, weights, rank map, log."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from planner.launcher import log
from planner.launcher.data import rows
from planner.launcher.loss import cross_entropy
from planner.launcher.model import Decoder
from planner.launcher.plan_file import PlanFile, parse_plan
from planner.launcher.runtime import remap_rank
from planner.launcher.train import Step
from planner.launcher.weights import initialise
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan, gpt, llama
from tests.launcher.reference import whole_model


def plan(model: ModelSpec | None = None, pp: int = 1, recompute_layers: int = 0) -> PlanFile:
    built = build_plan(model, pp=pp, recompute_layers=recompute_layers)
    return parse_plan(built.model_dump(mode="json"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_torchs(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(10).view(2, 5)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    loss = cross_entropy(ours, targets, None, 11)
    expected = F.cross_entropy(theirs.float().flatten(0, 1), targets.flatten())
    torch.autograd.backward([loss, expected])

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_loss_survives_large_logits() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])

    assert cross_entropy(logits, torch.tensor([[0]]), None, 3).item() == 0.0


def test_tokens_do_not_depend_on_who_asks() -> None:
    whole = rows(0, 8, step=3, seed=5, seq_len=16, vocab=61)

    assert torch.equal(rows(6, 2, 3, 5, 16, 61), whole[6:])
    assert whole.shape == (8, 17)
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 61


def test_tokens_walk_and_differ_between_steps_and_seeds() -> None:
    first = rows(0, 4, 1, 0, 16, 61)
    strides = (first[:, 1:] - first[:, :-1]) % 61

    assert set(strides.flatten().tolist()) <= {1, 2, 3, 4}
    assert not torch.equal(first, rows(0, 4, 2, 0, 16, 61))
    assert not torch.equal(first, rows(0, 4, 1, 1, 16, 61))


def test_stages_start_with_the_weights_of_the_whole_model() -> None:
    cut = plan(gpt(), pp=4)
    whole = dict(whole_model(gpt()).named_parameters())
    seen = set()
    for record in cut.stages:
        stage = Decoder(cut.model, record)
        initialise(stage, seed=0, tied_head=True)
        for name, value in stage.named_parameters():
            source = "embedding.weight" if name == "head.weight" else name
            assert torch.equal(value, whole[source])
            seen.add(source)

    assert seen == set(whole)


def test_weights_depend_on_seed_and_name() -> None:
    first, second = (dict(whole_model(llama(), seed).named_parameters()) for seed in (0, 1))
    name, other = "layers.0.mlp.up.weight", "layers.1.mlp.up.weight"

    assert not torch.equal(first[name], second[name])
    assert not torch.equal(first[name], first[other])
    assert torch.all(first["norm.weight"] == 1)


def test_first_loss_is_near_that_of_guessing() -> None:
    logits = whole_model(llama())(rows(0, 8, 1, 0, 15, 61))

    loss = F.cross_entropy(logits.flatten(0, 1), rows(0, 8, 2, 0, 15, 61).flatten())

    assert loss.item() == pytest.approx(math.log(61), abs=1.0)


def test_recompute_flags_follow_the_stage_table() -> None:
    cut = plan(pp=2, recompute_layers=1)

    flags = [block.recompute for s in cut.stages for block in Decoder(cut.model, s).layers.values()]

    assert flags == [True, False, True, False]


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts what the forward pass keeps for the backward pass."""

    def __init__(self) -> None:
        super().__init__(self.pack, lambda tensor: tensor)
        self.elements = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.elements += tensor.numel()
        return tensor


def test_recompute_keeps_less_and_changes_no_gradient() -> None:
    kept, gradients = {}, {}
    for count in (0, 4):
        cut = plan(recompute_layers=count)
        model = Decoder(cut.model, cut.stages[0])
        initialise(model, 0, tied_head=False)
        kept[count] = Kept()
        with kept[count]:
            out = model(rows(0, 2, 1, 0, 15, 61))
        out.square().mean().backward()
        gradients[count] = [p.grad for p in model.parameters()]

    torch.testing.assert_close(gradients[4], gradients[0])
    assert kept[4].elements < kept[0].elements / 3


def test_rank_moves_and_slot_stays() -> None:
    environ = {"RANK": "2", "LOCAL_RANK": "2"}

    slot = remap_rank(environ, (3, 1, 0, 2))

    assert slot == 2
    assert environ == {"RANK": "0", "LOCAL_RANK": "2"}


def test_measured_step_time_leaves_out_the_first_steps() -> None:
    steps = [Step(i, seconds, 1.0, None) for i, seconds in enumerate([9.0, 5.0, 2.0, 1.0, 3.0])]

    assert log.measured_step_time_s(steps) == 2.0
    assert log.measured_step_time_s(steps[:1]) == 9.0
    assert log.measured_step_time_s(steps[:2]) == 5.0


def test_log_holds_one_object_per_line_and_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    step = Step(1, 0.5, 4.0, None)

    for speaks in (True, False):
        log.Log(path, speaks).record("step", log.step_values(step, plan()))

    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "event": "step",
        "step": 1,
        "step_time_s": 0.5,
        "loss": 4.0,
        "tokens_per_s": 256.0,
        "gradient_norm": None,
    }


def test_summary_names_the_hardware_of_each_number() -> None:
    values = log.summary_values(plan(pp=2), [Step(1, 0.5, 4.0, None)], [2**30, 2**31])

    text = "\n".join(log.summary_lines(plan(pp=2), values, "CPU (gloo)"))

    assert "measured step time  0.5 s on CPU (gloo)" in text
    assert "estimated step time 0.02 s (0.01 to 0.03) on the plan's GPUs, TestGPU" in text
    assert "peak memory of rank 1: measured 2.00 GiB, estimated 0.93 GiB" in text
