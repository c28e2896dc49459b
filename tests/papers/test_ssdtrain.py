"""SSDTrain (arXiv 2408.10013) and Kwai (USENIX ATC 24): activations on drives and in host memory.

Kwai's bytes are the ``max_memory_allocated`` of its artifact (github.com/kwai/Megatron-Kwai,
examples/atc24/README.md, Figure 7): Llama-65B on 256 H800, all layers kept but for alpha of them.
"""

from dataclasses import replace

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload, Shard
from planner.memory.estimate import RankMemory, peak_memory, rank_memory
from planner.simulate.offload import OffloadFacts, offload_facts
from planner.simulate.step import estimate_step
from planner.spec.cluster import ClusterSpec, HostSpec, ScaleUpSpec, SsdSpec
from planner.spec.gpu import load_gpu
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_CORE
from planner.units import GB, TB
from tests.properties.strategies import gpt

# two A100-PCIe behind an NVLink bridge, seven Optane P5800X, 6.1 GB/s and 100 drive writes a day
MACHINE = ClusterSpec(
    name="ssdtrain",
    gpu=load_gpu("A100-PCIe-40GB"),
    gpus_per_node=2,
    domain_gpus=2,
    scale_up=ScaleUpSpec(kind="nvlink", bytes_per_s=300 * GB),
    host=HostSpec(memory_bytes=1 * TB, gpu_link_bytes_per_s=26 * GB),
    ssd=SsdSpec(
        capacity_bytes=7 * 1.6 * TB,
        write_bytes_per_s=7 * 6.1 * GB,
        read_bytes_per_s=7 * 7.2 * GB,
        endurance_bytes=7 * 1.6 * TB * 100 * 365 * 5,
    ),
)
KEPT = Layout(tp=2, micro_batch=16)
AWAY = replace(KEPT, offload=Offload(1.0, "ssd"))
# hidden size, layers, GB offloaded in one step, GB/s needed (low confidence)
MODELS = [(8192, 4, 10.37, 18.0), (12288, 3, 12.85, 13.9), (16384, 2, 10.75, 8.76)]


