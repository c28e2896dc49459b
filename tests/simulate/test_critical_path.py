"""The level sweep against networkx on random graphs, and against sums done by hand."""

from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.simulate.critical_path import critical_path, end_times, topology

Array = NDArray[Any]


def random_graph(seed: int) -> tuple[int, Array, Array, Array, Array]:
    """Return tasks, tails, heads, task seconds and lags of a random acyclic graph."""
    rng = np.random.default_rng(seed)
    tasks = int(rng.integers(1, 60))
    pairs = rng.integers(0, tasks, (int(rng.integers(0, 4 * tasks)), 2))
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    # names carry no order: an edge may run from a higher to a lower number
    tails, heads = rng.permutation(tasks)[pairs.T] if len(pairs) else np.empty((2, 0), int)
    lags = rng.random(len(tails)) * rng.integers(0, 2)
    return tasks, tails, heads, rng.random(tasks), lags


def longest_by_networkx(
    tasks: int, tails: Array, heads: Array, task_s: Array, lag_s: Array
) -> float:
    """Return the longest path with each task as an edge from its start to its end."""
    graph = nx.DiGraph()
    for task in range(tasks):
        graph.add_edge((task, "start"), (task, "end"), seconds=task_s[task])
    for tail, head, lag in zip(tails, heads, lag_s, strict=True):
        edge = ((tail, "end"), (head, "start"))
        longest = max(lag, graph.edges[edge]["seconds"]) if graph.has_edge(*edge) else lag
        graph.add_edge(*edge, seconds=longest)
    return float(nx.dag_longest_path_length(graph, weight="seconds"))


@pytest.mark.parametrize("seed", range(250))
def test_length_and_path_are_those_of_networkx(seed: int) -> None:
    tasks, tails, heads, task_s, lag_s = random_graph(seed)
    found = critical_path(topology(tasks, tails, heads), task_s, lag_s)

    assert found.length_s == pytest.approx(
        longest_by_networkx(tasks, tails, heads, task_s, lag_s), rel=1e-12
    )
    lags: dict[tuple[int, int], float] = {}
    for tail, head, lag in zip(tails.tolist(), heads.tolist(), lag_s.tolist(), strict=True):
        lags[tail, head] = max(lag, lags.get((tail, head), 0.0))
    steps = zip(found.path, found.path[1:], strict=False)
    along = sum(task_s[task] for task in found.path) + sum(lags[step] for step in steps)
    assert along == pytest.approx(found.length_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(0, 250, 10))
