"""Every schedule beside what its paper prints: passes kept, and the bubble of balanced stages.

One row for each name in ``SCHEDULES``; the tests of single schedules go further.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.kinds import CROSSED, KINDS, SCHEDULES
from planner.schedule.orders import order
from planner.schedule.passes import in_flight
from planner.simulate.pipeline import pipeline_time

CHUNKS = 3  # of the interleaved schedule
F, B, W = 1.0, 1.0, 0.8  # seconds of a rank: forward, input gradient (DualPipe: as long), weights


class Published(NamedTuple):
    """``kept(p, m)`` chunk passes on the fullest rank, ``bubble_s(p)``, and how exact that is."""

    kept: Callable[[int, int], int]
    bubble_s: Callable[[int], float]
    within_s: float = 1e-9


# arXiv 1811.06965 | 2104.04473, 2.2 | 2401.10241, table 1 and section 6 | 2405.15362, table 1
# (bubbles of about a half and two thirds of 1F1B's at F = B = W) | README of deepseek-ai/DualPipe
PUBLISHED = {
    "gpipe": Published(lambda p, m: m, lambda p: (p - 1) * (F + B + W)),
    "1f1b": Published(lambda p, m: p, lambda p: (p - 1) * (F + B + W)),
    "interleaved_1f1b": Published(
        lambda p, m: 2 * (p - 1) + (CHUNKS - 1) * p + 1, lambda p: (p - 1) * (F + B + W) / CHUNKS
    ),
    "zb_h1": Published(lambda p, m: p, lambda p: (p - 1) * (F + B - W)),
    "zb_h2": Published(lambda p, m: 2 * p - 1, lambda p: (p - 1) * (F + B - 2 * W)),
    "zb_2p": Published(lambda p, m: 2 * p - 1, lambda p: 0.0),
    "zb_v": Published(lambda p, m: 2 * p, lambda p: 0.0),
    "v_half": Published(lambda p, m: 2 * ((p + 2) // 2), lambda p: 1.5 * (p - 1), 1.0),
    "v_min": Published(lambda p, m: 2 * ((p + 4) // 3), lambda p: 2.0 * (p - 1), 1.0),
    "dualpipe": Published(lambda p, m: p + 1, lambda p: (p / 2 - 1) * (2 * F + B - W)),
    "dualpipe_v": Published(lambda p, m: 2 * p + 1, lambda p: (p - 1) * (2 * F + B - W) / 2),
}
EQUAL = ("zb_2p", "zb_v", "v_half", "v_min")  # printed for F = B = W


def chunks_of(kind: str) -> int:
    return CHUNKS if kind == "interleaved_1f1b" else KINDS[kind].chunks


def idle_s(kind: str, stages: int, micro_batches: int) -> float:
    """Return the longest idle time of a rank, from its first pass to its last at its own pace."""
    chunks, splits = chunks_of(kind), KINDS[kind].splits
    # both directions of crossed pipelines run whole stages
    part = 1 if KINDS[kind].placement == CROSSED else chunks
    forward, inputs, weight = (1.0, 1.0, 1.0) if kind in EQUAL else (F, B, W)
    count, whole = stages * chunks, inputs + (0.0 if splits else weight)
    times = pipeline_time(
        kind, stages, chunks, micro_batches, np.full(count, forward / part),
        np.full(count, whole / part), np.zeros(count - 1), True,
        weight_s=np.full(count, weight / part) if splits else None,
    )  # fmt: skip
    ends = times.last_backward_end_s if KINDS[kind].own_pace else times.total_s[..., None]
    starts = times.first_forward_start_s if KINDS[kind].own_pace else 0.0
    return float((ends - starts - times.per_rank_busy_s).max())


def test_no_schedule_is_left_out() -> None:
    assert set(PUBLISHED) == set(SCHEDULES)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_passes_kept(kind: str, stages: int) -> None:
    micro_batches, chunks = 6 * stages, chunks_of(kind)
    published = PUBLISHED[kind].kept(stages, micro_batches)

    assert in_flight(order(kind, stages, micro_batches, chunks)).max() == published
    assert peak_chunk_passes(stages, chunks, micro_batches, 0, schedule=kind) == published


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("stages", [4, 8])
@pytest.mark.parametrize("times", [6, 8])
def test_bubble(kind: str, stages: int, times: int) -> None:
    """The same for any number of micro-batches."""
    row = PUBLISHED[kind]

    assert idle_s(kind, stages, times * stages) == pytest.approx(
        row.bubble_s(stages), abs=row.within_s
    )
