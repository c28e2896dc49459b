"""Single changes: each, tried again, does what it says."""

from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.rules import layout_problems
from planner.memory.estimate import peak_memory
from planner.search.changes import LEAST_SAVING, SingleChange, cheapest, single_changes
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.units import GIB
from tests.properties.strategies import cluster, job, layout_with, model

# model, cluster, nodes, batch, target, layout
ASKED: list[tuple[str, str, int, int, str, dict[str, Any]]] = [
    ("llama-3-8b", "dgx-h100", 1, 64, "megatron", {"dp": 8, "micro_batch": 2}),
    ("llama-3-8b", "dgx-h100", 1, 64, "torch", {"dp": 8, "zero_stage": 1, "micro_batch": 2}),
    ("llama-3-70b", "dgx-h100", 8, 128, "megatron", {"tp": 4, "pp": 4, "dp": 4, "zero_stage": 1}),
    ("llama-3-70b", "dgx-h100", 8, 128, "torch", {"dp": 64, "zero_stage": 3}),
    ("small-moe", "dgx-a100", 1, 32, "megatron", {"dp": 8, "ep": 8, "micro_batch": 4}),
    ("llama-3-8b", "l40s-pcie", 1, 32, "torch", {"tp": 2, "dp": 4}),
]


def found(case: int) -> tuple[Prices, Layout, list[SingleChange]]:
    name, machines, nodes, batch, target, degrees = ASKED[case]
    runner = TARGETS[target]
    prices = Prices(
        model(name), cluster(machines, nodes), job(batch, 4096, software=runner.software)
    )
    layout = layout_with(**degrees)
    return prices, layout, single_changes(prices, layout, runner)


cases = pytest.mark.parametrize("case", range(len(ASKED)))


@cases
def test_each_change_saves_and_costs_what_it_says(case: int) -> None:
    prices, layout, changes = found(case)
    now = estimate_step(prices, layout)

    assert changes
    for change in changes:
        if change.text.startswith("recompute "):  # by layer: the layout alone does not say it
            continue
        again = estimate_step(prices, change.layout)
        assert change.device_bytes == again.memory.device
        assert change.saved_bytes == now.memory.device - again.memory.device
        assert change.step_time_s == pytest.approx(again.step_time_s)
        assert change.slower_s == pytest.approx(again.step_time_s - now.step_time_s)


@cases
def test_each_change_is_legal_on_as_many_gpus(case: int) -> None:
    prices, layout, changes = found(case)
    target = TARGETS[ASKED[case][4]]
    assert target.problems is not None

    for change in changes:
        assert change.layout.gpus == layout.gpus
        assert not layout_problems(prices.model, prices.cluster, prices.job, change.layout)
        assert not target.problems(prices.model, prices.job, change.layout)


@cases
def test_changes_are_worth_it_and_in_order(case: int) -> None:
    prices, layout, changes = found(case)
    size = peak_memory(prices.model, prices.job, layout).device

    assert all(change.saved_bytes >= LEAST_SAVING * size for change in changes)
    assert [change.step_time_s for change in changes] == sorted(
        change.step_time_s for change in changes
    )
    assert len({change.text for change in changes}) == len(changes)


def test_just_enough_layers_are_recomputed_where_it_does_not_fit() -> None:
    software = TARGETS["megatron"].software
    prices = Prices(model("llama-3-70b"), cluster("dgx-h100", 8), job(128, 8192, software=software))
    layout = layout_with(tp=4, pp=4, dp=4, zero_stage=1)
    changes = single_changes(prices, layout, TARGETS["megatron"])
    few = next(change for change in changes if change.text.startswith("recompute "))
    full = next(change for change in changes if change.text == "full recompute")

    assert few.device_bytes <= prices.cluster.gpu.memory_bytes
    assert few.step_time_s < full.step_time_s
    assert few.layout == layout


def test_nothing_recomputes_twice() -> None:
    prices, layout, _ = found(0)
    full = layout_with(dp=8, micro_batch=2, recompute=Recompute.FULL)

    texts = [change.text for change in single_changes(prices, full, TARGETS["megatron"])]

    assert not any("recompute" in text for text in texts)
    assert layout.recompute is Recompute.NONE


def change(size: float, step_s: float) -> SingleChange:
    return SingleChange("x", Layout(), size * GIB, 0.0, step_s, 0.0)


def test_cheapest_prefers_those_that_make_it_fit() -> None:
    changes = [change(90, 1.0), change(70, 2.0), change(60, 3.0)]

    assert cheapest(changes, 80 * GIB, 100 * GIB) == changes[1:]
    assert cheapest(changes, 80 * GIB, 75 * GIB) == changes
    assert cheapest(changes, 50 * GIB, 100 * GIB, 2) == [changes[2], changes[1]]