def test_no_task_starts_before_its_input(seed: int) -> None:
    tasks, tails, heads, task_s, lag_s = random_graph(seed)
    found = critical_path(topology(tasks, tails, heads), task_s, lag_s)

    slack = found.start_s[heads] - (found.end_s[tails] + lag_s)
    assert (slack >= -1e-12).all()
    assert (found.start_s >= -1e-12).all()
    # and each starts as early as it can
    for task in range(tasks):
        arrivals = (found.end_s[tails] + lag_s)[heads == task]
        assert found.start_s[task] == pytest.approx(max(arrivals, default=0.0), abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_a_graph_of_chains_is_sorted_as_any_graph(seed: int) -> None:
    """The ranks of a pipeline are chains: the fast sort of those against the general one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, int(rng.integers(1, 9)))
    tasks, first = int(lengths.sum()), np.cumsum(lengths) - lengths
    moment = rng.permutation(tasks)  # when each task runs: rising along a chain
    for low, high in pairwise([*first.tolist(), tasks]):
        moment[low:high].sort()
    ends = rng.integers(0, max(tasks, 1), (int(rng.integers(0, 3 * tasks + 1)), 2))
    ends = ends[moment[ends[:, 0]] < moment[ends[:, 1]]].T
    later = np.setdiff1d(np.arange(tasks), first)
    tails, heads = (np.concatenate(parts) for parts in zip(ends, (later - 1, later), strict=True))
    found, general = topology(tasks, tails, heads, first), topology(tasks, tails, heads)

    task_s, lag_s = rng.random(tasks), rng.random(len(tails))
    np.testing.assert_array_equal(
        end_times(found, task_s, lag_s), end_times(general, task_s, lag_s)
    )
    assert [len(a.first_edges) for a in found.levels] == [
        len(b.first_edges) for b in general.levels
    ]


def test_a_cycle_between_chains_is_an_error() -> None:
    with pytest.raises(ValueError, match="cycle; 2 tasks wait, one is 1"):
        topology(4, [0, 2, 3, 1], [1, 3, 1, 3], np.array([0, 2]))


@pytest.mark.parametrize("seed", range(0, 250, 25))
def test_a_batch_is_each_of_its_members(seed: int) -> None:
    tasks, tails, heads, task_s, lag_s = random_graph(seed)
    graph = topology(tasks, tails, heads)
    scale = np.array([[1.0, 2.0, 0.5], [3.0, 0.0, 1.5]])
    batch = end_times(graph, scale[..., None] * task_s, lag_s)

    assert batch.shape == (2, 3, tasks)
    for place in np.ndindex(2, 3):
        alone = end_times(graph, scale[place] * task_s, lag_s)
        np.testing.assert_allclose(batch[place], alone, rtol=1e-13)


def test_lags_alone_may_carry_the_batch() -> None:
    ends = end_times(topology(2, [0], [1]), [1.0, 2.0], [[0.0], [5.0]])

    assert ends.tolist() == [[1.0, 3.0], [1.0, 8.0]]


def test_a_diamond_by_hand() -> None:
    #      1 (5 s)
    #   0 <        > 3     the edge from 2 to 3 is a transfer of 4 s
    #      2 (2 s)
    graph = topology(4, [0, 0, 1, 2], [1, 2, 3, 3])
    found = critical_path(graph, [1.0, 5.0, 2.0, 1.0], [0.0, 0.0, 0.0, 4.0])

    assert found.length_s == 8.0
    assert found.path == (0, 2, 3)
    assert found.start_s.tolist() == [0.0, 1.0, 1.0, 7.0]
    assert found.end_s.tolist() == [1.0, 6.0, 3.0, 8.0]


def test_no_edges_is_all_at_once() -> None:
    found = critical_path(topology(3, [], []), [1.0, 3.0, 2.0])

    assert found.length_s == 3.0
    assert found.path == (1,)


def test_no_tasks_is_no_time() -> None:
    found = critical_path(topology(0, [], []), [])

    assert found.length_s == 0.0
    assert found.path == ()


@pytest.mark.parametrize(
    ("tasks", "tails", "heads"),
    [(2, [0, 1], [1, 0]), (1, [0], [0]), (4, [0, 1, 2, 3], [1, 2, 3, 1])],
)
def test_a_cycle_is_refused(tasks: int, tails: list[int], heads: list[int]) -> None:
    with pytest.raises(ValueError, match="cycle"):
        topology(tasks, tails, heads)


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_seconds_scale(seed: int, factor: float) -> None:
    tasks, tails, heads, task_s, lag_s = random_graph(seed)
    graph = topology(tasks, tails, heads)
    once = end_times(graph, task_s, lag_s)

    np.testing.assert_allclose(end_times(graph, factor * task_s, factor * lag_s), factor * once)


@given(st.integers(0, 10_000), st.data())
def test_a_slower_task_never_ends_the_graph_sooner(seed: int, data: st.DataObject) -> None:
    tasks, tails, heads, task_s, lag_s = random_graph(seed)
    graph = topology(tasks, tails, heads)
    slower = task_s.copy()
    slower[data.draw(st.integers(0, tasks - 1))] += 1.0

    assert (end_times(graph, slower, lag_s) >= end_times(graph, task_s, lag_s)).all()
