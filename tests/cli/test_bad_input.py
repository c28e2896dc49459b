"""Bad input: one clear message each, with place, field, value and remedy, and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import TINY, planner

CLUSTER = """\
name: mine
gpu: H100-SXM-80GB
gpus_per_node: 8
domain_gpus: 8
scale_up: {kind: nvlink, bytes_per_s: 450 GB/s}
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
}
JOB = ("--global-batch", "16", "--seq-len", "64")


def _with_cluster(tmp_path: Path, old: str, new: str) -> list[str]:
    file = tmp_path / "mine.yaml"
    file.write_text(CLUSTER.replace(old, new))
    return ["tiny-llama", "--cluster", str(file), *JOB]


def _with_config(tmp_path: Path, **changes: object) -> list[str]:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | changes, indent=1))
    return [str(file), "--cluster", "dgx-h100", *JOB]


def unknown_field(tmp_path: Path) -> list[str]:
    return _with_cluster(tmp_path, "domain_gpus", "domain_gpu: 8\ndomain_gpus")


def wrong_unit(tmp_path: Path) -> list[str]:
    return _with_cluster(tmp_path, "450 GB/s", "450 GB")


def negative_size(tmp_path: Path) -> list[str]:
    return _with_cluster(tmp_path, "gpus_per_node: 8", "gpus_per_node: -8")


def truncated_json(tmp_path: Path) -> list[str]:
    words = _with_config(tmp_path)
    file = Path(words[0])
    file.write_text(file.read_text().rpartition("\n")[0])
    return words


def unknown_architecture(tmp_path: Path) -> list[str]:
    return _with_config(tmp_path, architectures=["MambaForCausalLM"])


def heads_not_divisible(tmp_path: Path) -> list[str]:
    return _with_config(tmp_path, num_key_value_heads=3)


def hidden_not_divisible(tmp_path: Path) -> list[str]:
    return _with_config(tmp_path, num_attention_heads=7, num_key_value_heads=7)


def batch_not_divisible(tmp_path: Path) -> list[str]:
    return ["llama-3-8b", "--cluster", "dgx-h100", "--nodes", "64", *JOB, "--global-batch", "7"]


def missing_file(tmp_path: Path) -> list[str]:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    return ["tiny-llama", "--cluster", str(tmp_path / "clusters.yaml"), *JOB]


def missing_config(tmp_path: Path) -> list[str]:
    return [str(tmp_path), "--cluster", "dgx-h100", *JOB]


