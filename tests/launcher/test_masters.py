"""Masters apart from the weights of the passes: three levels, updates on the host, delayed ones.

Every layout trains to the losses of one process (gloo), which delays its update where the plan
does; the bytes that are sent are those the planner prices.
"""

from typing import Any

import pytest
import torch

from planner.cost.sharded import Exchange, layer_exchanges, step_exchanges
from planner.launcher.hops import Hop
from planner.layout.local import LocalParameters, layer_local, stage_local
from planner.layout.stages import StageLayers
from planner.plan import Plan
from planner.spec.gpu import bus_factor
from planner.spec.software import TORCH_LAUNCHER
from tests.formats.plans import build_plan, gpt, job, llama
from tests.launcher.launch import Case, launch
from tests.launcher.reference import reference_losses
from tests.launcher.test_equivalence import ADAMW_TOLERANCE, BF16_TOLERANCE, assert_close

SIXTEEN = job(global_batch=16)
EVEN = llama(vocab=64, layers=2)  # every row divides by eight
HOST: dict[str, Any] = {"offload_optimizer": 1.0}
DELAYED: dict[str, Any] = HOST | {"delayed_update": True}


def sharded(
    weights: int, gradients: int, optimizer: int, *, ranks: int = 4, second: int = 0, **rest: Any
) -> Plan:
    return build_plan(
        rest.pop("model", None),
        **{"dp": ranks} | rest,
        shard_weights=weights,
        shard_gradients=gradients,
        shard_optimizer=optimizer,
        shard_secondary=second,
        job_spec=SIXTEEN,
    )


PLANS: dict[str, Plan] = {
    "1, 2, 4": sharded(1, 2, 4),
    "2, 2, 4": sharded(2, 2, 4),
    "2, 4, 4": sharded(2, 4, 4),
    "1, 2, 4 recompute": sharded(1, 2, 4, recompute_layers=3),
    "gpt 1, 2, 4": sharded(1, 2, 4, model=gpt()),
    "gpt 2, 4, 4": sharded(2, 4, 4, model=gpt()),
    "cp2 1, 2, 4": sharded(1, 2, 4, dp=2, cp=2, micro_batch=2),
    "zero3, optimizer on the host": sharded(4, 4, 4, **HOST),
    "hsdp, optimizer on the host": sharded(2, 2, 2, **HOST),
    "zero0 delayed": sharded(1, 1, 1, **DELAYED),
    "zero1 delayed": sharded(1, 1, 4, **DELAYED),
    "zero2 delayed": sharded(1, 4, 4, **DELAYED),
    "zero3 delayed": sharded(4, 4, 4, **DELAYED),
    "hsdp delayed": sharded(2, 2, 2, **DELAYED),
    "gpt zero2 delayed": sharded(1, 4, 4, model=gpt(), **DELAYED),
}
CLIPPED = ("1, 2, 4", "2, 4, 4", "zero2 delayed")
CASES = {name: Case(plan, steps=3) for name, plan in PLANS.items()}
CASES |= {f"{name}, clipped": Case(PLANS[name], clip=0.5, steps=3) for name in CLIPPED}
WITH_ADAMW = ("2, 2, 4", "zero2 delayed")
NEAR = {name: Case(PLANS[name], "adamw", lr=0.01, steps=3) for name in WITH_ADAMW}
EIGHT = {
    "2, 4, 8": Case(sharded(2, 4, 8, ranks=8, model=EVEN), dtype="bfloat16"),
    "1, 4, 8": Case(sharded(1, 4, 8, ranks=8, model=EVEN), dtype="bfloat16"),
    "8, 8, 8 and 2": Case(sharded(8, 8, 8, ranks=8, second=2, model=EVEN), dtype="bfloat16"),
}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    near = {f"{name}, adamw": case for name, case in NEAR.items()}
    return launch(CASES | near, 4, tmp_path_factory.mktemp("masters"))


@pytest.fixture(scope="module")
def results_of_eight(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(EIGHT, 8, tmp_path_factory.mktemp("eight"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_adamw_stays_near_one_process(name: str, results: Results) -> None:
    assert_close(results[f"{name}, adamw"], NEAR[name], ADAMW_TOLERANCE)


def test_a_delayed_update_is_seen_one_step_later() -> None:
    """What the reference delays, or the equalities above would show nothing."""
    plain, delayed = (reference_losses(PLANS[n]) for n in ("1, 2, 4", "zero2 delayed"))

    assert plain[0] == delayed[0]
    assert abs(plain[1] - delayed[1]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("1, 2, 4", 4), ("hsdp delayed", 2)])
def test_rank_updates_its_part(name: str, parts: int, results: Results) -> None:
    share = results[name]["local_parameters"] / results[name]["parameters"]

    assert share == pytest.approx(1 / parts, rel=0.05)


def ring_bytes(exchanges: tuple[Exchange, ...], *phases: str) -> float:
    return sum(
        bus_factor(one.kind, one.group.ranks) * one.message_bytes
        for one in exchanges
        if one.phase in phases
    )


def priced_bytes(plan: Plan) -> float:
    """Return what the planner says that one rank sends in a step.

    The launcher gathers tables once in each micro-batch: a table's gradient does not read it, and
    the head is needed again at once.
    """
    layout, layers = plan.to_layout(), plan.model.layers
    whole = stage_local(plan.model, StageLayers(layers, 0, embedding=True, head=True), 1, 1, 1)
    inner = LocalParameters(layers * layer_local(plan.model, False, 1, 1, 1).dense)
    tables = LocalParameters(whole.dense - inner.dense)
    each = [layer_exchanges(part, layout, plan.cluster, TORCH_LAUNCHER) for part in (inner, tables)]
    scattered = tuple(one for one in each[1] if one.tensor == "gradients")
    often = ring_bytes(each[0], "forward", "backward") + ring_bytes(each[1], "forward")
    often += ring_bytes(scattered, "backward")
    once = step_exchanges(whole, layout, plan.cluster, TORCH_LAUNCHER)
    return often * layout.micro_batches(SIXTEEN.global_batch) + ring_bytes(once, "step")


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
def test_bytes_sent_are_those_that_are_priced(name: str, results_of_eight: Results) -> None:
    sent = sum(results_of_eight[name]["sent_bytes"].values())

    assert sent == pytest.approx(priced_bytes(EIGHT[name].plan), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
def test_bf16_stays_near_one_process(name: str, results_of_eight: Results) -> None:
    assert_close(results_of_eight[name], EIGHT[name], BF16_TOLERANCE)


@pytest.mark.parametrize(("rows", "size", "parts"), [
    (8, 4, [2, 2, 2, 2]), (5, 4, [2, 2, 1, 0]), (0, 2, [0, 0]), (3, 1, [3]),
])  # fmt: skip
def test_parts_are_those_of_chunk(rows: int, size: int, parts: list[int]) -> None:
    own = [Hop(size, rank, None).own(range(rows)) for rank in range(size)]

    assert [len(part) for part in own] == parts
    chunks = torch.arange(rows).chunk(size)
    assert [list(part) for part in own if len(part)] == [c.tolist() for c in chunks if len(c)]
