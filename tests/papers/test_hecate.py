"""Hecate / FSSDP (arXiv 2502.02581): speed and memory over static expert parallelism."""

from functools import cache
from math import prod

import pytest

from planner.cost.experts import placed, zipf_exponent, zipf_loads
from planner.cost.layer import Prices
from planner.launcher.copies import materialised
from planner.layout.layout import Layout, Shard
from planner.simulate.materialised import Routed, slot_bytes, sparse, static
from planner.simulate.step import estimate_step
from planner.spec.model import MoESpec
from planner.spec.software import MEGATRON_2022
from planner.validate.machines import machine
from tests.properties.strategies import gpt, job

# hidden, layers, tokens of a sequence: GPT-MoE-S and -L, BERT-MoE and -Deep; inner width 2 h, top-2
MODELS = [(768, 12, 2048), (1536, 12, 2048), (1024, 12, 512), (1024, 24, 512)]
# GPU, network of a node, GPUs, precision, experts, speed-up over static placement printed
CLUSTERS = [
    ("V100-SXM-32GB", "100Gb/s", 16, "fp16", 32, 1.40, 1.58),
    ("V100-SXM-32GB", "100Gb/s", 32, "fp16", 64, 1.34, 1.78),
    ("A100-SXM-40GB", "400Gb/s", 32, "bf16", 64, 1.26, 1.70),
]
TOKENS = 4096  # of a GPU in a micro-batch: not printed
WORST, TYPICAL = 5.18, 2.5


@cache
def question(number: int, which: int) -> tuple[Prices, Layout]:
    gpu, network, gpus, precision, experts, _, _ = CLUSTERS[which]
    hidden, layers, seq_len = MODELS[number]
    moe = MoESpec(experts=experts, top_k=2, ffn_hidden=2 * hidden)
    model = gpt(layers, hidden, hidden // 64, vocab=50257, moe=moe,
                name=f"moe {hidden} {layers} {experts}")  # fmt: skip
    micro_batch = TOKENS // seq_len
    how = job(gpus * micro_batch, seq_len, precision=precision, software=MEGATRON_2022)
    layout = Layout(dp=gpus, ep=gpus, micro_batch=micro_batch, shard=Shard.zero(1, gpus))
    return Prices(model, machine(gpu, 8, "NVLink", network, gpus), how), layout


@cache
def placements(number: int, which: int, fullest: float) -> tuple[Routed, Routed, Routed]:
    """Return static placement, copies that are kept, and copies that are gathered twice."""
    prices, layout = question(number, which)
    experts = CLUSTERS[which][4]
    loads = zipf_loads(experts, zipf_exponent(experts, layout.ep, fullest))
    room = float(prices.cluster.gpu.memory_bytes)
    return (
        static(prices, layout, loads),
        sparse(prices, layout, loads, room, False),
        sparse(prices, layout, loads, room, True),
    )


@pytest.mark.parametrize("which", range(3), ids=["16 V100", "32 V100", "32 A100"])
def test_speed_up_of_each_cluster(which: int) -> None:
    """At a fullest rank of 2.5 means; geometric mean of four models 1.47, 1.31 and 1.39."""
    low, high = CLUSTERS[which][5:]
    gains = [
        at_home.step_time_s / copied.step_time_s
        for at_home, _, copied in (placements(number, which, TYPICAL) for number in range(4))
    ]
    mean = prod(gains) ** (1 / 4)

    assert min(gains) > 1.2
    assert low - 0.05 < mean < high


@pytest.mark.parametrize("which", range(3), ids=["16 V100", "32 V100", "32 A100"])
@pytest.mark.parametrize("number", range(4))
def test_at_the_worst_skew_static_placement_is_several_times_slower(
    number: int, which: int
) -> None:
    """Printed is the worst slowdown, 5.18; ours counts what is not experts too."""
    prices, layout = question(number, which)
    at_home, kept, twice = placements(number, which, WORST)
    even_s = estimate_step(prices, layout).step_time_s

    assert at_home.balance.fullest == pytest.approx(WORST)
    assert 3 < at_home.step_time_s / even_s < WORST
    assert kept.step_time_s <= twice.step_time_s < at_home.step_time_s / 1.6


def test_even_routing_needs_no_copies() -> None:
    """The job where FSSDP is not chosen: it costs and gains nothing."""
    prices, layout = question(0, 2)
    loads = (1 / 64,) * 64

    at_home = static(prices, layout, loads)
    copied = sparse(prices, layout, loads, 1e12, False, slots=0)

    assert at_home.step_time_s == copied.step_time_s
    assert at_home.step_time_s == pytest.approx(estimate_step(prices, layout).step_time_s)
    assert copied.extra_bytes == copied.exposed_s == 0


def test_all_to_all_is_cut_by_copies() -> None:
    """Printed: 12.3 times at most; ours where a rank has room for all loaded experts."""
    loads = zipf_loads(32, zipf_exponent(32, 16, WORST))
    at_home = placed(loads, 16).exchanged

    cuts = [at_home / placed(loads, 16, materialised(loads, 16, most, 32)).exchanged
            for most in (2, 4, 8, 16, 24)]  # fmt: skip
    assert cuts == sorted(cuts)
    assert cuts[0] > 2
    assert cuts[-1] > 12.3


# extra memory over static placement: 64 % where copies stay, 11.6 % where they are gathered again
@pytest.mark.parametrize("number", [0, 1, 2])
def test_extra_memory(number: int) -> None:
    """The slots are not printed; as many as make copies that stay 64 % of the rest."""
    prices, layout = question(number, 0)
    base = placements(number, 0, TYPICAL)[0].memory_bytes
    slots = 0.64 * base / slot_bytes(prices, layout, False)

    again = slots * slot_bytes(prices, layout, True)

    assert again / base == pytest.approx(0.116, abs=0.10)
    assert 1 - again / (0.64 * base) > 0.6  # printed: 90.2 % of the copies' memory less


def test_copies_never_exceed_the_room() -> None:
    for which in range(3):
        prices, _ = question(0, which)
        for way in placements(0, which, WORST):
            assert way.memory_bytes <= prices.cluster.gpu.memory_bytes