def bert(hidden: int, layers: int) -> Prices:
    model = gpt(layers, hidden, hidden // 128, vocab=30592, positions=1024)
    job = JobSpec(global_batch=16, seq_len=1024, precision="fp16", software=MEGATRON_CORE)
    return Prices(model, MACHINE, job)


def activation_peak(prices: Prices, layout: Layout) -> float:
    found: RankMemory = rank_memory(prices.model, prices.job, layout, 0)
    return found.activations + found.working


def facts(prices: Prices) -> tuple[float, OffloadFacts]:
    """Return the slow-down and what moves."""
    before, after = (estimate_step(prices, layout).step_time_s for layout in (KEPT, AWAY))
    found = offload_facts(prices, AWAY, None, after)
    assert found is not None
    return after / before - 1, found


# The paper: 28-40 %, 47 % at most. This launcher does otherwise: it waits for stores before the
# loss, so four layers save more, and has two whole layers at a time on the GPU, all of a model of
# two, which saves less. By the rules of the paper the next test meets its range.
REDUCTION = [(8192, 4, 0.45, 0.53), (12288, 3, 0.28, 0.47), (16384, 2, 0.08, 0.28)]
SLOWER_ARRAY = 3 * 6.1 * GB  # the two GPUs have arrays of four and three drives


def paper_peak(prices: Prices) -> float:
    """Return the peak by SSDTrain's rules (section 3): stores run on into the backward pass.

    When the loss begins the last layer is whole on the GPU, and so is what the drives have not
    written since the first layer was over. Loads come tensor by tensor as tensors are freed.
    """
    away = rank_memory(prices.model, prices.job, AWAY, 0)
    layer = facts(prices)[1].moved_bytes / (prices.model.layers - 1)
    forward_s = estimate_step(prices, KEPT).parts_s["compute"] / 3
    written = SLOWER_ARRAY * forward_s * (1 - 1 / prices.model.layers)
    return layer + max(0.0, layer * (prices.model.layers - 1) - written) + away.working


@pytest.mark.parametrize(("hidden", "layers"), [model[:2] for model in MODELS])
def test_reduction_of_the_paper_by_its_own_rules(hidden: int, layers: int) -> None:
    prices = bert(hidden, layers)

    reduction = 1 - paper_peak(prices) / activation_peak(prices, KEPT)

    assert 0.28 <= reduction <= 0.47


@pytest.mark.parametrize(("hidden", "layers", "least", "most"), REDUCTION)
def test_peak_of_activations_falls(hidden: int, layers: int, least: float, most: float) -> None:
    prices = bert(hidden, layers)

    reduction = 1 - activation_peak(prices, AWAY) / activation_peak(prices, KEPT)

    assert least <= reduction <= most


@pytest.mark.parametrize(("hidden", "layers", "offloaded_gb", "_"), MODELS)
def test_bytes_of_a_step(hidden: int, layers: int, offloaded_gb: float, _: float) -> None:
    """The paper moves the last layer too; without it a share of one over the layers stays."""
    _slower, found = facts(bert(hidden, layers))

    whole = found.moved_bytes * layers / (layers - 1)
    assert whole / GB == pytest.approx(offloaded_gb, rel=0.07)


def test_needed_bandwidth_falls_with_the_hidden_size() -> None:
    needed = [facts(bert(hidden, layers))[1].needed_bytes_per_s for hidden, layers, *_ in MODELS]

    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 1.7 * needed[-1]


def test_where_it_is_free_nothing_is_slower() -> None:
    slower, found = facts(bert(16384, 2))

    assert found.free
    assert slower < 0.01


def test_slow_drives_cost_what_they_lack() -> None:
    prices = bert(16384, 2)
    ssd = MACHINE.ssd
    assert ssd is not None
    slow = MACHINE.model_copy(
        update={"ssd": ssd.model_copy(update={"write_bytes_per_s": ssd.write_bytes_per_s / 20})}
    )
    prices = Prices(prices.model, slow, prices.job)
    slower, found = facts(prices)

    assert not found.free
    assert slower > 0.5


def test_lifetime_is_endurance_over_what_is_written() -> None:
    """Both GPUs write; a step of 1.7 s and 5 GB each wears 100 drive writes a day out in years."""
    prices = bert(16384, 2)
    step_s = estimate_step(prices, AWAY).step_time_s
    _slower, found = facts(prices)
    ssd = MACHINE.ssd
    assert ssd is not None
    assert found.life_years is not None

    per_year = 2 * found.moved_bytes * 365.25 * 86400 / step_s
    assert found.life_years == pytest.approx(ssd.endurance_bytes / per_year)
    assert found.life_years > 2


# Kwai: alpha, allocated bytes
FIGURE_7 = {
    0.3: 72762730496, 0.4: 66951784960, 0.5: 61136119808, 0.6: 55733856256,
    0.7: 50331592704, 0.8: 45824813056, 0.9: 39527328256, 1.0: 34491172352,
}  # fmt: skip
LLAMA_65B = ModelSpec(
    name="llama-65b", layers=80, hidden=8192, heads=64, kv_heads=64, head_dim=128,
    ffn_hidden=22016, vocab=32004,
)  # fmt: skip
# Megatron-LM of January 2024: ring exchange of keys, and a SwiGLU that keeps silu(gate)
KWAI = MEGATRON_CORE.model_copy(
    update={"name": "megatron-kwai", "context_exchange": "ring", "fused_activation": False}
)


def kwai_bytes(alpha: float) -> float:
    job = JobSpec(global_batch=256, seq_len=8192, software=KWAI)
    layout = Layout(
        tp=2, cp=2, pp=8, vpp=5, dp=8, sequence_parallel=True, shard=Shard.zero(1, 16),
        offload=Offload(alpha, "host"),
    )  # fmt: skip
    return peak_memory(LLAMA_65B, job, layout).allocated


@pytest.mark.parametrize(("alpha", "measured"), FIGURE_7.items())
def test_kwai_figure_7(alpha: float, measured: float) -> None:
    assert kwai_bytes(alpha) == pytest.approx(measured, rel=0.06)


def test_kwai_mean_error() -> None:
    errors = [abs(kwai_bytes(alpha) / measured - 1) for alpha, measured in FIGURE_7.items()]

    assert sum(errors) / len(errors) < 0.025


def test_kwai_slope() -> None:
    """Until the two layers that are loaded at a time outweigh what stays, memory is linear."""
    steps = [kwai_bytes(alpha / 10) - kwai_bytes((alpha + 1) / 10) for alpha in range(3, 8)]
    measured = (FIGURE_7[0.3] - FIGURE_7[0.8]) / 5

    assert steps == pytest.approx([steps[0]] * 5)
    assert steps[0] == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_kwai_out_of_memory(alpha: float) -> None:
    """0.0, 0.1 and 0.2 did not run on 80 GB; what torch reserves on top decides the third."""
    assert kwai_bytes(alpha) > 80 * GB
