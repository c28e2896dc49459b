"""Optimizers, adapters and the host on the command line."""

import json

import pytest

from tests.cli.command import planner

JOB = "llama-3-70b --cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 4096"
LAYOUT = f"{JOB} --target torch --tp 8 --zero 0"


def test_check_answers_with_the_host_and_without() -> None:
    without, hosted = (planner(f"check {LAYOUT} {more}") for more in ("", "--offload-optimizer 1"))

    assert (without.exit_code, hosted.exit_code) == (1, 0)
    assert "offload-optimizer" in hosted.stdout


def test_explain_memory_counts_the_bytes_of_the_host() -> None:
    text = planner(f"explain memory {LAYOUT} --offload-optimizer 1", columns=200).stdout
    answer = json.loads(planner(f"explain memory {LAYOUT} --offload-optimizer 1 --json").stdout)

    assert "The host of the fullest node holds 1051.5 of its 2048.0 GiB" in text
    # 16 bytes of each of 70.6 billion parameters
    assert answer["host_bytes"] == pytest.approx(16 * 70.6e9, rel=0.01)


def test_every_node_says_what_it_holds() -> None:
    """Two stages share a node, so the first node holds what the first two gave away."""
    words = (
        "explain memory llama-3-70b --cluster dgx-h100 --nodes 4 --global-batch 64 --seq-len 4096 "
        "--target torch --tp 2 --pp 8 --zero 0 --offload-optimizer 1 --offload host:50%"
    )
    text, found = planner(words, columns=100).stdout, json.loads(planner(f"{words} --json").stdout)

    nodes, ranks = found["host_nodes"], found["ranks"]
    for node, of_node in zip(nodes, (ranks[at : at + 2] for at in (0, 2, 4, 6)), strict=True):
        assert node["optimizer_bytes"] == pytest.approx(4 * sum(one["host"] for one in of_node))
        moved = 4 * sum(one["offloaded"] for one in of_node)
        assert node["activation_bytes"] == pytest.approx(moved)
        assert node["drive_bytes"] == 0
        assert f"{node['activation_bytes'] / 2**30:.1f}" in text
    assert found["host_bytes"] == pytest.approx(
        max(node["optimizer_bytes"] + node["activation_bytes"] for node in nodes)
    )


def test_explain_speed_names_the_host() -> None:
    answer = json.loads(planner(f"explain speed {LAYOUT} --offload-optimizer 1 --json").stdout)
    parts = answer["parts_s"]

    assert parts["offload"] > 1
    assert parts["optimizer"] < 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--offload-optimizer 0.5", "L37: offload_optimizer=0.5 is not executed"),
        ("--offload-weights", "offload_weights needs the whole optimizer on the host"),
        ("--delayed-update", "delayed_update needs an optimizer on the host"),
    ],
)
def test_check_names_what_cannot_run(words: str, said: str) -> None:
    result = planner(f"check {LAYOUT} {words}", columns=300)

    assert result.exit_code == 1
    assert said in result.stdout


def test_an_unknown_optimizer_is_one_clear_error() -> None:
    result = planner(f"check {LAYOUT} --optimizer adam")

    assert result.exit_code == 2
    assert "--optimizer: 'adam' is not known; use one of adamw, adamw-8bit" in result.stderr


def test_optimizers_and_adapters_change_what_is_needed() -> None:
    def needed(more: str) -> float:
        words = f"check {JOB} --target megatron --tp 8 --json {more}"
        return float(json.loads(planner(words).stdout)["memory_bytes"])

    sizes = [needed(more) for more in ("", "--optimizer adamw-8bit", "--lora-rank 16")]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 3
