"""ZeRO-Offload (USENIX ATC 21): what fits with the optimizer on the host, and what it costs.

Shapes are those of the paper's table 3 (layers and hidden width by size), GPT-2 on 1,024 tokens,
layers checkpointed; the machine is the paper's DGX-2. Limits: figures 7 and 8; CPU-Adam: table 4.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.cost.offload import host_adam_s
from planner.layout.layout import Layout, Recompute, Shard
from planner.memory.estimate import peak_memory
from planner.memory.host import host_problems, node_host_bytes
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.optimizer import update_bytes
from planner.spec.software import DEEPSPEED_FP16, MEGATRON_2022
from tests.properties.strategies import cluster, gpt, quick

DGX2 = cluster("dgx-2")
SHAPES = {
    "1.4B": (26, 2048, 16),
    "2B": (40, 2048, 16),
    "10B": (50, 4096, 32),
    "13B": (65, 4096, 32),
    "15B": (78, 4096, 32),
    "20B": (25, 8192, 64),
    "40B": (50, 8192, 64),
    "70B": (69, 9216, 72),
}
ONE = Layout(recompute=Recompute.FULL)
OFFLOADED = replace(ONE, offload_optimizer=1.0)


def spec(size: str) -> ModelSpec:
    return gpt(*SHAPES[size], vocab=50304, positions=1024)


def paper_job(global_batch: int = 16, software: SoftwareSpec = DEEPSPEED_FP16) -> JobSpec:
    return JobSpec(global_batch=global_batch, seq_len=1024, precision="fp16", software=software)


def fits(size: str, layout: Layout, software: SoftwareSpec = DEEPSPEED_FP16) -> bool:
    memory = peak_memory(spec(size), paper_job(software=software), layout)
    return memory.device <= DGX2.gpu.memory_bytes


def step(layout: Layout, global_batch: int, size: str = "10B") -> StepEstimate:
    return estimate_step(Prices(spec(size), DGX2, paper_job(global_batch)), layout)


@pytest.mark.parametrize("software", [DEEPSPEED_FP16, MEGATRON_2022], ids=lambda it: it.name)
def test_1_4_billion_is_the_limit_of_one_v100_without_offload(software: SoftwareSpec) -> None:
    assert fits("1.4B", ONE, software)
    assert not fits("2B", ONE, software)


def test_13_billion_is_the_limit_of_one_v100_with_the_optimizer_on_the_host() -> None:
    assert fits("13B", OFFLOADED)
    assert not fits("15B", OFFLOADED)


def test_70_billion_on_a_dgx_2_with_tensor_parallelism() -> None:
    """16 bytes a parameter are 1.12 of the 1.5 TB of its host."""
    layout = replace(OFFLOADED, tp=8, dp=2, shard=Shard.zero(2, 2))
    held = node_host_bytes(spec("70B"), DGX2, paper_job(), layout)

    assert fits("70B", layout)
    assert not fits("70B", replace(layout, offload_optimizer=0.0))
    assert held == pytest.approx(1.12e12, rel=0.02)
    assert host_problems(spec("70B"), DGX2, paper_job(), layout) == []


def test_40_billion_on_one_v100_with_the_weights_on_the_host_too() -> None:
    """ZeRO-3 Offload (DeepSpeed, 2021): only the layer at work is on the GPU."""
    layout = replace(OFFLOADED, offload_weights=True)

    assert fits("40B", layout)
    assert not fits("40B", OFFLOADED)


def test_more_than_the_host_holds_is_refused_with_numbers() -> None:
    small_host = DGX2.host.model_copy(update={"memory_bytes": 10**12}) if DGX2.host else None
    layout = replace(OFFLOADED, tp=8, dp=2, shard=Shard.zero(2, 2))
    found = host_problems(
        spec("70B"), DGX2.model_copy(update={"host": small_host}), paper_job(), layout
    )

    assert len(found) == 1
    assert "needs 1056.5 GiB of host memory on a node, dgx-2 has room for 838.2 GiB" in found[0]
    assert "a share of at most 0.79" in found[0]


# billions of parameters, seconds of CPU-Adam
CPU_ADAM = [(1, 0.22), (2, 0.51), (4, 1.03), (10, 2.57)]


@pytest.mark.parametrize(("billions", "seconds"), CPU_ADAM)
def test_cpu_adam(billions: int, seconds: float) -> None:
    moved = update_bytes("adamw", 12, billions * 1e9, 0)

    assert moved == 28e9 * billions
    assert host_adam_s(moved, ONE, DGX2) == pytest.approx(seconds, rel=0.15)


def test_all_gpus_of_a_node_share_its_memory_and_links() -> None:
    """Sixteen ranks of one model take as long for all their shards as one rank for the whole."""
    alone = host_adam_s(28e9, ONE, DGX2)
    shared = host_adam_s(28e9 / 16, replace(ONE, dp=16), DGX2)
    two_nodes = host_adam_s(28e9 / 32, replace(ONE, dp=32), DGX2)

    assert shared == pytest.approx(alone)
    assert two_nodes == pytest.approx(alone / 2)


def test_a_host_update_takes_longer_and_says_so() -> None:
    plain, offloaded = (
        step(replace(ONE, micro_batch=4), 4),
        step(replace(OFFLOADED, micro_batch=4), 4),
    )

    assert plain.parts_s["offload"] == 0
    assert plain.parts_s["optimizer"] > 0
    assert offloaded.parts_s["optimizer"] == 0
    assert offloaded.parts_s["offload"] == pytest.approx(2.5, rel=0.1)  # CPU-Adam of 10 billion
    assert sum(offloaded.parts_s.values()) == pytest.approx(offloaded.step_time_s)


@quick
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 64]))
def test_the_penalty_vanishes_with_the_batch(micro_batch: int, times: int) -> None:
    """What the host adds beside the passes, as a share: falling, and gone for large batches."""

    def penalty(batch: int) -> float:
        plain, offloaded = (
            step(replace(layout, micro_batch=micro_batch), batch).step_time_s
            for layout in (ONE, OFFLOADED)
        )
        return offloaded / plain - 1

    batch = micro_batch * times
    assert penalty(2 * batch) <= penalty(batch) + 1e-9
    if micro_batch >= 4:  # gradients of a pass travel behind it
        assert penalty(512 * micro_batch) < 0.02


@quick
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 16]))
def test_a_delayed_update_hides_behind_the_step(micro_batch: int, times: int) -> None:
    """t = max(passes, update + exposed transfers), never more than without the delay."""
    layout = replace(OFFLOADED, micro_batch=micro_batch)
    batch = micro_batch * times
    plain = step(layout, batch)
    delayed = step(replace(layout, delayed_update=True), batch)
    passes_s = plain.step_time_s - plain.parts_s["offload"]

    assert passes_s <= delayed.step_time_s <= plain.step_time_s
    if passes_s > 3 and micro_batch >= 4:  # longer than CPU-Adam, gradients behind the pass
        assert delayed.parts_s["offload"] < 0.02 * passes_s


@quick
@given(st.floats(0, 1))
def test_memory_and_host_bytes_are_linear_in_the_share(share: float) -> None:
    job, model = paper_job(), spec("10B")
    none, part, whole = (
        peak_memory(model, job, replace(ONE, offload_optimizer=value)) for value in (0, share, 1)
    )

    assert part.optimizer == pytest.approx((1 - share) * none.optimizer)
    assert part.host == pytest.approx(share * whole.host)
    assert whole.host == pytest.approx(16 / 12 * none.optimizer)
    assert part.allocated <= none.allocated
