"""Parameters and states of pipeline stages that training logs printed (tests/data/memory)."""

import csv
from pathlib import Path

import pytest

from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, stage_local
from planner.layout.stages import rank_layers
from planner.memory.states import state_bytes
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_2021_FP16, MEGATRON_DEEPSPEED
from planner.units import MIB

FILE = Path(__file__).parents[1] / "data" / "memory" / "bigscience_stages.csv"
ROWS = list(csv.DictReader(FILE.read_text().splitlines()))
MEGATRON = [row for row in ROWS if row["framework"] == "Megatron-LM"]

Row = dict[str, str]


def local(row: Row) -> LocalParameters:
    """Return what the stage of a row holds."""
    sizes = {name: int(row[name]) for name in ("layers", "hidden", "heads", "ffn_hidden", "vocab")}
    model = ModelSpec(
        name="gpt",
        **sizes,
        kv_heads=sizes["heads"],
        head_dim=sizes["hidden"] // sizes["heads"],
        gated_mlp=False,
        tied_embeddings=True,
        positions=int(row["seq_len"]),
        norm_bias=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
    )
    deepspeed = "DeepSpeed" in row["framework"]
    stack = MEGATRON_DEEPSPEED if deepspeed else MEGATRON_2021_FP16
    layers = rank_layers(model, int(row["pp"]), 1, int(row["stage"]))
    return stage_local(model, layers, int(row["tp"]), 1, 1, stack)


def name(row: Row) -> str:
    return f"{row['run']}-{row['stage']}"


def test_nothing_was_left_out() -> None:
    assert (len(ROWS), len(MEGATRON)) == (156, 140)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_parameters_are_exact(row: Row) -> None:
    """DeepSpeed's last stage also keeps the position table; Megatron's does not."""
    assert local(row).total == int(row["parameters"])


@pytest.mark.parametrize("row", MEGATRON, ids=name)
def test_allocated_after_the_step(row: Row) -> None:
    """20 bytes a parameter, and on later stages the received activation and its gradient."""
    states = state_bytes(local(row), Layout(), MEGATRON_2021_FP16).total
    received = 2 * int(row["micro_batch"]) * int(row["seq_len"]) * int(row["hidden"])
    expected = states + (2 * received if row["stage"] != "0" else 0)

    assert expected == pytest.approx(float(row["allocated_mib"]) * MIB, rel=0.002)
