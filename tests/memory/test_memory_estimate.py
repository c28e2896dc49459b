"""Peak memory of each rank: components, laws, and runs whose memory was printed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.local import stage_local
from planner.layout.stages import Split, rank_layers
from planner.memory.activations import layer_bytes
from planner.memory.estimate import (
    RankMemory,
    allocated_limit,
    fullest_moments,
    outside_bytes,
    peak_memory,
    rank_memory,
    rank_timeline,
)
from planner.memory.moments import job_shape
from planner.memory.states import state_bytes
from planner.memory.working import buffer_bytes
from planner.schedule.kinds import schedule_name
from planner.schedule.orders import order
from planner.schedule.passes import in_flight
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP
from planner.units import MIB
from tests.properties.strategies import (
    gpt,
    job,
    layout_with,
    layouts_of,
    model,
    quick,
    small,
    small_moe,
    software,
)

JOB = job(32, 4096)
SMALL = small()


def memory_of(allocated: float, outside: float = 0.0) -> RankMemory:
    return RankMemory(allocated, 0, 0, 0, 0, 0, outside, "loss", MEGATRON_CORE.reserve_share)


def test_components_add_up() -> None:
    memory = RankMemory(1, 2, 4, 8, 16, 32, 64, "loss", 0.053)

    assert memory.states == 7
    assert memory.allocated == 63
    assert memory.reserved == pytest.approx(63 * 1.053)
    assert memory.device == pytest.approx(memory.reserved + 64)


@quick
@given(layouts_of("small", "dgx-h100", 2), st.integers(10, 200))
def test_the_limit_of_torch_is_that_of_the_driver(layout: Layout, gib: int) -> None:
    device = gib * 2.0**30
    allocated = allocated_limit(device, layout, MEGATRON_CORE)

    assert memory_of(allocated, outside_bytes(layout, MEGATRON_CORE)).device == pytest.approx(
        device
    )


def test_every_kind_of_group_has_a_communicator() -> None:
    layouts = (Layout(), Layout(dp=8), Layout(dp=8, tp=2))
    alone, one, two = (outside_bytes(layout, MEGATRON_CORE) for layout in layouts)

    assert alone == MEGATRON_CORE.context_bytes
    assert one - alone == two - one > 0


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_states_and_activations_are_those_of_their_own_modules(layout: Layout) -> None:
    spec = small_moe()
    for rank in {0, layout.pp - 1}:
        held = rank_layers(spec, layout.pp, layout.vpp, rank)
        local = stage_local(spec, held, layout.tp, layout.ep, layout.etp, MEGATRON_CORE)
        states = state_bytes(local, layout, MEGATRON_CORE)
        memory = rank_memory(spec, JOB, layout, rank)
        assert (memory.weights, memory.gradients) == (states.weights, states.gradients)
        assert memory.optimizer == states.optimizer
        assert min(memory.activations, memory.working, memory.buffers) > 0


@quick
@given(layouts_of("small", "dgx-h100", 2))
def test_activations_are_those_alive_in_the_schedule(layout: Layout) -> None:
    made = order(schedule_name(layout), layout.pp, layout.micro_batches(32), layout.vpp)
    alive = in_flight(made)
    each = layer_bytes(small(), job_shape(JOB, layout), MEGATRON_CORE, layout.recompute, False)
    for rank in range(layout.pp):
        layers = rank_layers(small(), layout.pp, layout.vpp, rank).layers / layout.vpp
        kept = rank_memory(small(), JOB, layout, rank).activations
        assert kept == pytest.approx(int(alive[rank]) * layers * each)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_no_rank_exceeds_the_peak_of_equal_stages(layout: Layout) -> None:
    peak = peak_memory(small_moe(), JOB, layout).device
    ranks = [rank_memory(small_moe(), JOB, layout, rank).device for rank in range(layout.pp)]

    assert max(ranks) == pytest.approx(peak)


@pytest.mark.parametrize(("pp", "vpp"), [(5, 1), (8, 2), (16, 1), (24, 2), (32, 1), (61, 1)])
@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-405b"])
def test_no_rank_exceeds_the_peak_of_stages_that_are_not_alike(
    name: str, pp: int, vpp: int
) -> None:
    # DeepSeek-V3: 61 layers, 3 without experts; the fullest of 32 stages is the third
    spec = model(name)
    run, layout = job(2 * pp), Layout(pp=pp, vpp=vpp)
    ranks = [rank_memory(spec, run, layout, rank).device for rank in range(pp)]

    assert peak_memory(spec, run, layout).device == max(ranks)


def test_no_rank_exceeds_the_peak_of_unequal_stages() -> None:
    layout = Layout(pp=8)
    split = Split((2,) * 8, (2, 2, 0, 0, 0, 2, 2, 2))
    ranks = [rank_memory(small(), JOB, layout, rank, split).device for rank in range(8)]

    assert max(ranks) == pytest.approx(peak_memory(small(), JOB, layout, split).device)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_recompute_keeps_less(layout: Layout) -> None:
    for rank in {0, layout.pp - 1}:
        kept = [
            rank_memory(small_moe(), JOB, replace(layout, recompute=kind), rank).activations
            for kind in Recompute
        ]
        assert kept == sorted(kept, reverse=True)


@quick
@given(st.integers(0, 16))
def test_each_recomputed_layer_keeps_less(count: int) -> None:
    splits = [Split((16,), (again,)) for again in (count, min(16, count + 1))]

    kept = [rank_memory(small(), JOB, Layout(), 0, split).activations for split in splits]

    assert kept[0] >= kept[1]


def test_a_split_without_recompute_follows_the_layout() -> None:
    layout = Layout(pp=4, recompute=Recompute.FULL)

    plain = rank_memory(small(), JOB, layout, 1)

    assert plain == rank_memory(small(), JOB, layout, 1, Split((4,) * 4))
    assert plain.activations < rank_memory(
        small(), JOB, replace(layout, recompute=Recompute.NONE), 1
    ).activations  # fmt: skip


@quick
@given(layouts_of("small", "dgx-h100", 2), st.sampled_from([1, 2]))
def test_larger_micro_batches_need_more(layout: Layout, factor: int) -> None:
    larger = replace(layout, micro_batch=factor * layout.micro_batch, vpp=1)

    sizes = [
        rank_memory(small(), job(512), it, 0).device for it in (replace(layout, vpp=1), larger)
    ]

    assert sizes[1] >= sizes[0]


def test_the_optimizer_step_comes_when_activations_are_gone() -> None:
    """Half-precision training with flattened gradients: 2 bytes of each parameter for a moment."""
    stack = software(MEGATRON_2022, optimizer_temporary_bytes=200.0)
    parameters = stage_local(small(), rank_layers(small(), 1, 1, 0), 1, 1, 1, stack).total

    memory = rank_memory(small(), job(1, software=stack), Layout(), 0)

    assert (memory.moment, memory.activations) == ("optimizer step", 0)
    assert memory.working == 200 * parameters
    sharded = rank_memory(small(), job(1, software=stack), layout_with(1, dp=8), 0)
    assert sharded.working == pytest.approx(25 * parameters)


def test_buffers_stay_beside_everything() -> None:
    layout = Layout(tp=4, sequence_parallel=True)

    memory = rank_memory(small(), JOB, layout, 0)

    assert memory.buffers == buffer_bytes(small(), job_shape(JOB, layout), MEGATRON_CORE, False)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_the_peak_is_the_fullest_moment_of_the_timeline(layout: Layout) -> None:
    for rank in {0, layout.pp - 1}:
        timeline = rank_timeline(small_moe(), JOB, layout, rank)

        assert rank_memory(small_moe(), JOB, layout, rank) in timeline
        assert rank_memory(small_moe(), JOB, layout, rank).allocated == max(
            moment.allocated for moment in timeline
        )
        assert rank_memory(small_moe(), JOB, layout, rank) in fullest_moments(timeline)
        assert timeline[0].moment == "weights loaded"
        assert timeline[0].allocated == min(moment.allocated for moment in timeline)


def test_each_moment_is_listed_once_the_fullest_of_its_name_in_order() -> None:
    run = job(64, software=TORCH_FSDP)  # gradients come with the first backward pass
    timeline = rank_timeline(small(), run, layout_with(2, dp=8), 0)
    found = fullest_moments(timeline)

    assert [memory.moment for memory in found] == [
        "weights loaded", "passes in flight", "loss", "backward of a layer", "optimizer step"
    ]  # fmt: skip
    for memory in found:
        same = [other.allocated for other in timeline if other.moment == memory.moment]
        assert memory.allocated == max(same)
    assert len(timeline) > len(found)


def test_what_is_gathered_is_free_when_the_sharded_weight_is_updated() -> None:
    run = job(64, software=TORCH_FSDP)
    *_, step = rank_timeline(small(), run, layout_with(2, dp=8), 0)
    backward = rank_memory(small(), run, layout_with(2, dp=8), 0)

    assert (step.moment, step.weights) == ("optimizer step", 0)
    assert backward.weights > 0
    assert rank_memory(small(), run, layout_with(3, dp=8), 0).weights == 0


def test_sharding_everything_needs_the_least() -> None:
    spec = model("llama-3-8b")
    sizes = [peak_memory(spec, job(64), layout_with(stage, dp=64)).device for stage in range(4)]

    assert sizes == sorted(sizes, reverse=True)
    hybrid = peak_memory(spec, job(64), Layout(dp=64, shard=Shard(8, 8, 8))).device
    assert sizes[3] < hybrid < sizes[1]


# layout of one 80 GB node, whether people run it so
FITS = [
    ("llama-3-8b", layout_with(3, dp=8), True),
    ("llama-3-8b", layout_with(0, dp=8), False),  # 145 GB of states
    ("llama-3-8b", layout_with(1, tp=4, dp=2), True),
    ("llama-3-70b", layout_with(3, dp=8), False),
    ("mixtral-8x7b", layout_with(1, dp=8, ep=8), False),  # 18 bytes of 5.6 B experts on each
]


@pytest.mark.parametrize(("name", "layout", "fits"), FITS)
def test_what_fits_on_a_node(name: str, layout: Layout, fits: bool) -> None:
    run = job(8, 8192)

    needed = peak_memory(model(name), run, replace(layout, recompute=Recompute.FULL)).device

    assert (needed < 80e9) == fits


def test_stage_0_of_a_pipeline_is_the_fullest() -> None:
    """PTD-P section 2.2: it warms up with as many micro-batches as there are stages."""
    run = job(64, 2048, software=MEGATRON_2022)
    layout = Layout(tp=8, pp=8, vpp=3)
    spec = gpt(96, 12288, 96)

    kept = [rank_memory(spec, run, layout, rank).activations for rank in range(8)]

    assert kept == sorted(kept, reverse=True)
    # 1 + (p - 1) / (p v) times all layers on the first, 1 + (v - 1) p of p v chunks on the last
    assert kept[0] / kept[7] == pytest.approx((24 + 7) / (2 * 8 + 1))


def test_a_table_split_by_rows_has_its_whole_gradient_on_the_first_stage() -> None:
    layout = Layout(tp=4, pp=2)
    stack = MEGATRON_CORE.model_copy(update={"whole_table_gradient": True})
    asked = JOB.model_copy(update={"software": stack})

    more = [
        rank_memory(small(), asked, layout, rank).gradients
        - rank_memory(small(), JOB, layout, rank).gradients
        for rank in (0, 1)
    ]

    table = small().vocab * small().hidden
    assert more == pytest.approx([stack.gradient_bytes * table * 3 / 4, 0])


def test_a_context_that_holds_every_kernel_is_larger() -> None:
    old, new = (outside_bytes(Layout(), stack) for stack in (MEGATRON_2022, MEGATRON_CORE))

    assert old - new == 1100 * MIB
