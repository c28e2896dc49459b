"""``planner calibrate`` as a user types it, and ``--calibration`` of the other commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import planner

JOB = "--cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096"
LAYOUTS = (
    "--tp 8 --micro-batch 8",
    "--tp 4 --micro-batch 4",
    "--zero 1 --recompute full",
    "--pp 4 --recompute full",
    "--tp 2 --pp 2 --recompute full",
    "--cp 2 --tp 4 --micro-batch 8",
)
HEADER = "name,nodes,global_batch,seq_len,tp,cp,pp,micro_batch,zero,recompute,step_time_s,note"


def explained(words: str, *more: str | Path) -> dict[str, Any]:
    result = planner(f"explain speed llama-3-8b {JOB} --target megatron {words} --json", *more)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def line(layout: str, number: int, step_s: float) -> dict[str, Any]:
    words = layout.replace("--", "").split()
    degrees = dict(zip((word.replace("-", "_") for word in words[::2]), words[1::2], strict=True))
    row: dict[str, Any] = {"name": f"run{number}", "nodes": 2, "global_batch": 64, "seq_len": 4096}
    return row | degrees | {"step_time_s": step_s}


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Runs that take 1.25 times what the matrix products and attention of the estimate do."""
    found = []
    for number, layout in enumerate(LAYOUTS):
        step = explained(layout)
        parts = step["parts_s"]
        products = sum(parts[name] for name in ("ideal", "products", "attention", "recompute"))
        found.append(line(layout, number, step["step_time_s"] + 0.25 * products))
    return found


def as_csv(lines: list[dict[str, Any]], file: Path) -> Path:
    rows = [",".join(str(row.get(name, "")) for name in HEADER.split(",")) for row in lines]
    file.write_text("\n".join([HEADER, *rows, ""]))
    return file


def as_json_lines(lines: list[dict[str, Any]], file: Path) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return file


ASKED = "calibrate --cluster dgx-h100 --model llama-3-8b --target megatron"


