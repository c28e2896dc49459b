"""The arithmetic of the closed loop's benchmark, by hand."""

import time
from pathlib import Path

import pytest

from benchmarks.closed_loop import Loop, Row, Work, measured_s, page, spearman
from planner.plan import Plan
from planner.tune.run import Measured


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [30, 20, 10], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
    ],
)
def test_spearman(left: list[float], right: list[float], expected: float) -> None:
    assert spearman(left, right) == pytest.approx(expected)


def test_the_pick_is_the_least_estimate() -> None:
    rows = [Row("a", 1.0, 2.2, {}), Row("b", 1.5, 2.0, {}), Row("c", 3.0, 3.0, {})]
    loop = Loop(2, 0.25, 60.0, 0, tuple(rows))

    assert loop.regret == pytest.approx(0.1)
    assert loop.error == pytest.approx((1.2 / 2.2 + 0.25) / 3)
    text = page([loop])
    assert "Spearman 0.50; the pick is 10.0 % slower than the best" in text
    assert "Other programs had 25 % of the machine." in text


def test_the_share_of_others_by_hand() -> None:
    before, after = Work(100.0, 10.0, 200.0), Work(106.0, 14.0, 210.0)

    assert after.others_since(before) == pytest.approx(0.2)  # 6 s worked, 4 of them ours, of 10 s
    assert Work(104.0, 14.5, 210.0).others_since(before) == 0.0  # counters tick apart


@pytest.mark.skipif(
    not Path("/proc/stat").exists(), reason="the share is read from Linux's counters"
)
def test_own_work_is_not_that_of_others() -> None:
    before, until = Work.now(), time.process_time() + 0.3
    while time.process_time() < until:
        pass
    after = Work.now()

    assert after.own_s - before.own_s == pytest.approx(0.3, abs=0.05)
    assert after.all_s >= before.all_s + 0.2
    assert 0 <= after.others_since(before) <= 1


def test_quiet_rounds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan a runs in 5, 1, 2, 9 s; others took least of the machine in rounds 2 and 3."""
    runs = {"a": iter([5.0, 1.0, 2.0, 9.0]), "b": iter([4.0, 4.0, 4.0, 4.0])}
    ran: list[str] = []

    class Named:
        estimate = Measured((1.0,))

        def __init__(self, name: str) -> None:
            self.name = name

        def to_layout(self) -> "Named":
            return self

        def label(self) -> str:
            return self.name

    def run_plan(plan: Named, steps: int, backend: str) -> Measured:
        ran.append(plan.name)
        return Measured((next(runs[plan.name]),))

    taken = iter([0.5, 0.1, 0.1, 0.0, 0.0, 0.3, 0.4, 0.9])  # by run: a b, b a, a b, b a
    monkeypatch.setattr("benchmarks.closed_loop.run_plan", run_plan)
    monkeypatch.setattr(Work, "now", lambda: Work(0.0, 0.0, 0.0))
    monkeypatch.setattr(Work, "others_since", lambda self, before: next(taken))
    plans: list[Plan] = [Named("a"), Named("b")]  # type: ignore[list-item]

    times, others = measured_s(plans, 4)

    assert "".join(ran) == "abbaabba"
    assert times == [1.5, 4.0]
    assert others == pytest.approx([0.0, 0.1])
