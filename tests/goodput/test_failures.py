import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import NoPlanError
from planner.goodput.failures import optimal_interval_s, wall_time

spans = st.floats(1.0, 500.0)
mtbfs = st.floats(2e3, 1e6)


def simulated_s(work_s: float, piece_s: float, stall_s: float, recovery_s: float, mtbf_s: float,
                dice: random.Random) -> float:  # fmt: skip
    """Play one run: work, save, fail, recover; a recovery may fail too."""
    now_s, done_s, failure_s = 0.0, 0.0, dice.expovariate(1 / mtbf_s)
    recovering = False
    while done_s < work_s:
        needed_s = piece_s + stall_s + (recovery_s if recovering else 0.0)
        if now_s + needed_s > failure_s:
            now_s, recovering = failure_s, True
            failure_s = now_s + dice.expovariate(1 / mtbf_s)
            continue
        now_s, done_s, recovering = now_s + needed_s, done_s + piece_s, False
    return now_s


@pytest.mark.parametrize(
    ("piece_s", "stall_s", "detect_s", "restart_s", "mtbf_s"),
    [(300, 5, 100, 200, 3600), (60, 20, 0, 50, 500), (1000, 10, 600, 300, 2500)],
)
def test_expected_time_is_that_of_played_runs(
    piece_s: float, stall_s: float, detect_s: float, restart_s: float, mtbf_s: float
) -> None:
    dice = random.Random(7)
    played = [
        simulated_s(20 * piece_s, piece_s, stall_s, detect_s + restart_s, mtbf_s, dice)
        for _ in range(4000)
    ]

    wall = wall_time(20 * piece_s, piece_s, stall_s, detect_s, restart_s, mtbf_s)

    assert wall.total_s == pytest.approx(sum(played) / len(played), rel=0.02)


@settings(deadline=None)
@given(stall_s=spans, recovery_s=spans, mtbf_s=mtbfs)
def test_no_other_interval_is_shorter(stall_s: float, recovery_s: float, mtbf_s: float) -> None:
    best_s = optimal_interval_s(stall_s, mtbf_s)

    def total_s(interval_s: float) -> float:
        return wall_time(1e6, interval_s, stall_s, 0.0, recovery_s, mtbf_s).total_s

    assert all(total_s(best_s) <= total_s(best_s * k) * 1.002 for k in (0.25, 0.5, 0.9, 1.1, 2, 4))


@given(stall_s=st.floats(0.1, 5), recovery_s=st.floats(0, 600), mtbf_s=st.floats(1e5, 1e7))
def test_rare_failures_give_the_textbook_formula(
    stall_s: float, recovery_s: float, mtbf_s: float
) -> None:
    """1 + stall / interval + (interval / 2 + recovery) / mtbf, and Young's interval."""
    interval_s = optimal_interval_s(stall_s, mtbf_s)
    wall = wall_time(1e7, interval_s, stall_s, recovery_s, 0.0, mtbf_s)

    first_order = 1 + stall_s / interval_s + (interval_s / 2 + recovery_s) / mtbf_s
    assert interval_s == pytest.approx((2 * stall_s * mtbf_s) ** 0.5, rel=0.02)
    assert wall.total_s / 1e7 == pytest.approx(first_order, rel=2e-4)


@given(detect_s=spans, restart_s=spans, mtbf_s=mtbfs, stall_s=spans)
def test_more_failures_never_help_and_parts_add_up(
    detect_s: float, restart_s: float, mtbf_s: float, stall_s: float
) -> None:
    often = wall_time(1e6, 1000, stall_s, detect_s, restart_s, mtbf_s)
    seldom = wall_time(1e6, 1000, stall_s, detect_s, restart_s, 2 * mtbf_s)

    assert often.total_s >= seldom.total_s >= 1e6
    assert often.interruptions == pytest.approx(often.total_s / mtbf_s)
    parts = (often.detection_s, often.restart_s, often.repeated_s, often.checkpoints_s)
    assert min(parts) >= 0
    assert often.detection_s / often.restart_s == pytest.approx(detect_s / restart_s)


def test_a_run_that_never_ends_is_said_to() -> None:
    with pytest.raises(NoPlanError, match="use fewer GPUs") as caught:
        wall_time(1e6, 600, 3, 600, 300, 60)

    assert caught.value.exit_code == 1


def test_long_stalls_save_once_between_failures() -> None:
    assert optimal_interval_s(100, 50) == 50