def test_factors_are_written_printed_and_used(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    runs, file = as_csv(lines, tmp_path / "runs.csv"), tmp_path / "calibration.json"

    result = planner(ASKED, runs, "--output", file, columns=120)

    assert result.exit_code == 0, result.stderr
    written = json.loads(file.read_text())
    assert list(written["factors"]) == ["compute_speed"]
    assert written["factors"]["compute_speed"] == pytest.approx(0.8, abs=0.04)
    assert written["error_after"] < 0.03 < 0.1 < written["error_before"]
    assert f"compute_speed {written['factors']['compute_speed']:.3f}" in result.stdout
    for word in ("as shipped", "fitted", "left out", "run5", "6 runs support 1 factor"):
        assert word in result.stdout
    for row, layout in zip(lines, LAYOUTS, strict=True):
        used = explained(layout, "--calibration", file)
        assert used["step_time_s"] == pytest.approx(row["step_time_s"], rel=0.05)


def test_json_lines_say_the_same(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    table = planner(f"{ASKED} --json", as_csv(lines, tmp_path / "runs.csv")).stdout
    objects = planner(f"{ASKED} --json", as_json_lines(lines, tmp_path / "runs.jsonl")).stdout

    assert json.loads(table)["factors"] == json.loads(objects)["factors"]
    assert len(json.loads(table)["errors"]) == len(LAYOUTS)


def test_other_commands_take_the_file(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    file, plan = tmp_path / "calibration.json", tmp_path / "plan.json"
    planner(ASKED, as_csv(lines, tmp_path / "runs.csv"), "--output", file)

    first = planner(f"recommend llama-3-8b {JOB} --json").stdout
    second = planner(f"recommend llama-3-8b {JOB} --json --calibration", file, "--output", plan)
    checked = planner(f"check llama-3-8b {JOB} --tp 8 --calibration", file)
    memory = planner(f"explain memory llama-3-8b {JOB} --tp 8 --calibration", file)

    assert [checked.exit_code, memory.exit_code] == [0, 0]
    step_s = [json.loads(text)["estimate"]["step_time_s"] for text in (first, second.stdout)]
    assert step_s[1] > 1.1 * step_s[0]
    assert "calibration" in second.stderr
    again = planner("explain speed", plan, "--json")
    assert json.loads(again.stdout)["step_time_s"] == pytest.approx(step_s[1])
    twice = planner("explain speed", plan, "--calibration", file)
    assert twice.exit_code == 2
    assert "calibrated already" in twice.stderr


def test_a_launch_file_takes_no_factors(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text("torchrun pretrain_gpt.py --num-layers 2 --tensor-model-parallel-size 2\n")

    result = planner("check", script, "--calibration", tmp_path / "calibration.json")

    assert result.exit_code == 2
    assert "--calibration: goes with a MODEL or PLAN" in result.stderr


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("mine")

    result = planner(ASKED, tmp_path / "runs.csv", "--output", file)

    assert result.exit_code == 2
    assert "exists; name another file" in result.stderr


GOOD = {"global_batch": 64, "seq_len": 4096, "tp": 8, "nodes": 2, "step_time_s": 2.5}
# what is wrong with one line, and what is said of it
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tp": "x"}, "tp: 'x' is not accepted; write a whole number, like 8"),
    ({"tp": 3}, "tp*cp*pp=3 does not divide the 16 GPUs"),
    ({"step_time_s": "2.5mins"}, "step_time_s: '2.5mins' is not a duration"),
    ({"step_time_s": -1}, "step_time_s: "),
    ({"step_time_s": ""}, "step_time_s: missing"),
    ({"recompute": "some"}, "recompute: 'some' is not known; use one of none, selective, full"),
    ({"zero": 4}, "zero: '4' is not accepted"),
    ({"global_batch": 9, "tp": 2}, "9"),
    ({"nodes": 0}, "nodes: '0' is not accepted"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = as_csv([GOOD, GOOD | change], tmp_path / "runs.csv")

    result = planner(ASKED, file)

    assert result.exit_code == 2
    assert not result.stdout
    assert f"{file}:3: " in result.stderr
    assert f"{file}:2: " not in result.stderr
    assert words in result.stderr


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(f"{HEADER},tq\n" + "\n".join(f"a,2,64,4096,{tp},,,,,,2.5,,1" for tp in "xyz"))

    errors = planner(ASKED, file).stderr

    assert f"{file}:1: tq: unknown column; did you mean" in errors
    assert errors.count("tq") == 1
    for number, tp in enumerate("xyz", 2):
        assert f"{file}:{number}: tp: {tp!r}" in errors


# a whole file that holds no runs, and what is said of it
FILES = [
    ("runs.csv", "", ":1: no column step_time_s"),
    ("runs.csv", "tp,tp,step_time_s\n", ":1: column 'tp' stands twice"),
    ("runs.csv", "tp,step_time_s\n\n", ": holds no runs"),
    ("runs.csv", "tp,step_time_s\n1,2,3\n", ":2: 3 cells under 2 columns"),
    ("runs.jsonl", "{\n", ":1: not valid JSON"),
    ("runs.jsonl", "[]\n", ":1: is no JSON object"),
    ("runs.jsonl", '{"step_time_s": 1, "global_batch": 1, "tq": 1}', ":1: tq: unknown field"),
]


@pytest.mark.parametrize(("name", "text", "words"), FILES)
def test_a_file_that_holds_no_runs(tmp_path: Path, name: str, text: str, words: str) -> None:
    file = tmp_path / name
    file.write_text(text)

    result = planner(ASKED, file)

    assert result.exit_code == 2
    assert f"{file}{words}" in result.stderr


def test_lines_without_a_model_need_one(tmp_path: Path) -> None:
    result = planner("calibrate --cluster dgx-h100", as_csv([GOOD], tmp_path / "runs.csv"))

    assert result.exit_code == 2
    assert ":2: model: missing; add the column, or give --model" in result.stderr
