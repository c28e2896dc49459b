"""Would another layout win if one cost were wrong; the front of time and memory."""

from dataclasses import replace

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.search.recommend import Options, search
from planner.search.stability import _MEASURED_BY, pareto_front, stability
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate, estimate_step
from tests.properties.strategies import cluster, job, model, small

BASE = estimate_step(Prices(small(), cluster("dgx-h100", 1), job()), Layout(dp=8))


def made(name: int, memory: float = 0.0, **parts: float) -> StepEstimate:
    """Return a step of other parts, told apart by its micro-batch."""
    layout = replace(BASE.layout, micro_batch=name)
    size = replace(
        BASE.memory, weights=memory, gradients=0.0, optimizer=0.0, buffers=0.0, activations=0.0,
        working=0.0, outside=0.0, reserve_share=0.0,
    )  # fmt: skip
    total = sum(parts.values())
    return replace(BASE, layout=layout, step_time_s=total, parts_s=parts, memory=size)


def test_a_clear_winner_holds() -> None:
    found = stability(made(1, compute=10.0, pipeline=1.0), [made(2, compute=13.0, pipeline=0.0)])

    assert found.holds
    assert found.upsets == ()
    assert found.settled_by == ""


def test_an_upset_names_cause_layout_and_measurement() -> None:
    winner, rival = made(1, compute=9.0, data_parallel=1.0), made(2, compute=6.8, data_parallel=3.4)
    found = stability(winner, [rival])

    assert not found.holds
    assert {(one.cause, one.factor) for one in found.upsets} == {
        ("compute", 1.1), ("data_parallel", 0.9),
    }  # fmt: skip
    assert {one.label for one in found.upsets} == {rival.layout.label()}
    first = found.upsets[0]
    assert first.cause == "data_parallel"
    assert first.gain == pytest.approx((9.9 - 9.86) / 9.9)
    assert first.slower == pytest.approx(0.02)
    assert found.settled_by == "links"


def test_the_same_layout_is_no_rival() -> None:
    winner = made(1, compute=10.0)

    assert stability(winner, [made(1, compute=9.0)]).holds


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    steps = [made(1, 50.0, compute=10.0), made(2, 40.0, compute=11.0), made(3, 45.0, compute=12.0),
             made(4, 10.0, compute=13.0), made(5, 99.0, compute=1.0)]  # fmt: skip
    front = pareto_front(steps, 60.0)

    assert [(one.step_time_s, one.memory_bytes) for one in front] == [
        (10.0, 50.0), (11.0, 40.0), (13.0, 10.0),
    ]  # fmt: skip


def test_the_front_of_a_search_begins_with_its_winner() -> None:
    spec, machines = model("llama-3-8b"), cluster("dgx-h100", 1)
    target = TARGETS["megatron"]
    found = search(spec, machines, job(64, 4096, software=target.software), target, Options())
    front = pareto_front(found.steps.values(), machines.gpu.memory_bytes)

    assert front[0].label == found.best[0].layout.label()
    times = [one.step_time_s for one in front]
    sizes = [one.memory_bytes for one in front]
    assert times == sorted(times)
    assert sizes == sorted(sizes, reverse=True)
    assert len(front) > 1


def test_every_cause_of_a_step_can_be_measured() -> None:
    assert set(BASE.parts_s) <= set(_MEASURED_BY)
