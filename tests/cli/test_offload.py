"""Activation offload as a user asks for it."""

import json
from pathlib import Path

import pytest

from tests.cli.command import planner

JOB = "--cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 8192 --zero 3 --micro-batch 2"
ASKED = f"llama-3-8b {JOB} --target torch"
HOST = "Offload: 50 % of the movable activations in host memory"


@pytest.mark.parametrize("command", ["check", "explain memory", "explain speed"])
def test_it_is_asked_for_and_said(command: str) -> None:
    shown = planner(f"{command} {ASKED} --offload host:50%", columns=400).stdout

    assert HOST in shown
    assert "GB/s per GPU and" in shown
    assert "of 1843.2 GiB" in shown


@pytest.mark.parametrize("command", ["check", "explain memory", "explain speed"])
def test_json_has_it_too(command: str) -> None:
    plain = json.loads(planner(f"{command} {ASKED} --json").stdout)
    found = json.loads(planner(f"{command} {ASKED} --offload host:0.5 --json").stdout)

    assert "notes" not in plain
    assert found["notes"][0].startswith(HOST)
    assert "offload-host-50%" in found["layout"]


def test_memory_falls_and_time_is_named() -> None:
    before, after = (
        json.loads(planner(f"check {ASKED} {option} --json").stdout)["memory_bytes"]
        for option in ("", "--offload host")
    )
    parts = json.loads(planner(f"explain speed {ASKED} --offload ssd --json").stdout)["parts_s"]

    assert after < 0.7 * before
    assert parts["offload"] > 0


def test_drives_that_do_not_last_are_warned_of() -> None:
    shown = planner(f"check {ASKED} --offload ssd", columns=400).stdout

    assert "Warning: the drives would be worn out after" in shown
    assert "months" in shown


# option, complaint, exit code
WRONG = [
    ("--offload tape", "--offload: 'tape' is not known; write none, host, ssd", 2),
    ("--offload host:lots", "--offload: 'lots' in 'host:lots' is not a share", 2),
    ("--offload host:140%", "--offload: '140%' in 'host:140%' is not a share", 2),
]


@pytest.mark.parametrize(("option", "words", "code"), WRONG)
def test_wrong_words_are_refused(option: str, words: str, code: int) -> None:
    result = planner(f"check {ASKED} {option}", columns=400)

    assert result.exit_code == code
    assert words in result.stderr


def test_more_than_the_host_holds_does_not_start() -> None:
    many = ASKED.replace("--seq-len 8192", "--seq-len 524288")
    result = planner(f"check {many} --offload host", columns=400)

    assert result.exit_code == 1
    assert "which has room for 1843.2 GiB; try a fraction of" in result.stdout


def test_a_cluster_without_drives_is_told_apart(tmp_path: Path) -> None:
    result = planner(f"check {ASKED.replace('dgx-h100', 'mi300x')} --offload ssd", columns=400)

    assert result.exit_code == 1
    assert "describes no drives; add ssd to its file" in result.stdout


def test_recommend_writes_it_and_the_lock_holds(tmp_path: Path) -> None:
    question = "llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 32 --seq-len 32768"
    chosen, locked = tmp_path / "chosen.json", tmp_path / "locked.json"
    shown = planner(f"recommend {question} --target torch --offload -o {chosen}", columns=400)
    planner(f"recommend {question} --target torch --no-offload -o {locked}")

    layouts = [json.loads(file.read_text())["layout"] for file in (chosen, locked)]
    assert layouts[0]["offload_fraction"] > 0
    assert layouts[1]["offload_fraction"] == 0
    assert "of the movable activations in host memory" in shown.stdout
    refused = planner(f"export {chosen} --target megatron -o {tmp_path / 'm'}", columns=400)
    assert refused.exit_code != 0
    assert "Megatron-LM offloads whole layers to the host" in refused.stderr


# batch and sequence: everything fits on the GPU; nothing does
NEEDS = [("--global-batch 32 --seq-len 8192", False), ("--global-batch 8 --seq-len 147456", True)]


@pytest.mark.parametrize(("sizes", "needed"), NEEDS)
def test_unasked_it_is_for_where_nothing_else_fits(sizes: str, needed: bool) -> None:
    asked = f"recommend llama-2-7b --cluster dgx-h100 --nodes 1 {sizes} --cp 1 --tp 1 --json"
    found = json.loads(planner(asked, columns=400).stdout)

    assert (found["layout"]["offload_fraction"] > 0) is needed
