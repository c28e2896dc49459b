"""Layouts that users saw refused, hung or trained wrongly, and questions, at the command line."""

import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.reports import RuleRow, memory_rows, rule_answer, rule_rows, summary, used

ROWS = rule_rows()
USED = used(ROWS)
PAGE = Path(__file__).parents[2] / "docs" / "reports.md"


@pytest.mark.parametrize("row", USED, ids=lambda row: str(row["id"]))
def test_the_answer_is_the_rule_asked_for(row: RuleRow) -> None:
    code, said = rule_answer(row)

    assert code == row["exit"]
    for words in row["answer"]:
        assert words in said


def test_every_row_is_used_or_says_why_not() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert [row["id"] for row in ROWS if bool(row.get("reason")) == row["used"]] == []
    assert [row["id"] for row in USED if not row["answer"]] == []


def test_rows_of_every_class() -> None:
    reports = {row["id"][:9]: row["class"] for row in [*memory_rows(), *ROWS]}

    assert Counter(reports.values()) == {
        "oom": 42, "oom_host": 2, "fits": 6, "measured": 14, "rejected_or_crash": 17,
        "silent_misconfiguration": 3, "question_or_rule": 6,
    }  # fmt: skip


def test_a_near_neighbour_that_starts_is_not_refused() -> None:
    """The answers come from what the files state: one number changed, the rule is kept."""
    row = next(row for row in USED if row["id"] == "case-0584")

    code, said = rule_answer(row | {"text": row["text"].replace("PP=$GPUS", "PP=4")})

    assert code == 0
    assert "M5" not in said


def test_the_page_has_todays_summary() -> None:
    """Numbers of the page may lag behind; which answers are wrong may not."""
    wrong = [line.split(" | ")[0] for line in summary() if line.startswith("| case-")]
    listed = re.findall(r"^\| case-[\w-]+", PAGE.read_text(), re.M)

    assert listed == wrong
