"""ZeRO++ in DeepSpeed's file: second copy of the weights, formats on the wire."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import LayoutError
from planner.formats.deepspeed import read_deepspeed, write_deepspeed
from planner.formats.megatron_script import write_megatron
from planner.formats.settle import settle
from planner.formats.work import Work, work_of_plan, work_of_setup
from planner.plan import Plan
from tests.formats.plans import build_plan

ZERO_PP = {
    "stage": 3,
    "zero_hpz_partition_size": 4,
    "zero_quantized_weights": True,
    "zero_quantized_gradients": True,
}


def read(zero: dict[str, object]) -> Work:
    """Read a file of one micro-batch on eight GPUs."""
    document = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    setup = read_deepspeed(Path("ds.json"), json.dumps(document), {"WORLD_SIZE": "8"})
    assert not setup.problems
    assert not setup.unpriced
    settled = settle(setup, build_plan().model, 8)
    return work_of_setup(replace(setup, seq_len=16), replace(settled, global_batch=8), 8)


def plan_of(secondary: int = 4) -> Plan:
    plan = build_plan(dp=8, zero=3, shard_secondary=secondary)
    software = plan.job.software.model_copy(
        update={"name": "zero++", "quantised_weight_gather": True}
    )
    return plan.model_copy(update={"job": plan.job.model_copy(update={"software": software})})


def test_every_knob_is_read() -> None:
    work = read(ZERO_PP)

    assert work.layout.shard.secondary == 4
    assert work.job.software.quantised_weight_gather
    assert work.job.software.quantised_gradient_reduction
    assert work.layout.label().endswith("zero3-hpz4")


@pytest.mark.parametrize("change", [{"stage": 2}, {"zero_hpz_partition_size": 1}])
def test_a_second_copy_needs_stage_3_and_more_than_one_rank(change: dict[str, int]) -> None:
    assert read(ZERO_PP | change).layout.shard.secondary == 0


def test_what_is_written_is_read_back() -> None:
    written = json.loads(write_deepspeed(work_of_plan(plan_of())))["zero_optimization"]

    assert written["zero_hpz_partition_size"] == 4
    assert written["zero_quantized_weights"] is True
    assert "zero_quantized_gradients" not in written
    assert (
        "zero_hpz_partition_size"
        not in json.loads(write_deepspeed(work_of_plan(plan_of(secondary=0))))["zero_optimization"]
    )


def test_others_refuse_a_second_copy() -> None:
    with pytest.raises(LayoutError, match="Megatron-LM keeps no second shard of the weights"):
        write_megatron(work_of_plan(plan_of()))
