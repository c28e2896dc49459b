"""``planner convert``: between formats, with everything that is lost in a list."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.command import planner

MEGATRON = """torchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py --num-layers 32 \\
  --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --group-query-attention \\
  --num-query-groups 8 --swiglu --normalization RMSNorm --disable-bias-linear --seq-length 4096 \\
  --position-embedding-type rope --untie-embeddings-and-output-weights --vocab-size 128256 \\
  --micro-batch-size 1 --global-batch-size 64 --bf16 --lr 3e-4 --odd-thing 7 \\
  --tensor-model-parallel-size 4 --sequence-parallel --use-distributed-optimizer \\
  --optimizer-cpu-offload --use-precision-aware-optimizer
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "run.sh"
    file.write_text(MEGATRON)
    return file


def test_megatron_to_nanotron(script: Path) -> None:
    result = planner(f"convert {script} --to nanotron")

    found = yaml.safe_load(result.stdout)
    assert result.exit_code == 0
    assert (found["parallelism"]["tp"], found["parallelism"]["dp"]) == (4, 2)
    assert found["tokens"]["batch_accumulation_per_replica"] == 32
    assert found["model"]["model_config"]["num_key_value_heads"] == 8
    for lost in ("--odd-thing 7: not understood", "--lr 3e-4: neither layout",
                 "states in lower precision: understood",
                 "offload_optimizer: 1.0 becomes 0.0"):  # fmt: skip
        assert f"not carried over: {lost}" in result.stderr
    assert result.stderr.count("becomes") == 1


def test_megatron_to_deepspeed(script: Path, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    result = planner(f"convert {script} --to deepspeed --output {file}")

    found = json.loads(file.read_text())
    assert result.exit_code == 0
    assert result.stdout == ""
    assert found["zero_optimization"]["stage"] == 1
    assert found["tensor_parallel"] == {"autotp_size": 4}
    assert (found["train_batch_size"], found["gradient_accumulation_steps"]) == (64, 32)
    assert "not carried over: model 'run', sequences of 4096 tokens" in result.stderr
    assert "not carried over: sequence_parallel: True becomes False" in result.stderr


def test_there_and_back(script: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.sh"
    planner(f"convert {script} --to nanotron --output {first}")

    result = planner(f"convert {first} --to megatron --output {second}")

    assert result.exit_code == 0
    assert "becomes" not in result.stderr
    kept = ("tensor-model-parallel-size", "num-query-groups", "global-batch-size", "seq-length")
    checked = json.loads(planner(f"check {second} --json").stdout)
    values = {row["setting"]: row["value"] for row in checked["understood"]}
    original = json.loads(planner(f"check {script} --json").stdout)
    before = {row["setting"]: row["value"] for row in original["understood"]}
    assert {name: values[f"--{name}"] for name in kept} == {
        name: before[f"--{name}"] for name in kept
    }


def test_what_a_file_leaves_open_is_stated(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}}')

    alone = planner(f"convert {file} --to torchtitan")
    stated = planner(f"convert {file} --to torchtitan --model llama-3-8b --gpus 8 --micro-batch 2 "
                     "--global-batch 64 --seq-len 4096")  # fmt: skip

    assert alone.exit_code == 2
    for what in ("the model", "the micro-batch", "the global batch", "the sequence length"):
        assert f"{what} is not in the file" in alone.stderr
    assert stated.exit_code == 0
    assert "local_batch_size = 2" in stated.stdout


# words, exit code, and what is said
REFUSED = [
    ("--to keras", "--to: 'keras' is not written; use one of megatron"),
    ("--to torchtitan", "torchtitan has no ZeRO-1"),
    ("--to nanotron --gpus 6", "M1: GPUs=6 is not a multiple of tp*cp*pp=4"),
    ("--to nanotron --output /nowhere/x.yaml", "its folder does not exist"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_refusals(script: Path, words: str, said: str) -> None:
    result = planner(f"convert {script} {words}")

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