def unknown_cluster(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h10", *JOB]


def unknown_model(tmp_path: Path) -> list[str]:
    return ["llama-3-7b", "--cluster", "dgx-h100", *JOB]


def unknown_gpu(tmp_path: Path) -> list[str]:
    return _with_cluster(tmp_path, "H100-SXM-80GB", "H100-SXM-81GB")


def missing_network(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "workstation", "--nodes", "2", *JOB]


def wrong_precision(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-a100", "--precision", "fp8", *JOB]


def too_long_for_the_model(tmp_path: Path) -> list[str]:
    return ["gpt2", "--cluster", "dgx-h100", "--global-batch", "16", "--seq-len", "2048"]


def wrong_target(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--target", "jax", *JOB]


def target_cannot(tmp_path: Path) -> list[str]:
    return ["deepseek-v3", "--cluster", "dgx-h100", "--target", "torch", *JOB]


def wrong_share(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--keep-free", "500%", *JOB]


def word_for_share(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--keep-free", "some", *JOB]


def time_without_unit(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--budget", "60", *JOB]


def missing_profile(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--profile", str(tmp_path / "p.yaml"), *JOB]


def folder_for_output(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--output", str(tmp_path), *JOB]


def output_in_no_folder(tmp_path: Path) -> list[str]:
    return ["tiny-llama", "--cluster", "dgx-h100", "--output", str(tmp_path / "no" / "p"), *JOB]


# what the one message must hold: place, field, value, remedy
TABLE: list[tuple[Callable[[Path], list[str]], list[str]]] = [
    (unknown_field, ["mine.yaml:4: ", "domain_gpu: unknown field", "did you mean 'domain_gpus'?"]),
    (wrong_unit, ["mine.yaml:5: ", "scale_up.bytes_per_s", "'450 GB'", "like '450 GB/s'"]),
    (negative_size, ["mine.yaml:3: ", "gpus_per_node: -8", "greater than 0"]),
    (truncated_json, ["config.json:", "not valid JSON", "the file is cut short; copy it again"]),
    (unknown_architecture, ["config.json:2: ", "architectures: 'MambaForCausalLM'", "use one of"]),
    (heads_not_divisible, ["config.json:", "num_key_value_heads: 3", "use one of 1, 2, 4, 8"]),
    (hidden_not_divisible, ["config.json:", "hidden_size: 64", "7 heads", "70"]),
    (batch_not_divisible, ["--global-batch: 7 sequences", "512 GPUs", "try "]),
    (missing_file, ["clusters.yaml: no such file", "did you mean", "cluster.yaml?"]),
    (missing_config, ["config.json: no such file", "check the path"]),
    (unknown_cluster, ["cluster 'dgx-h10' is not shipped", "did you mean 'dgx-h100'?"]),
    (unknown_model, ["model 'llama-3-7b' is not shipped", "did you mean 'llama-3-"]),
    (unknown_gpu, ["mine.yaml:2: ", "gpu: ", "'H100-SXM-81GB'", "did you mean"]),
    (missing_network, ["--nodes: 2 nodes of 'workstation'", "scale_out", "--nodes 1"]),
    (wrong_precision, ["--precision: 'fp8'", "A100-SXM-80GB", "use one of bf16, fp16"]),
    (too_long_for_the_model, ["--seq-len: 2048 exceeds the 1024", "gpt2", "at most 1024"]),
    (wrong_target, ["--target: 'jax' is not a target", "use one of torch, megatron"]),
    (target_cannot, ["--target: torch cannot run", "mtp_layers=1", "leave the target to auto"]),
    (wrong_share, ["--keep-free: '500%' is not between", "write '5%' or '0.05'"]),
    (word_for_share, ["--keep-free: 'some' is not a share", "write '5%' or '0.05'"]),
    (time_without_unit, ["--budget: '60' is not a duration", "a number and a unit"]),
    (missing_profile, ["p.yaml: no such file", "check the path"]),
    (folder_for_output, ["is a folder; name a file in it, such as", "plan.json"]),
    (output_in_no_folder, ["its folder does not exist; create"]),
]


@pytest.mark.parametrize(("make", "wanted"), TABLE, ids=[make.__name__ for make, _ in TABLE])
def test_one_clear_message(
    tmp_path: Path, make: Callable[[Path], list[str]], wanted: list[str]
) -> None:
    result = planner("recommend", *make(tmp_path))

    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, result.output
    assert len(errors) == 1, result.stderr
    assert [part for part in wanted if part not in errors[0]] == []
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(CLUSTER.replace("gpus_per_node: 8", "gpus_per_node: 0") + "speed: 9\n")

    result = planner("recommend tiny-llama --cluster", file, *JOB)

    assert result.stderr.count("error: ") == 2
    assert "gpus_per_node: 0" in result.stderr
    assert "speed: unknown field" in result.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("recommend tiny-llama", "--global-batch"),
        (TINY.replace("--nodes 1", "--nodes 0"), "--nodes"),
        (TINY.replace("16", "-16"), "--global-batch"),
        (TINY.replace("64", "long"), "--seq-len"),
        (f"{TINY} --keep 0", "--keep"),
        (f"{TINY} --fast", "--fast"),
        ("recomend tiny-llama", "recomend"),
        ("profile tiny-llama --nproc 0 --output p.json", "--nproc"),
    ],
)
def test_usage_errors_exit_with_2(words: str, wanted: str) -> None:
    result = planner(words)

    assert result.exit_code == 2
    assert wanted in result.stderr
    assert "Traceback" not in result.stderr


def test_plan_of_another_program(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"tp": 8}')

    result = planner("export", file, "--output", tmp_path / "bundle")

    assert result.exit_code == 2
    assert "plan.json:1: tp: unknown field" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_csv_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("name,speed\na,1\n")

    result = planner("validate", file)

    assert result.exit_code == 2
    assert f"error: {file}:1: columns missing: framework, gpu, id, n_gpus" in result.stderr


def test_csv_that_does_not_exist(tmp_path: Path) -> None:
    result = planner("validate", tmp_path / "runs.csv")

    assert result.exit_code == 2
    assert "runs.csv: cannot be read: No such file" in result.stderr
