"""One training step: its parts, its laws, and runs people measured."""

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.stages import Split, StageLayers, split_layers
from planner.memory.estimate import peak_memory
from planner.model.flops import model_flops_per_token
from planner.schedule.kinds import schedule_name
from planner.simulate.step import (
    EXPERTS,
    PIPELINE_OVER_NODES,
    TENSOR_OVER_NODES,
    UNEXPLAINED,
    USUAL,
    StepEstimate,
    estimate_step,
    stage_cost,
    step_costs,
    step_interval,
)
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec
from planner.spec.job import SoftwareSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER
from tests.properties.strategies import (
    cluster,
    gpt,
    job,
    layout_with,
    layouts_of,
    prices,
    quick,
    small,
    software,
    splits,
)

SMALL = layouts_of("small", "dgx-h100", 2)
SMALL_MOE = layouts_of("small-moe", "dgx-h100", 4)
PARTS = {
    "compute", "recompute", "tensor_parallel", "context_parallel", "expert_parallel", "host",
    "offload", "data_parallel", "optimizer", "pipeline",
}  # fmt: skip


@cache
def table(machine: ClusterSpec | None = None, batch: int = 32, **changes: Any) -> Prices:
    return Prices(small(), machine or cluster("dgx-h100", 2), job(batch, **changes))


def seconds(layout: Layout, split: Split | None = None, **changes: Any) -> float:
    return estimate_step(table(**changes), layout, split).step_time_s


def check_parts(step: StepEstimate) -> None:
    assert set(step.parts_s) == PARTS
    assert sum(step.parts_s.values()) == pytest.approx(step.step_time_s, rel=1e-9)
    assert min(step.parts_s.values()) >= -1e-9


@quick
@given(SMALL)
def test_parts_add_up(layout: Layout) -> None:
    check_parts(estimate_step(prices("small", "dgx-h100", 2), layout))


@quick
@given(SMALL_MOE)
def test_parts_of_experts_add_up(layout: Layout) -> None:
    check_parts(estimate_step(prices("small-moe", "dgx-h100", 4), layout))


@quick
@given(SMALL, st.data())
def test_parts_of_unequal_stages_add_up(layout: Layout, data: st.DataObject) -> None:
    split = data.draw(splits(16, layout.pp * layout.vpp))

    check_parts(estimate_step(prices("small", "dgx-h100", 2), layout, split))


@quick
@given(SMALL, st.sampled_from([MEGATRON_2022, TORCH_FSDP, TORCH_LAUNCHER]))
def test_parts_add_up_in_every_stack(layout: Layout, stack: SoftwareSpec) -> None:
    check_parts(estimate_step(table(software=stack), layout))


@quick
@given(SMALL)
def test_rates_follow_from_the_time(layout: Layout) -> None:
    step = estimate_step(prices("small", "dgx-h100", 2), layout)
    tokens = 32 * 4096
    flops = model_flops_per_token(small(), 4096) * tokens

    assert step.tokens_per_s_per_gpu * step.step_time_s * 16 == pytest.approx(tokens)
    assert step.mfu * step.step_time_s * 16 * 989e12 == pytest.approx(flops)
    assert 0 < step.mfu < 0.75
    assert step.memory == peak_memory(small(), job(), layout)


@quick
@given(SMALL)
def test_equal_stages_are_the_default(layout: Layout) -> None:
    step = estimate_step(prices("small", "dgx-h100", 2), layout)

    assert step.split == Split(split_layers(16, layout.pp * layout.vpp))


@quick
@given(SMALL)
def test_twice_the_micro_batches_take_about_twice_as_long(layout: Layout) -> None:
    """What is paid once, the bubble, the reduction and the optimizer, does not double."""
    once, twice = (seconds(layout, batch=batch) for batch in (64, 128))

    assert 1.0 < twice / once <= 2.0 + 1e-9


def test_time_grows_linearly_once_the_pipeline_is_full() -> None:
    layout = Layout(pp=4, dp=4)
    times = [seconds(layout, batch=batch) for batch in (128, 256, 384, 512)]
    steps = [high - low for low, high in itertools.pairwise(times)]

    assert steps == pytest.approx([steps[0]] * 3, rel=1e-6)


@cache
def faster(compute: float, memory: float) -> ClusterSpec:
    machine = cluster("dgx-h100", 2)
    gpu = machine.gpu
    update = {
        "name": f"H100 x {compute} {memory}",
        "peak_flops": {name: compute * peak for name, peak in gpu.peak_flops.items()},
        "hbm_bytes_per_s": memory * gpu.hbm_bytes_per_s,
    }
    return machine.model_copy(update={"gpu": gpu.model_copy(update=update)})


