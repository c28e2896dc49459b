"""Changes that make a step shorter: each, tried again, does what it says."""

from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.rules import layout_problems
from planner.search.changes import SingleChange
from planner.search.faster import LEAST_GAIN, faster_changes
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from tests.properties.strategies import cluster, job, layout_with, model

# model, cluster, nodes, batch, target, layout, a word of its fastest change
ASKED: list[tuple[str, str, int, int, str, dict[str, Any], str]] = [
    ("llama-3-8b", "dgx-h100", 1, 64, "megatron", {"tp": 8}, "tp 8 -> 4, dp 1 -> 2"),
    ("llama-3-8b", "dgx-h100", 1, 64, "megatron", {"pp": 8}, "pp 8 -> 4, dp 1 -> 2"),
    ("llama-3-8b", "dgx-h100", 1, 64, "torch",
     {"tp": 4, "dp": 2, "recompute": Recompute.FULL}, "recompute"),
    ("small", "dgx-h100", 1, 64, "torch", {"dp": 8, "zero_stage": 3}, "ZeRO-3 -> ZeRO-1"),
    ("small-moe", "dgx-a100", 1, 32, "megatron", {"dp": 8, "ep": 8, "zero_stage": 1}, "-> "),
    ("llama-3-70b", "dgx-h100", 8, 128, "megatron",
     {"tp": 8, "pp": 8, "dp": 1, "recompute": Recompute.FULL}, "recompute"),
]  # fmt: skip
cases = pytest.mark.parametrize("case", range(len(ASKED)))


def found(case: int, count: int = 99) -> tuple[Prices, Layout, list[SingleChange]]:
    name, machines, nodes, batch, target, degrees, _ = ASKED[case]
    runner = TARGETS[target]
    prices = Prices(
        model(name), cluster(machines, nodes), job(batch, 4096, software=runner.software)
    )
    layout = layout_with(**degrees)
    return prices, layout, faster_changes(prices, layout, runner, count=count)


@cases
def test_each_change_gains_what_it_says(case: int) -> None:
    prices, layout, changes = found(case)
    now = estimate_step(prices, layout)

    assert changes
    assert ASKED[case][-1] in changes[0].text
    for change in changes:
        assert change.slower_s == change.step_time_s - now.step_time_s
        assert change.slower_s <= -LEAST_GAIN * now.step_time_s
        assert change.saved_bytes == now.memory.device - change.device_bytes
        if "layers recomputed" not in change.text:  # by layer: the layout alone does not say it
            again = estimate_step(prices, change.layout)
            assert (again.step_time_s, again.memory.device) == (
                pytest.approx(change.step_time_s), change.device_bytes,
            )  # fmt: skip


@cases
def test_each_change_is_legal_fits_and_stands_in_order(case: int) -> None:
    prices, layout, changes = found(case)
    target = TARGETS[ASKED[case][4]]
    assert target.problems is not None

    for change in changes:
        assert change.layout.gpus == layout.gpus
        assert not layout_problems(prices.model, prices.cluster, prices.job, change.layout)
        assert not target.problems(prices.model, prices.job, change.layout)
        assert change.device_bytes <= prices.cluster.gpu.memory_bytes
    times = [change.step_time_s for change in changes]
    assert times == sorted(times)
    assert len({(change.step_time_s, change.device_bytes) for change in changes}) == len(changes)
    assert found(case, 2)[2] == changes[:2]


def test_sharding_over_all_ranks_stays_over_all_ranks() -> None:
    prices, layout, _ = found(0)
    sharded = layout_with(zero_stage=1, tp=4, dp=2)

    changes = faster_changes(prices, sharded, TARGETS["megatron"], count=99)

    half = next(change for change in changes if change.text == "tp 4 -> 2, dp 2 -> 4")
    assert half.layout.shard == Shard(1, 1, 4)
    assert half.layout.sequence_parallel
    assert layout.tp == 8


def test_the_best_layout_of_a_tiny_space_has_no_faster_neighbour() -> None:
    one = cluster("l40s-pcie").model_copy(update={"gpus_per_node": 1, "domain_gpus": 1})
    asked = job(1, 4096, software=TARGETS["torch"].software)
    prices = Prices(model("small"), one, asked)

    assert faster_changes(prices, layout_with(), TARGETS["torch"]) == []
