"""The benchmark of the simulator measures what it says."""

import pytest

from benchmarks.simulator import Pipeline, layered_graph
from planner.schedule.orders import order
from planner.simulate.critical_path import topology

SMALL = [
    Pipeline("interleaved_1f1b", 5, 3, 60),
    Pipeline("1f1b", 4, 1, 200),
    Pipeline("zb_h1", 4, 1, 12),
    Pipeline("zb_v", 3, 2, 9),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.kind)
def test_both_ways_give_the_same_step(case: Pipeline) -> None:
    assert case.run(whole=True) == pytest.approx(case.run(whole=False))
    assert case.run(whole=True, scale=2.0) == pytest.approx(2 * case.run(whole=True))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.kind)
def test_passes_are_those_of_the_order(case: Pipeline) -> None:
    made = order(case.kind, case.stages, case.micro_batches, case.chunks)

    assert made.backward.size == case.passes


def test_the_graph_has_rows_of_its_width() -> None:
    graph = topology(640, *layered_graph(640, 64))

    assert [level.tasks.stop - level.tasks.start for level in graph.levels] == [64] * 9
