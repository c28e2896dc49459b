import pytest

from planner.memory.interval import Verdict
from planner.report.accuracy import accuracy_report, share
from planner.validate.replay import RowEstimate
from planner.validate.table import error_table
from tests.report.test_tables import printed

ROWS = [
    {"id": f"lab-{n}", "step_time_s": str(n), "sweep_id": "s", "mem_gib_peak_reported": "10"}
    for n in (1, 2, 4)
] + [{"id": "lab-5", "status": "oom"}, {"id": "other-1"}]
FOUND = [
    RowEstimate("lab-1", None, 1.1, 0.9, 1.2, 9.0, True, (), 8.0, 9.5, Verdict.FITS),
    RowEstimate("lab-2", None, 1.8, 1.5, 1.9, 11.0, True, ("pp=1",), 9, 12, Verdict.TOO_CLOSE),
    RowEstimate("lab-4", None, 4.0, 3.0, 5.0, 10.0, True, (), 9, 11, Verdict.DOES_NOT_FIT),
    RowEstimate("lab-5", None, 4.0, 3.0, 5.0, 99.0, False, (), 90, 110, Verdict.FITS),
    RowEstimate("other-1", "gbs is not stated"),
]
WHOLE = """\
5 rows, 4 estimated (80.0%), 10 rows/s

Not estimated
  rows  source  why
     1  other   gbs is not stated

Step time, error against measured
  source             rows  median   mean    p90  signed  yardstick
  lab                   3   10.0%   6.7%  10.0%   +0.0%      50.0%

  all rows              3   10.0%   6.7%  10.0%   +0.0%      50.0%
  median of sources     1   10.0%  10.0%  10.0%   +0.0%      50.0%
  nothing assumed       2    5.0%   5.0%  10.0%   +5.0%      50.0%
  something assumed     1   10.0%  10.0%  10.0%  -10.0%      50.0%

Memory, error against measured
  source    rows  median  mean    p90  signed
  lab          3   10.0%  6.7%  10.0%   +0.0%

  all rows     3   10.0%  6.7%  10.0%   +0.0%

Interval: 66.7% of 3 measured step times lie inside theirs
Memory: 33.3% of estimates more than 2% below the measured peak
Memory interval: of 3 measured peaks 33.3% lie above theirs, 0.0% below
Fit: out of memory found 1 of 1, fits found 3 of 3, balanced accuracy 100.0%
Certain: 3 of 4 verdicts; called impossible but ran: 1; called safe but out of
memory: 1
Ranking: 1 sweeps, Kendall tau mean 1.000 median 1.000, top-1 regret mean 0.0%
median 0.0% p90 0.0% (the median layout: 100.0%)
Ranking by the yardstick: 1 sweeps, Kendall tau mean 1.000 median 1.000, top-1
regret mean 0.0% median 0.0% p90 0.0% (the median layout: 100.0%)"""


def test_whole_report() -> None:
    table = error_table(ROWS, FOUND, {"lab-1": 0.5, "lab-2": 1.0, "lab-4": 2.0})

    assert printed(accuracy_report(table, 0.5)) == WHOLE


def test_nothing_to_say_about_nothing() -> None:
    assert printed(accuracy_report(error_table([], []))) == "0 rows, 0 estimated (0.0%)\n"


def test_many_reasons_are_summed_up() -> None:
    rows = [{"id": f"lab-{n}"} for n in range(14)]
    table = error_table(rows, [RowEstimate(row["id"], f"reason {row['id']}") for row in rows])

    text = printed(accuracy_report(table))

    assert text.count("reason lab-") == 10
    assert "     4          other reasons" in text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.1234, False, "12.3%"), (0.1, True, "+10.0%"), (-0.1, True, "-10.0%"), (None, False, "")],
)
def test_share(value: float | None, signed: bool, text: str) -> None:
    assert share(value, signed) == text