@quick
@given(SMALL, st.sampled_from([(1.3, 1.0), (1.0, 1.5), (4.0, 4.0)]))
def test_a_faster_gpu_is_never_slower(layout: Layout, factors: tuple[float, float]) -> None:
    assert seconds(layout, machine=faster(*factors)) <= seconds(layout) * (1 + 1e-9)


@cache
def wider(factor: float) -> ClusterSpec:
    machine = cluster("dgx-h100", 2)
    net = machine.scale_out
    assert net is not None
    fast = net.model_copy(update={"nic_bytes_per_s": factor * net.nic_bytes_per_s})
    return machine.model_copy(update={"name": f"{factor} x network", "scale_out": fast})


@quick
@given(SMALL, st.sampled_from([1.5, 4.0]))
def test_more_network_is_never_slower(layout: Layout, factor: float) -> None:
    assert seconds(layout, machine=wider(factor)) <= seconds(layout) * (1 + 1e-9)


@quick
@given(SMALL, st.sampled_from([1.1, 1.3]))
def test_more_nvlink_is_never_slower(layout: Layout, factor: float) -> None:
    """Without measured curves: the line rate of the fabric, within a generation of NVLink.

    Across generations it does not hold: short messages start in 10.6 us on H100, 16.8 on B200.
    """

    def machine(scale: float) -> ClusterSpec:
        plain = cluster("dgx-h100", 2)
        up = plain.scale_up
        return plain.model_copy(
            update={
                "name": f"{scale} x fabric",
                "gpu": plain.gpu.model_copy(update={"collectives": {}, "name": "H100 line"}),
                "scale_up": up.model_copy(update={"bytes_per_s": scale * up.bytes_per_s}),
            }
        )

    assert seconds(layout, machine=machine(factor)) <= seconds(layout, machine=machine(1.0)) * (
        1 + 1e-9
    )


@quick
@given(SMALL)
def test_more_recompute_is_never_faster(layout: Layout) -> None:
    times = [seconds(replace(layout, recompute=kind)) for kind in Recompute]

    assert times == sorted(times)


@quick
@given(SMALL, st.data())
def test_each_recomputed_layer_costs_time(layout: Layout, data: st.DataObject) -> None:
    layers = split_layers(16, layout.pp * layout.vpp)
    again = tuple(data.draw(st.integers(0, count)) for count in layers)

    none, some, every = (
        seconds(layout, Split(layers, counts)) for counts in ((0,) * len(layers), again, layers)
    )

    assert none <= some * (1 + 1e-9)
    assert some <= every * (1 + 1e-9)
    assert every == pytest.approx(seconds(replace(layout, recompute=Recompute.FULL)))


@quick
@given(SMALL)
def test_interleaving_only_moves_the_bubble(layout: Layout) -> None:
    step = estimate_step(prices("small", "dgx-h100", 2), layout)
    plain = estimate_step(prices("small", "dgx-h100", 2), replace(layout, vpp=1))

    for part in ("compute", "tensor_parallel", "optimizer"):
        assert step.parts_s[part] == pytest.approx(plain.parts_s[part])


def test_one_gpu_only_computes() -> None:
    graphs = software(MEGATRON_CORE, cuda_graphs="all")
    lonely = table(machine=cluster("dgx-h100", 1), batch=4, software=graphs)

    parts = estimate_step(lonely, Layout()).parts_s

    assert {name for name, value in parts.items() if value > 1e-9} == {"compute", "optimizer"}


# layout, the part that it makes grow
CAUSES = [
    (Layout(tp=8, dp=2, sequence_parallel=True), "tensor_parallel"),
    (Layout(dp=16), "data_parallel"),
    (Layout(pp=8, dp=2), "pipeline"),
    (Layout(cp=2, dp=8), "context_parallel"),
    (Layout(dp=16, recompute=Recompute.FULL), "recompute"),
]


@pytest.mark.parametrize(("layout", "part"), CAUSES, ids=lambda it: str(it)[:40])
def test_every_cause_has_its_part(layout: Layout, part: str) -> None:
    step = estimate_step(table(), layout)

    assert step.parts_s[part] > 1e-3 * step.step_time_s


def test_recompute_leaves_compute_as_it_was() -> None:
    layout = Layout(tp=8, dp=2, sequence_parallel=True)
    none, full = (
        estimate_step(table(), replace(layout, recompute=kind)).parts_s["compute"]
        for kind in (Recompute.NONE, Recompute.FULL)
    )

    assert full == pytest.approx(none)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sharding_moves_communication_and_shortens_the_optimizer(zero: int) -> None:
    sharded = estimate_step(table(), layout_with(zero, dp=16)).parts_s
    plain = estimate_step(table(), layout_with(0, dp=16)).parts_s

    assert sharded["compute"] == plain["compute"]
    assert (sharded["optimizer"] < plain["optimizer"]) == (zero > 0)


