"""Memory outcomes that users reported, against the answers of ``planner check``.

A report of ``oom`` is right if the planner says "does not fit", or "too close to tell" with the
estimate over the capacity. ``fits`` is right if it does not say "does not fit" and the estimate is
under the capacity. A wrong answer stays in the table with its ``cause`` and is expected to fail
here; once it is right, its cause must go.
"""

from typing import Any

import pytest

from benchmarks.reports import bytes_lines, is_right, memory_answer, memory_rows, used
from planner.memory.estimate import RankMemory
from planner.memory.interval import verdict
from planner.report.memory import Checked
from planner.spec.gpu import load_gpu
from planner.units import GIB

ROWS = memory_rows()
USED = used(ROWS)


def marked(row: dict[str, str]) -> Any:
    """Return a row as a parameter; one with a cause is expected to be wrong."""
    wrong = [pytest.mark.xfail(reason=row["cause"], strict=True)] if row["cause"] else []
    return pytest.param(row, id=row["id"], marks=wrong)


@pytest.mark.parametrize("row", [marked(row) for row in USED])
def test_the_answer_is_what_the_user_saw(row: dict[str, str]) -> None:
    assert memory_answer(row).right


def test_every_row_is_used_or_says_why_not() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert {row["used"] for row in ROWS} == {"yes", "no"}
    assert [row["id"] for row in ROWS if (row["used"] == "no") != bool(row["reason"])] == []
    assert [row["id"] for row in ROWS if row["cause"] and row["used"] == "no"] == []


def test_both_outcomes_are_asked() -> None:
    outcomes = [row["outcome"] for row in USED]

    assert len(outcomes) >= 20
    assert min(outcomes.count("oom"), outcomes.count("fits")) >= 20


@pytest.mark.parametrize("row", USED, ids=lambda row: row["id"])
def test_what_is_taken_from_elsewhere_is_said(row: dict[str, str]) -> None:
    assert row["taken"]
    assert not row["reason"]


# GiB reserved, of 100; outcome; whether the verdict agrees
LOW, HIGH = 0.85, 1.35
VERDICTS = [
    (101 / LOW, "oom", True),
    (101, "oom", True),
    (99, "oom", False),
    (99 / HIGH, "oom", False),
    (99 / HIGH, "fits", True),
    (99, "fits", True),
    (101, "fits", False),
    (101 / LOW, "fits", False),
]


@pytest.mark.parametrize(("size", "outcome", "right"), VERDICTS)
def test_the_rule(size: float, outcome: str, right: bool) -> None:
    memory = RankMemory(0, 0, 0, 0, size * GIB / 1.053, 0, 0, "loss", 0.053, (LOW, HIGH))
    gpu = load_gpu("A100-SXM-80GB").model_copy(update={"memory_bytes": 100 * GIB})
    found = Checked("one", (), (memory,), (gpu,), verdict(memory, 100 * GIB))

    assert is_right(outcome, found) is right


def test_a_layout_that_cannot_start_is_no_answer() -> None:
    row = next(row for row in USED if row["tp"] == "8")

    with pytest.raises(ValueError, match="refuses the layout"):
        memory_answer(row | {"n_heads": "12", "n_kv_heads": "12"})


def test_bytes_of_every_case_add_up() -> None:
    head, *lines = bytes_lines()

    assert len(lines) == len(USED)
    assert head.split()[-2:] == ["total", "of"]
    for line in lines:
        *parts, total, _ = (float(cell) for cell in line[27:].split()[:10])
        assert sum(parts) == pytest.approx(total, abs=0.5)
