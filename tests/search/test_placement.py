"""The order of nodes: the best of all where they can be listed, never worse than as listed."""

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.links import link_shares
from planner.formats.mpigraph import read_node_links
from planner.search.placement import (
    FloatArray,
    PlacementProblem,
    communication_s,
    enumerate_orders,
    host_order,
    local_search,
    place_nodes,
)
from tests.properties.strategies import quick

HOP_S, RING_S = 0.1, 1.0


def problem(stages: int, wide: int, slowness: FloatArray) -> PlacementProblem:
    """Return ``stages`` stages of ``wide`` nodes each: a hop to each next one, a ring in each."""
    places = stages * wide
    nodes = np.arange(places).reshape(stages, wide)
    hops = [[(a[k], b[k]) for a, b in pairwise(nodes)] for k in range(wide)]
    rings = [np.stack([row, np.roll(row, -1)], axis=-1) for row in nodes if wide > 1]
    return PlacementProblem(
        places,
        HOP_S * slowness * (1 - np.eye(len(slowness))),
        np.array(hops).reshape(wide, stages - 1, 2),
        slowness,
        tuple(rings),
        np.full(len(rings), RING_S),
        np.arange(len(rings)),
    )


def uneven(nodes: int, seed: int, spread: float = 3.0) -> FloatArray:
    slowness = 1 + spread * np.random.default_rng(seed).random((nodes, nodes))
    slowness = np.maximum(slowness, slowness.T)
    np.fill_diagonal(slowness, 1)
    return slowness


def one_slow_pair(nodes: int, first: int, second: int, factor: float = 10.0) -> FloatArray:
    slowness = np.ones((nodes, nodes))
    slowness[first, second] = slowness[second, first] = factor
    return slowness


def listed_s(one: PlacementProblem) -> float:
    return float(communication_s(one, host_order(one)))


SHAPES = [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]
SMALL = [(1, 5), (1, 7), (2, 3), (3, 2), (7, 1), (2, 2), (6, 1)]


def test_seconds_by_hand() -> None:
    slowness = np.array([[1, 2, 3, 4], [2, 1, 5, 6], [3, 5, 1, 7], [4, 6, 7, 1]], dtype=float)
    one = problem(2, 2, slowness)  # rings 0-1 and 2-3, hops 0-2 and 1-3

    orders = np.array([[0, 1, 2, 3], [0, 2, 1, 3]])

    # the slower stage's ring at its slowest link; two stages pass two micro-batches in one round
    np.testing.assert_allclose(communication_s(one, orders), [7 + 0.6 / 2, 6 + 0.7 / 2])


def test_the_slowest_run_of_stages_counts() -> None:
    slowness = np.ones((4, 4))
    one = problem(4, 1, slowness)
    slow = one_slow_pair(4, 1, 2)

    assert listed_s(one) == pytest.approx(3 * HOP_S / 4)  # all stages, four micro-batches a round
    assert listed_s(problem(4, 1, slow)) == pytest.approx(10 * HOP_S / 2)  # the slow pair alone


def test_every_stage_counts_not_only_the_first() -> None:
    slowness = one_slow_pair(4, 2, 3)
    one = problem(2, 2, slowness)

    assert listed_s(one) == pytest.approx(10 * RING_S + HOP_S / 2)
    assert place_nodes(one).seconds < listed_s(one)


@pytest.mark.parametrize(("stages", "wide"), SMALL)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spare", [0, 1])
def test_local_search_finds_the_best_of_all_orders(
    stages: int, wide: int, seed: int, spare: int
) -> None:
    nodes = min(7, stages * wide + spare)
    one = problem(stages, wide, uneven(nodes, seed))
    best = enumerate_orders(one)

    found = local_search(one)

    assert best.exact
    assert found.seconds == pytest.approx(best.seconds, rel=1e-9)


@pytest.mark.parametrize(("stages", "wide"), [*SHAPES, (2, 3)])
def test_equal_links_leave_nothing_to_gain(stages: int, wide: int) -> None:
    one = problem(stages, wide, np.ones((stages * wide, stages * wide)))
    found = place_nodes(one)

    assert found.seconds == listed_s(one)
    assert found.nodes == tuple(range(stages * wide))


@quick
@given(
    shape=st.sampled_from([(1, 8), (2, 4), (4, 2), (8, 1), (3, 3)]),
    spare=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_no_order_is_worse_than_the_listed_one(
    shape: tuple[int, int], spare: int, seed: int
) -> None:
    nodes = shape[0] * shape[1] + spare
    one = problem(*shape, uneven(nodes, seed))
    found = local_search(one, restarts=3)

    assert found.seconds <= listed_s(one)
    assert found.seconds == pytest.approx(float(communication_s(one, np.array(found.nodes))))
    assert len(set(found.nodes)) == one.places
    assert set(found.nodes) <= set(range(nodes))


@pytest.mark.parametrize(("stages", "wide"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_one_slow_pair_is_kept_off_hops_and_rings(stages: int, wide: int) -> None:
    one = problem(stages, wide, one_slow_pair(16, 2, 3))

    assert listed_s(one) > place_nodes(one).seconds
    even = problem(stages, wide, np.ones((16, 16)))
    assert place_nodes(one).seconds == pytest.approx(listed_s(even))


def test_a_node_whose_links_are_all_slow_is_left_out() -> None:
    slowness = np.ones((9, 9))
    slowness[4, :] = slowness[:, 4] = 50.0
    slowness[4, 4] = 1.0

    found = place_nodes(problem(2, 4, slowness))

    assert 4 not in found.nodes


def test_the_answer_is_the_same_twice() -> None:
    one = problem(4, 4, uneven(16, 1))

    assert place_nodes(one) == place_nodes(one)


def measured_like(seed: int) -> FloatArray:
    """Return links as one fabric has them: a few percent apart, some nodes slower than others."""
    chance = np.random.default_rng(seed)
    node = 1 + 0.1 * chance.random(16)
    slowness = np.maximum.outer(node, node) + 0.05 * chance.random((16, 16))
    slowness = np.maximum(slowness, slowness.T)
    np.fill_diagonal(slowness, 1)
    return slowness


def check_gain(slowness: FloatArray, stages: int, wide: int, least: float) -> None:
    one = problem(stages, wide, slowness)
    started = time.process_time()

    found = place_nodes(one)

    assert time.process_time() - started < 3
    assert found.seconds <= (1 - least) * listed_s(one)


@pytest.mark.parametrize(("stages", "wide"), [(2, 8), (4, 4), (8, 2), (16, 1)])
def test_sixteen_nodes_gain_in_three_seconds(stages: int, wide: int) -> None:
    check_gain(measured_like(3), stages, wide, 0.01)


def test_sixty_four_nodes_take_seconds() -> None:
    check_gain(uneven(64, 0), 8, 8, 0.1)


# --- Pipette's matrices name no licence and do not ship: PLANNER_RUNS names a folder beside them
RUNS = os.environ.get("PLANNER_RUNS", "")
MATRICES = (
    sorted(Path(RUNS).glob("**/pipette/time_*.json"))
    + sorted(Path(RUNS).parent.glob("peers/pipette/time_*.json"))
    if RUNS
    else []
)


@pytest.mark.skipif(not MATRICES, reason="PLANNER_RUNS names no folder with Pipette's matrices")
@pytest.mark.parametrize(("stages", "wide"), SHAPES)
def test_sixteen_measured_nodes_gain_one_percent(stages: int, wide: int) -> None:
    for path in MATRICES:
        check_gain(1 / link_shares(read_node_links(path)), stages, wide, 0.01)
