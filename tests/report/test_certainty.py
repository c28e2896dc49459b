"""How firm a plan is, in sentences."""

from typing import Any

import pytest

from planner.plan import PartitionRecord, Plan, StabilityRecord, UpsetRecord
from planner.report.certainty import partition_line, stability_lines
from tests.formats.plans import build_plan

STEP_S = build_plan(pp=4, dp=2).estimate.step_time_s


def split(**fields: Any) -> Plan:
    record = {"solver": "HiGHS", "status": "optimal", "objective_s": 2.0, "bound_s": 2.0,
              "equal_step_time_s": 1.1 * STEP_S} | fields  # fmt: skip
    return build_plan(pp=4, dp=2).model_copy(update={"partition": PartitionRecord(**record)})


# fields of the partition, words of the sentence
SENTENCES = [
    ({}, ["by HiGHS (no split has less of what the solver minimises: 2 s)", "(10.0 % more)."]),
    ({"bound_s": 1.9, "status": "time limit"}, ["within 5.0 % of the best", "stopped by the time"]),
    ({"solver": "equal", "bound_s": 0.0, "equal_step_time_s": STEP_S}, ["Stages: equal."]),
]


@pytest.mark.parametrize(("fields", "words"), SENTENCES)
def test_stages_name_their_solver_its_proof_and_the_gain(
    fields: dict[str, Any], words: list[str]
) -> None:
    line = partition_line(split(**fields))

    assert [word for word in words if word not in line] == []
    assert partition_line(build_plan(dp=8)) == ""


UPSET = UpsetRecord(cause="recompute", factor=1.1, label="tp2 dp4", slower=0.009, gain=0.013)


def test_a_close_call_names_what_would_win_and_what_settles_it() -> None:
    record = StabilityRecord(error=0.1, holds=False, upsets=(UPSET,) * 5, settled_by="kernels")
    (line,) = stability_lines(build_plan(dp=8).model_copy(update={"stability": record}))

    assert line.startswith(
        "Close: were recompute 10 % longer than estimated, tp2 dp4 (0.9 % slower as it is) would "
        "be 1.3 % faster; "
    )
    assert line.count("tp2 dp4") == 3
    assert line.endswith("Measuring your kernels settles it (planner profile).")


def test_a_firm_answer_is_one_line() -> None:
    record = StabilityRecord(error=0.1, holds=True)
    (line,) = stability_lines(build_plan(dp=8).model_copy(update={"stability": record}))

    assert line.startswith("Firm: with any one cause of the step 10 % longer or shorter")
    assert stability_lines(build_plan(dp=8)) == []
