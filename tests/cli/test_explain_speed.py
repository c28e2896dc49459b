"""``planner explain speed`` as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.report.speed import CAUSES
from tests.cli.command import planner

JOB = "--cluster dgx-h100 --nodes 8 --global-batch 512 --seq-len 8192"
SMALL = "--cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 4096"
QUESTION = f"explain speed llama-3-70b {JOB} --tp 4 --pp 4 --recompute full"


def answer(command: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(planner(f"{command} --json").stdout)
    return found


def test_parts_add_up_and_are_printed() -> None:
    found, shown = answer(QUESTION), planner(QUESTION, columns=200).stdout

    parts = found["parts_s"]
    assert sum(parts.values()) == pytest.approx(found["step_time_s"], rel=1e-12)
    for name, seconds in parts.items():
        assert (CAUSES[name] in shown) == (abs(seconds) >= 0.0005 * found["step_time_s"])
    assert found["mfu"] == pytest.approx(parts["ideal"] / found["step_time_s"])
    assert found["hfu"] > found["mfu"]
    assert f"{100 * found['mfu']:.1f} % MFU and {100 * found['hfu']:.1f} % HFU" in shown
    assert "989 TFLOP/s bf16 dense peak" in shown


def test_changes_are_printed_with_what_they_gain() -> None:
    found, shown = answer(QUESTION), planner(QUESTION, columns=200).stdout

    assert len(found["changes"]) == 3
    for change in found["changes"]:
        assert change["text"] in shown
        assert change["faster_s"] == pytest.approx(found["step_time_s"] - change["step_time_s"])


@pytest.mark.parametrize(
    ("share", "judgement", "words"),
    [
        (1.0, "inside", "inside its interval"),
        (3.0, "slower", "above its interval"),
        (0.5, "faster", "below its interval"),
    ],
)
def test_a_measured_time_is_judged(share: float, judgement: str, words: str) -> None:
    step_s = answer(QUESTION)["step_time_s"]
    measured = f"{QUESTION} --measured {share * step_s}s"

    found, shown = answer(measured), planner(measured, columns=400).stdout

    assert found["judgement"] == judgement
    assert found["not_explained_s"] == pytest.approx((share - 1) * step_s, abs=1e-9 * step_s)
    assert found["measured_mfu"] == pytest.approx(found["mfu"] / share)
    assert found["measured_hfu"] == pytest.approx(found["hfu"] / share)
    assert words in shown
    assert "not explained" in shown


def test_a_plan_file_is_a_question(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    planner(f"recommend llama-3-8b {SMALL} --output", file)
    plan = json.loads(file.read_text())

    found = answer(f"explain speed {file}")

    assert found["step_time_s"] == pytest.approx(plan["estimate"]["step_time_s"])
    assert found["mfu"] == pytest.approx(plan["estimate"]["mfu"])


def test_nothing_faster_is_said() -> None:
    one = "--cluster dgx-h100 --nodes 1 --global-batch 8 --seq-len 64"

    shown = planner(f"explain speed tiny-llama {one}", columns=120).stdout

    found = answer(f"explain speed tiny-llama {one}")
    assert ("No single change" in shown) == (not found["changes"])


COMPLAINTS = [
    ("explain speed llama-3-8b", ["--cluster: is needed", "--seq-len: is needed"]),
    (f"explain speed llama-3-8b {SMALL} --measured 13.6", ["--measured: '13.6'", "number and a"]),
    (f"explain speed llama-3-8b {SMALL} --measured 0s", ["--measured: '0s'", "above zero"]),
    (f"explain speed llama-3-8b {SMALL} --pp 8 --vpp 9", ["pp*vpp=72 stages"]),
]


@pytest.mark.parametrize(("command", "words"), COMPLAINTS)
def test_bad_input_is_said_with_its_remedy(command: str, words: list[str]) -> None:
    result = planner(command)

    assert result.exit_code == 2
    assert not result.stdout
    for word in words:
        assert word in result.stderr
