"""V-Half and V-Min: half and a third of the memory of 1F1B, a half and two thirds of its bubble."""

import numpy as np
import pytest

from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.listed import listed
from planner.schedule.orders import order
from planner.schedule.passes import in_flight
from planner.schedule.v_shaped import _squeezed, v_shaped
from planner.simulate.pipeline import pipeline_time

STAGES = [1, 2, 3, 4, 5, 6, 8, 9, 12, 16]


def idle_s(kind: str, stages: int, micro_batches: int) -> float:
    """Return the longest idle time of a rank whose F, B and W take one second each, no hops."""
    half, hops = np.full(2 * stages, 0.5), np.zeros(2 * stages - 1)
    times = pipeline_time(kind, stages, 2, micro_batches, half, half, hops, True, weight_s=half)
    return float((times.total_s - times.per_rank_busy_s).max())


# arXiv 2405.15362, table 1: micro-batches kept by the fullest rank, two chunk passes each
@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize(("kind", "kept"), [("v_half", (2, 2)), ("v_min", (4, 3))])
def test_memory_is_the_papers(kind: str, kept: tuple[int, int], stages: int) -> None:
    more, part = kept
    published = 2 * ((stages + more) // part)

    for micro_batches in (2 * stages, 4 * stages + 1):
        found = int(in_flight(order(kind, stages, micro_batches, 2)).max())
        assert found == min(published, 2 * micro_batches)
    assert peak_chunk_passes(stages, 2, 4 * stages, 0, schedule=kind) == published


# same table: bubbles of about p / 2 m and 2 p / 3 m, that of 1F1B being (p - 1) / m
@pytest.mark.parametrize("stages", STAGES[3:])
@pytest.mark.parametrize(("kind", "share"), [("v_half", 1 / 2), ("v_min", 2 / 3)])
def test_bubble_is_about_the_papers(kind: str, share: float, stages: int) -> None:
    bubbles = [idle_s(kind, stages, times * stages) for times in (3, 4, 8)]

    assert bubbles == pytest.approx([bubbles[0]] * 3)  # once a step, whatever its length
    # turning round costs the V a unit or two of half a second
    assert abs(bubbles[0] - share * 3 * (stages - 1)) <= 1.0


def test_few_micro_batches_are_all_kept() -> None:
    for kind in ("v_half", "v_min"):
        assert in_flight(order(kind, 8, 1, 2)).tolist() == [2] * 8


@pytest.mark.parametrize("kind", ["v_half", "v_min"])
@pytest.mark.parametrize("stages", [1, 2, 3, 5, 8, 13])
def test_one_period_repeated_is_the_order_made_in_full(kind: str, stages: int) -> None:
    """Orders of many micro-batches repeat what few run; each must be what the long way makes."""
    for micro_batches in (1, 2, stages + 2, stages + 4, 2 * stages + 5, 5 * stages + 1):
        made = v_shaped(kind, stages, micro_batches)
        ranks = [[(one,) for one in row] for row in _squeezed(kind, stages, micro_batches)]
        in_full = listed(kind, made.stage, micro_batches, ranks)

        for name in ("backward", "weight", "micro_batch", "chunk", "warm_up", "joined"):
            np.testing.assert_array_equal(getattr(made, name), getattr(in_full, name), name)
