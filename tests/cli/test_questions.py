import json
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import TINY, planner, tiny_plan

JOB = "--cluster dgx-h100 --nodes 1 --global-batch 16"


def test_min_gpus_answers_first_and_writes_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = planner(f"min-gpus llama-3-8b {JOB} --seq-len 8192", "--output", file)

    assert result.exit_code == 0
    assert result.stdout.startswith("Fewest: 2 GPUs\nFastest: ")
    assert len(load(Plan, file).rank_map) == 2
    assert "GiB short" in result.stdout


def test_min_gpus_says_no_with_exit_code_1() -> None:
    result = planner(f"min-gpus llama-3-70b {JOB} --seq-len 8192", columns=200)

    assert result.exit_code == 1
    assert result.stdout.startswith("Nothing fits up to 8 GPUs: the fullest GPU needs ")


def test_max_seq_as_json() -> None:
    result = planner(f"max-seq gpt2 {JOB} --json")

    found = json.loads(result.stdout)
    assert found["tokens"] == 1024
    assert found["plan"]["job"]["seq_len"] == 1024
    assert found["tried"][-1]["fits"]


def test_replan_shows_before_and_now(tmp_path: Path) -> None:
    plan, new = tiny_plan(tmp_path), tmp_path / "new.json"
    result = planner("replan", plan, "--nodes", "2", "--output", new, columns=200)

    assert result.exit_code == 0
    assert "before" in result.stdout
    assert len(load(Plan, new).rank_map) == 16
    assert "Weights are cut as before" in result.stdout or "same cut" in result.stdout


def test_replan_as_json(tmp_path: Path) -> None:
    result = planner("replan", tiny_plan(tmp_path), "--nodes", "2", "--json")

    assert len(json.loads(result.stdout)["plan"]["rank_map"]) == 16


# locks, and what every layout then has
LOCKS = [
    ("--tp 2", {"tp": 2}),
    ("--tp 4 --dp 2", {"tp": 4, "dp": 2}),
    ("--pp 2 --micro-batch 2", {"pp": 2, "micro_batch": 2}),
    ("--max-tp 1 --max-pp 1", {"tp": 1, "pp": 1}),
    ("--zero 0 --dp 8", {"shard_optimizer": 1}),
    ("--no-folding --tp 2", {"tp": 2, "etp": 1}),
]


@pytest.mark.parametrize(("locks", "expected"), LOCKS)
def test_locks_are_obeyed(locks: str, expected: dict[str, int]) -> None:
    result = planner(f"{TINY} {locks} --json")

    layout = json.loads(result.stdout)["layout"]
    assert {name: layout[name] for name in expected} == expected


# locks that cannot be obeyed, and what is said
IMPOSSIBLE = [
    ("--tp 4 --max-tp 2 --zero 5", ["--tp: 4 is above --max-tp 2", "--zero: there is no stage 5"]),
    ("--tp 3", ["--tp 3: no legal layout of 8 GPUs obeys them"]),
]


@pytest.mark.parametrize(("locks", "words"), IMPOSSIBLE)
def test_locks_that_cannot_be_obeyed_are_named(locks: str, words: list[str]) -> None:
    result = planner(f"{TINY} {locks}")

    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr


def test_the_command_in_the_plan_repeats_the_locks() -> None:
    result = planner(f"{TINY} --max-cp 2 --tp 2 --json")

    command = json.loads(result.stdout)["command"]
    assert "--tp 2" in command
    assert "--max-cp 2" in command
