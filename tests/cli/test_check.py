"""``planner check`` and ``planner explain memory`` as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import planner

JOB = "--cluster dgx-h100 --nodes 8 --global-batch 512 --seq-len 8192"
SMALL = "--cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 4096"

# model and layout, verdict, exit code
VERDICTS = [
    (f"llama-3-8b {SMALL} --tp 8", "fits", 0),
    (f"llama-3-8b {SMALL} --zero 3 --recompute full", "fits", 0),
    (f"llama-3-70b {JOB} --tp 8 --pp 4", "too close to tell", 3),
    (f"llama-3-70b {JOB} --tp 4 --pp 4", "does not fit", 1),
    (f"llama-3-70b {JOB} --zero 0", "does not fit", 1),
    (f"mixtral-8x7b {JOB} --ep 8 --pp 4 --recompute full", "fits", 0),
]


def answer(command: str) -> dict[str, Any]:
    result = planner(f"{command} --json")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("question", "verdict", "code"), VERDICTS)
def test_verdict_and_exit_code(question: str, verdict: str, code: int) -> None:
    result = planner(f"check {question}", columns=300)

    assert result.exit_code == code
    assert result.stdout.lower().startswith(verdict)


@pytest.mark.parametrize(("question", "verdict", "code"), VERDICTS)
def test_json_says_the_same(question: str, verdict: str, code: int) -> None:
    found = answer(f"check {question}")

    assert (found["verdict"], found["starts"], found["problems"]) == (verdict, True, [])
    low, high, size = (found[f"memory{name}_bytes"] for name in ("_low", "_high", ""))
    assert low < size < high
    expected = {0: high <= found["capacity_bytes"], 1: low > found["capacity_bytes"]}
    assert expected.get(code, low <= found["capacity_bytes"] < high)


def test_groups_of_each_tensor_can_be_stated() -> None:
    """Weights over 8, the rest over all: more weights, as few gradients, nothing else changed."""
    job = f"llama-3-8b {JOB} --recompute full --target deepspeed"
    memory = {
        shard: json.loads(planner(f"check {job} --shard {shard} --json").stdout)["memory_bytes"]
        for shard in ("64,64,64", "64,64,64,8", "8,64,64", "1,64,64")
    }
    by_stage = {
        zero: json.loads(planner(f"check {job} --zero {zero} --json").stdout)["memory_bytes"]
        for zero in (2, 3)
    }

    assert memory["64,64,64"] == by_stage[3]
    assert memory["1,64,64"] == by_stage[2]
    assert memory["64,64,64"] < memory["8,64,64"] < memory["64,64,64,8"] < memory["1,64,64"]


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("8", "--shard: '8' is no list of group sizes"),
        ("2,8,x", "--shard: '2,8,x' is no list of group sizes"),
        ("0,8,64", "--shard: '0,8,64' has a group of 0 ranks"),
    ],
)
def test_groups_that_are_none_are_refused(shard: str, said: str) -> None:
    result = planner(f"check llama-3-8b {JOB} --shard {shard}")

    assert result.exit_code == 2
    assert said in result.stderr


def test_every_broken_rule_is_listed_at_once() -> None:
    question = "--tp 16 --pp 4 --vpp 24 --ep 2"
    result = planner(f"check llama-3-70b {JOB} {question}", columns=300)

    assert result.exit_code == 1
    assert result.stdout.startswith("Does not start: tp16 pp4 vpp24 ep2")
    for word in ("ep=2 needs a model with experts", "pp*vpp=96 stages are more than", "L12"):
        assert word in result.stdout


# a question that is none, and what the complaint names
COMPLAINTS = [
    ("check llama-3-8b", ["--cluster: is needed", "--global-batch: is", "--seq-len: is needed"]),
    (f"check llama-3-8b {SMALL} --tp 3", ["tp*cp*pp=3 does not divide the 8 GPUs"]),
    (f"check llama-3-8b {SMALL} --recompute some", ["--recompute: 'some'", "selective, full"]),
    (f"check llama-9 {SMALL}", ["llama-9"]),
    (f"check llama-3-8b {SMALL} --precision fp64", ["--precision: 'fp64' does not run"]),
    (f"explain memory llama-3-8b {SMALL} --pp 8 --vpp 9", ["pp*vpp=72 stages"]),
]


@pytest.mark.parametrize(("command", "words"), COMPLAINTS)
def test_bad_input_is_said_with_its_remedy(command: str, words: list[str]) -> None:
    result = planner(command)

    assert result.exit_code == 2
    assert not result.stdout
    for word in words:
        assert word in result.stderr


def test_bytes_add_up_and_the_fullest_rank_is_the_verdict() -> None:
    found = answer(f"explain memory llama-3-70b {JOB} --tp 4 --pp 4")

    assert len(found["ranks"]) == 4
    for rank in found["ranks"]:
        parts = ("weights", "gradients", "optimizer", "buffers", "activations", "working")
        assert rank["reserved"] >= sum(rank[part] for part in parts)
        assert rank["device"] == pytest.approx(rank["reserved"] + rank["outside"])
    assert max(rank["device"] for rank in found["ranks"]) == found["memory_bytes"]


def test_the_fullest_rank_is_shown_through_its_step() -> None:
    command = f"explain memory llama-3-70b {JOB} --tp 4 --pp 4"
    shown, found = planner(command, columns=100).stdout, answer(command)
    rank, moments = found["ranks"][found["peak_rank"]], found["moments"]

    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "working")
    for moment in moments:
        assert moment["allocated"] == pytest.approx(sum(moment[part] for part in parts))
        assert moment["moment"] in shown
    (peak,) = [moment for moment in moments if moment["peak"]]
    assert peak["moment"] == rank["moment"]
    assert peak["allocated"] == max(moment["allocated"] for moment in moments)
    assert [peak[part] for part in parts] == [rank[part] for part in parts]
    (marked,) = [line for line in shown.splitlines() if line.endswith("*")]
    assert marked.split()[:3] == peak["moment"].split()[:3]
    assert "host_nodes" not in found


def test_table_moment_and_changes_are_printed() -> None:
    command = f"explain memory llama-3-70b {JOB} --tp 4 --pp 4"
    shown, found = planner(command, columns=100).stdout, answer(command)

    for word in ("weights", "grads", "optim", "activ", "reserve", "outside", "total"):
        assert word in shown
    assert f"The peak is rank 0, {found['ranks'][0]['moment']}" in shown
    assert 1 <= len(found["changes"]) <= 3
    for change in found["changes"]:
        assert change["text"] in shown
        assert change["saved_bytes"] == pytest.approx(
            found["memory_bytes"] - change["device_bytes"]
        )


def test_a_plan_file_is_a_question(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    planner(f"recommend llama-3-8b {SMALL} --output", file)
    plan = json.loads(file.read_text())

    for command in ("check", "explain memory"):
        found = answer(f"{command} {file}")
        assert found["memory_bytes"] == pytest.approx(plan["estimate"]["memory_bytes"])
        assert found["verdict"] != "does not fit"


@pytest.mark.parametrize("name", ["plan", "memory"])
def test_a_file_that_is_no_plan_is_a_model(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text("{")

    result = planner(f"check {file} {SMALL}")

    assert result.exit_code == 2
    assert str(file) in result.stderr