def test_gathering_weights_for_each_micro_batch_costs_more() -> None:
    """ZeRO-3 pays per micro-batch, ZeRO-1 once per step."""
    fully, once = (
        estimate_step(table(batch=512), layout_with(zero, dp=16)).parts_s["data_parallel"]
        for zero in (3, 1)
    )

    assert fully > 2 * once


def test_hybrid_sharding_gathers_inside_the_node() -> None:
    net = cluster("dgx-h100", 2).scale_out
    assert net is not None
    slow = net.model_copy(update={"nic_bytes_per_s": net.nic_bytes_per_s / 8})
    machine = cluster("dgx-h100", 2).model_copy(update={"name": "slow", "scale_out": slow})

    hybrid, everywhere = (
        seconds(Layout(dp=16, shard=Shard(size, size, size)), machine=machine) for size in (8, 16)
    )

    assert hybrid < everywhere


def test_overlap_hides_the_reduction() -> None:
    hidden, exposed = (
        seconds(Layout(dp=16), software=software(overlap_grad_reduce=overlap))
        for overlap in (True, False)
    )

    assert hidden < exposed


def test_overlapped_sends_are_never_slower() -> None:
    layout = Layout(pp=4, dp=4)
    hidden, blocking = (
        seconds(layout, software=software(overlap_pipeline=overlap)) for overlap in (True, False)
    )

    assert hidden < blocking


# chunks, overlapped, exchanges that each of 16 micro-batches waits for
@pytest.mark.parametrize(
    ("kind", "vpp", "overlap", "exchanges"),
    [("", 1, False, 1), ("", 2, False, 2), ("", 1, True, 0), ("zb_h1", 1, False, 0)],
)
def test_a_blocking_exchange_waits_for_the_device(
    kind: str, vpp: int, overlap: bool, exchanges: int
) -> None:
    """The last rank sets the pace here and meets one neighbour, once for each chunk.

    The zero-bubble runtime never waits.
    """
    layout = Layout(pp=4, vpp=vpp, dp=4, schedule=kind)

    def lost_s(batch: int) -> float:
        none, some = (
            seconds(layout, batch=batch, software=software(
                overlap_pipeline=overlap, exchange_wait_s=wait_s))
            for wait_s in (0.0, 1e-3)
        )  # fmt: skip
        return some - none

    assert lost_s(128) - lost_s(64) == pytest.approx(16 * exchanges * 1e-3)


@pytest.mark.parametrize(("kind", "added"), [("", True), ("zb_h1", False), ("zb_v", False)])
def test_a_tied_table_on_both_ends_takes_an_exchange(kind: str, added: bool) -> None:
    """The V holds both ends on one rank; a split backward pass has the rest to hide it behind."""
    layout = Layout(pp=4, vpp=2 if kind == "zb_v" else 1, dp=4, schedule=kind)
    untied, tied = (
        step_costs(Prices(small().model_copy(update={"tied_embeddings": tied}),
                          cluster("dgx-h100", 2), job(32)), layout).tails
        for tied in (False, True)
    )  # fmt: skip

    more = [b.gradients_s - a.gradients_s for a, b in zip(untied, tied, strict=True)]
    assert more[1] == more[2] == 0
    assert (more[0] > 0) == added


def test_shares_of_a_hop_travel_faster_than_the_whole() -> None:
    """PTD-P section 4.1, scatter/gather: each tensor rank sends its part over its own NIC."""
    layout = Layout(tp=8, pp=2)
    whole, shares = (
        seconds(layout, software=software(MEGATRON_2022, scatter_gather_pipeline=scatter))
        for scatter in (False, True)
    )

    assert shares < whole


def test_some_hops_of_short_stages_leave_the_node() -> None:
    """Stages of four GPUs: every second hop crosses, a node of sixteen would have none."""
    layout = Layout(tp=4, pp=4, sequence_parallel=True)
    spacious = cluster("dgx-h100", 2).model_copy(update={"name": "16", "domain_gpus": 16})

    assert seconds(layout, batch=8) > seconds(layout, batch=8, machine=spacious) * (1 + 1e-9)


