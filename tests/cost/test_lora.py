"""LoRA: frozen weights have no gradients and no state, adapters have both."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.memory.estimate import RankMemory, peak_memory
from planner.model.adapters import adapter_parameters, trained_backward
from planner.model.backward import is_weight_gradient
from planner.model.flops import model_flops_per_token, operation_flops
from planner.model.parameters import total_parameters
from planner.search.stages import partition_problem
from planner.simulate.step import estimate_step
from planner.simulate.waterfall import waterfall
from planner.spec.job import JobSpec
from planner.spec.software import TORCH_FSDP
from planner.validate.cases import read_case
from planner.validate.replay import estimate_case
from tests.properties.strategies import cluster, job, layout_with, layouts_of, model, quick, small

DGX = cluster("dgx-h100")
LLAMA = model("llama-3-8b")
ranks = st.sampled_from([1, 8, 32, 256])


def tuned(rank: int, **changes: Any) -> JobSpec:
    return job(lora_rank=rank, **changes)


def held(rank: int, layout: Layout = Layout(), **changes: Any) -> RankMemory:
    return peak_memory(LLAMA, tuned(rank, **changes), layout)


def test_adapters_of_llama_3_8b() -> None:
    """Rank 16 beside all four matrices of a layer: 16 (4096 + 6144 + 2 * 4096 + ...)."""
    whole = ("qkv", "projection", "mlp up", "mlp down")
    widths = (4096 + 6144) + (4096 + 4096) + (4096 + 2 * 14336) + (14336 + 4096)

    assert adapter_parameters(LLAMA, 16, whole, False) == (16 * widths, 0)
    assert adapter_parameters(LLAMA, 16, ("qkv",), False) == (16 * (4096 + 6144), 0)


def test_frozen_weights_take_two_bytes_and_adapters_eighteen() -> None:
    adapters = 32 * adapter_parameters(LLAMA, 16, tuned(16).lora_targets, False)[0]
    memory = held(16)

    assert memory.weights == pytest.approx(2 * (total_parameters(LLAMA) + adapters), rel=1e-3)
    assert memory.gradients == pytest.approx(4 * adapters)
    assert memory.optimizer == pytest.approx(12 * adapters)


@quick
@given(ranks)
def test_states_are_linear_in_the_rank(rank: int) -> None:
    one, many = held(1), held(rank)

    assert many.optimizer == pytest.approx(rank * one.optimizer)
    assert many.weights - one.weights == pytest.approx((rank - 1) * one.optimizer / 6, abs=4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fully_sharded_frozen_weights_are_shared_too(stage: int) -> None:
    layout = layout_with(stage, dp=8)
    memory = held(16, layout, software=TORCH_FSDP, global_batch=8)
    share = 8 if stage == 3 else 1

    assert memory.weights == pytest.approx(2 * total_parameters(LLAMA) / share, rel=0.01)
    assert memory.optimizer < 0.03 * memory.weights * share


@pytest.mark.parametrize(
    "layout", [layout_with(1, dp=8), layout_with(1, pp=2, dp=4), layout_with(3, dp=8)]
)
def test_a_frozen_model_of_some_size_is_faster(layout: Layout) -> None:
    """Of six FLOPs for each parameter four are left; adapters read and write whole outputs."""
    jobs = (job(), tuned(8, lora_targets=("qkv",)), tuned(8))
    full, few, all_four = (
        estimate_step(Prices(LLAMA, DGX, one), layout).step_time_s for one in jobs
    )

    assert 0.6 < few / full < 0.8
    assert few < all_four < 0.95 * full


@quick
@given(layouts_of("small", "dgx-h100", 2), ranks)
def test_a_frozen_model_has_less_state_and_larger_adapters_cost_more(
    layout: Layout, rank: int
) -> None:
    machines = cluster("dgx-h100", 2)
    full, one, many = (
        estimate_step(Prices(small(), machines, asked), layout)
        for asked in (job(), tuned(1), tuned(rank))
    )

    assert one.memory.states < full.memory.states
    assert one.step_time_s <= many.step_time_s * 1.001
    assert sum(many.parts_s.values()) == pytest.approx(many.step_time_s)


def test_no_product_makes_the_gradient_of_a_frozen_matrix() -> None:
    """Backward products of a layer then take as many FLOPs as forward ones, adapters apart."""
    prices = Prices(LLAMA, DGX, tuned(8))
    operations, _ = prices.operations("dense", Layout())
    backward = [part for one in operations for part in trained_backward(one, prices.job)]
    matrices = [one for one in operations if operation_flops(one) and "attention" not in one.name]
    forward_flops = sum(map(operation_flops, matrices))
    backward_flops = sum(operation_flops(one) for one in backward if "attention" not in one.name)

    assert all("adapter" in one.name for one in backward if is_weight_gradient(one))
    assert forward_flops < backward_flops < 1.02 * forward_flops


def test_flops_of_a_frozen_model() -> None:
    full, frozen = (model_flops_per_token(LLAMA, 4096, value) for value in (False, True))
    matrices = total_parameters(LLAMA) - LLAMA.vocab * LLAMA.hidden

    assert full - frozen == 2 * matrices


def test_the_waterfall_adds_up() -> None:
    prices = Prices(LLAMA, DGX, tuned(16))
    step = estimate_step(prices, replace(layout_with(1, dp=8), recompute=Recompute.FULL))
    falls = waterfall(prices, step)

    assert sum(falls.parts_s.values()) == pytest.approx(step.step_time_s)
    assert falls.parts_s["bubble"] == pytest.approx(0, abs=1e-9)


def test_the_partition_prices_adapters_alone() -> None:
    layout = Layout(pp=2, dp=4, shard=Shard.zero(1, 4))
    full, lora = (
        partition_problem(Prices(LLAMA, DGX, one), layout, 8e10) for one in (job(), tuned(8))
    )

    assert lora.static_bytes[0] < full.static_bytes[0] / 2.5
    assert (lora.stage_bytes < full.stage_bytes).all()


# NVIDIA/NeMo docs/source/performance/performance_summary.md, container 24.07: eight H100, fp8
NEMO = [
    ("llama2-7b", 32, 4096, 11008, 32, 32, 1, 1, 0.65),
    ("llama2-13b", 40, 5120, 13824, 40, 40, 1, 1, 1.157),
    ("llama2-70b", 80, 8192, 28672, 64, 8, 2, 4, 6.408),
]


@pytest.mark.parametrize("run", NEMO, ids=lambda run: run[0])
def test_runs_of_nemo(run: tuple[Any, ...]) -> None:
    """Its sequences are packed from short ones, whose attention is nearly free: we are above."""
    name, layers, hidden, ffn, heads, kv_heads, tp, pp, measured_s = run
    row = {
        "id": name, "model": name, "n_layers": layers, "hidden": hidden, "ffn_hidden": ffn,
        "n_heads": heads, "n_kv_heads": kv_heads, "vocab": 32000, "gated_mlp": 1, "tp": tp,
        "pp": pp, "dp": 8 // (tp * pp), "mbs": 1, "gbs": 32, "seq_len": 4096, "task": "lora",
        "gpu": "H100-SXM-80GB", "n_gpus": 8, "precision": "fp8", "framework": "NeMo",
    }  # fmt: skip
    case = read_case({key: str(value) for key, value in row.items()})

    assert (case.job.lora_rank, case.job.lora_targets) == (32, ("qkv",))
    assert 1.0 < estimate_case(case).step_time_s / measured_s < 1.3
