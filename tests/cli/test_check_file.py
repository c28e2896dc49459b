"""``planner check FILE``: launch files of other frameworks, as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import planner

MODEL = "--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096 --swiglu "
BATCH = (
    "--micro-batch-size 1 --global-batch-size 64 --bf16 --hidden-dropout 0 --attention-dropout 0"
)
# a GPT-like model whose layout needs more GPUs than the script starts by itself
SCRIPT = f"""#!/bin/bash
NODES=${{NODES:-1}}
TP=4
PP_SIZE=8
ARGS=(
  {MODEL}
  {BATCH} --use-distributed-optimizer
  --tensor-model-parallel-size $TP  # inside the node
  --sequence-parallel --cp-comm-type p2p
)
torchrun --nproc_per_node 8 --nnodes $NODES pretrain_gpt.py ${{ARGS[@]}} --lr 3e-4 --odd-thing 7 \\
  --pipeline-model-parallel-size ${{PP:-4}}
"""
CLUSTER = "--cluster dgx-h100 --nodes 2"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "run.sh"
    file.write_text(SCRIPT)
    return file


def answer(*words: str | Path) -> tuple[int, dict[str, Any]]:
    result = planner("check", *words, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_a_layout_that_needs_more_gpus_than_are_started(script: Path) -> None:
    code, found = answer(script)

    assert code == 1
    assert not found["starts"]
    assert [problem[:3] for problem in found["problems"]] == ["M1:"]
    assert "try GPUs 16" in found["problems"][0]


@pytest.mark.parametrize("words", [["--set", "NODES=2"], ["--set", "PP=2"]])
def test_variables_are_set_from_outside(script: Path, words: list[str]) -> None:
    code, found = answer(script, *words)

    assert (code, found["problems"]) == (0, [])
    assert found["verdict"].startswith("Starts: tp4 pp")
    assert "--cluster names the machines" in found["details"][0]


def test_what_was_understood_and_what_not(script: Path) -> None:
    _, found = answer(script)

    understood = {row["setting"]: row["meaning"] for row in found["understood"]}
    assert understood["--tensor-model-parallel-size"] == "tp 4"
    assert understood["--swiglu"] == "gated MLP"
    assert [row["setting"] for row in found["unknown"]] == ["--odd-thing"]
    assert [row["setting"] for row in found["neutral"]] == ["--lr"]
    assert found["silent"] == [
        "PP_SIZE is set, but no argument uses it",
        "--cp-comm-type does nothing with cp 1",
    ]


def test_memory_and_step_time_on_a_cluster(script: Path) -> None:
    result = planner(f"check {script} {CLUSTER}", columns=300)

    assert result.exit_code == 0
    assert result.stdout.startswith("Fits: tp4 pp4 mb1 zero0 needs ")
    for words in ("Estimated step time", "MFU", "of 989 TFLOP/s", "tokens/s per GPU",
                  "the file starts 8 ranks, the cluster has 16 GPUs", "Does nothing",
                  "Not understood", "--odd-thing 7", "1 more setting."):  # fmt: skip
        assert words in result.stdout


def test_a_file_that_fits_is_told_what_is_faster(script: Path) -> None:
    words = [script, *CLUSTER.split(), "--set", "PP=2"]
    code, found = answer(*words)
    shown = planner("check", *words, columns=100).stdout

    details = found["details"][0]
    steps = [one["step_time_s"] for one in found["changes"]]
    now_s = float(details.partition("step time ")[2].split()[0])
    assert code == 0
    assert 0 < len(steps) <= 3
    assert steps == sorted(steps)
    assert steps[-1] < now_s
    assert "Single changes that make it faster" in shown
    assert all(one["text"] in shown for one in found["changes"])


def test_a_file_that_does_not_fit_is_told_what_needs_less(script: Path) -> None:
    script.write_text(SCRIPT.replace("--num-layers 32", "--num-layers 512"))
    words = [script, *CLUSTER.split(), "--set", "PP=2"]
    code, found = answer(*words)

    assert code == 1
    assert 0 < len(found["changes"]) <= 3
    assert "Single changes that lower the peak" in planner("check", *words, columns=100).stdout


def test_the_model_of_the_file_counts_and_differences_are_said(script: Path) -> None:
    _, found = answer(script, "--model", "llama-3-8b", *CLUSTER.split())

    assert "kv_heads: the file says 32, llama-3-8b has 8" in found["assumed"]


# a change to the script, the exit code and the start of the verdict, on two nodes
VERDICTS = [
    ("", "", 0, "Fits"),
    ("--micro-batch-size 1", "--micro-batch-size 12", 1, "Does not start"),
    ("--num-layers 32", "--num-layers 320", 1, "Does not fit"),
    ("--bf16", "--bf16 --optimizer-cpu-offload --use-precision-aware-optimizer", 0, "Fits"),
]


@pytest.mark.parametrize(("old", "new", "code", "verdict"), VERDICTS)
def test_verdicts(script: Path, old: str, new: str, code: int, verdict: str) -> None:
    script.write_text(SCRIPT.replace(old, new))

    got, found = answer(script, *CLUSTER.split())

    assert (got, found["verdict"].split(":")[0]) == (code, verdict)


def test_an_estimate_that_leaves_savings_out_decides_nothing(script: Path) -> None:
    text = SCRIPT.replace("--num-layers 32", "--num-layers 320")
    offload = "--bf16 --use-precision-aware-optimizer"
    script.write_text(text.replace("--bf16", offload))

    code, found = answer(script, *CLUSTER.split())

    assert code == 3
    assert "leaves out states in lower precision" in found["details"][-1]


def test_an_optimizer_on_the_host_is_in_the_estimate(script: Path) -> None:
    asked = CLUSTER.split()
    _, before = answer(script, *asked)
    script.write_text(
        SCRIPT.replace(
            "--bf16",
            "--bf16 --use-distributed-optimizer "
            "--use-precision-aware-optimizer --optimizer-cpu-offload",
        )
    )

    _, found = answer(script, *asked)

    assert "offload-optimizer" in found["verdict"] + before["verdict"]


def test_all_rules_at_once(script: Path) -> None:
    script.write_text(SCRIPT.replace("TP=4", "TP=5").replace("--swiglu", "--offload-modules mlp"))

    code, found = answer(script, *CLUSTER.split())

    assert code == 1
    assert {problem.split(":")[0] for problem in found["problems"]} >= {"M1", "M3", "M18", "M28"}


# what is no question, and what the complaint names
COMPLAINTS = [
    ("{script} --tp 4 --zero 1", ["--tp: the file decides it", "--zero: the file decides it"]),
    ("{script} --set PP", ["--set: 'PP' has no value; write NAME=VALUE"]),
    ("{script} --model llama-9", ["llama-9"]),
    ("{folder}/notes.txt", ["notes.txt: the format is not recognised"]),
    ("{folder}/recipe.py", ["recipe.py", "a Python recipe is not read"]),
    ("{folder}/empty.sh", ["no training command"]),
    ("llama-3-8b --set A=1 --cluster dgx-h100 --global-batch 8 --seq-len 64", ["is none"]),
]


@pytest.mark.parametrize(("command", "words"), COMPLAINTS)
def test_bad_input(script: Path, command: str, words: list[str]) -> None:
    folder = script.parent
    (folder / "notes.txt").write_text("milk\n")
    (folder / "recipe.py").write_text("tp = 3\n")
    (folder / "empty.sh").write_text("source nothing.sh\n")

    result = planner("check", *command.format(script=script, folder=folder).split())

    assert result.exit_code == 2
    assert not result.stdout
    for word in words:
        assert word in result.stderr