def test_a_stage_is_its_layers_and_its_ends() -> None:
    layout = Layout(pp=2)
    middle = stage_cost(table(), layout, StageLayers(3, 0))
    first = stage_cost(table(), layout, StageLayers(3, 0, embedding=True))
    layer = table().layer(layout, False)

    assert middle.forward_s == pytest.approx(3 * layer.forward.total)
    assert middle.backward_s == pytest.approx(3 * layer.backward.total)
    added = table().embedding(layout)
    assert first.forward_s - middle.forward_s == pytest.approx(added.forward.total)


def test_the_head_makes_the_last_stage_the_slowest() -> None:
    layout = Layout(pp=4, dp=4)
    even, shorter = Split((4, 4, 4, 4)), Split((4, 4, 5, 3))
    wide = Prices(small(vocab=256000), cluster("dgx-h100", 2), job(256))

    times = [estimate_step(wide, layout, split).step_time_s for split in (even, shorter)]

    assert times[1] < times[0]


def test_schedules_have_names() -> None:
    assert schedule_name(Layout(pp=4)) == "1f1b"
    assert schedule_name(Layout(pp=4, vpp=2)) == "interleaved_1f1b"


# layout, how far the interval reaches
INTERVALS = [
    (Layout(dp=16), USUAL),
    (Layout(tp=16, sequence_parallel=True), TENSOR_OVER_NODES),
    (Layout(pp=4, dp=4), PIPELINE_OVER_NODES),
]


@pytest.mark.parametrize(("layout", "factors"), INTERVALS, ids=lambda it: str(it)[:30])
def test_interval_holds_the_estimate(layout: Layout, factors: tuple[float, float]) -> None:
    step = estimate_step(table(), layout)

    low, high = step_interval(step, cluster("dgx-h100", 2))

    assert low < step.step_time_s < high
    assert (low / step.step_time_s, high / step.step_time_s) == pytest.approx(factors)


def test_experts_are_less_certain() -> None:
    machine = cluster("dgx-h100", 4)
    step = estimate_step(prices("small-moe", "dgx-h100", 4), Layout(dp=32, ep=8))

    low, high = step_interval(step, machine)

    assert (low, high) == tuple(share * step.step_time_s for share in EXPERTS)
    assert high / low > USUAL[1] / USUAL[0]


def test_losses_of_unknown_cause_may_come_or_not() -> None:
    """Only a pipeline over nodes meets them."""
    stack = software(slow_node_share=0.02, slow_node_message_s=0.1)
    on = cluster("dgx-h100", 2)
    known, unknown, none = (
        step_interval(step, on)[1] / step.step_time_s
        for step in (
            estimate_step(table(), Layout(pp=4, dp=4)),
            estimate_step(table(software=stack), Layout(pp=4, dp=4)),
            estimate_step(table(software=stack), Layout(dp=16)),
        )
    )

    assert unknown == pytest.approx(UNEXPLAINED[1])
    assert none < known < unknown


def test_slow_nodes_only_add() -> None:
    stack = software(slow_node_share=0.4, slow_node_message_s=0.1)
    layout = Layout(tp=4, pp=2, dp=2, sequence_parallel=True)

    stalled = seconds(layout, software=stack) - seconds(layout)

    assert stalled == pytest.approx(layout.micro_batches(32) * 2 * 0.1)


# PTD-P Figures 12 and 17: interleaving gains most with few micro-batches
def test_gain_of_interleaving_falls_with_the_batch() -> None:
    spec = gpt(96, 12288, 96)
    layout = Layout(tp=8, pp=12, micro_batch=1)
    gains = []
    for batch in (12, 24, 60):
        run = Prices(spec, cluster("dgx-a100", 12), job(batch, 2048, software=MEGATRON_2022))
        once, twice = (
            estimate_step(run, replace(layout, vpp=vpp, recompute=Recompute.FULL)).step_time_s
            for vpp in (1, 2)
        )
        gains.append(once / twice - 1)

    assert gains == sorted(gains, reverse=True)
    assert 0.2 < gains[0] < 0.6
    assert 0 < gains[2] < 0.15


def test_an_unmeasured_gpu_is_estimated_all_the_same() -> None:
    gpu = GpuSpec(
        name="new", memory_bytes=8 * 10**10, hbm_bytes_per_s=3e12, sm_count=128,
        peak_flops={"bf16": 1e15},
    )  # fmt: skip
    machine = cluster("dgx-h100", 2).model_copy(update={"gpu": gpu, "name": "new"})

    assert 0.5 < seconds(Layout(dp=16), machine=machine) / seconds(Layout(dp=16)) < 2


def test_stacks_differ_where_they_say() -> None:
    layout = Layout(tp=2, dp=8, micro_batch=4, sequence_parallel=True)  # longer than the host

    assert seconds(layout, software=MEGATRON_CORE) < seconds(layout, software=TORCH_LAUNCHER)
