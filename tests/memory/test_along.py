"""Memory along the passes of a schedule against the estimate of its peak, and against itself."""

from dataclasses import replace

import numpy as np
import pytest

from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.layout.stages import Split
from planner.memory.along import memory_along
from planner.memory.estimate import rank_memory, rank_timeline
from planner.schedule.kinds import chunks_of, kind_of, schedule_name
from planner.schedule.orders import order
from planner.schedule.passes import Order
from tests.properties.strategies import job, small, small_moe, software

PP4 = Layout(pp=4, dp=4, shard=Shard(1, 1, 4))
LAYOUTS = [
    Layout(dp=16, shard=Shard(16, 16, 16)),
    Layout(tp=4, dp=4, sequence_parallel=True, recompute=Recompute.FULL),
    PP4,
    replace(PP4, recompute=Recompute.FULL),
    replace(PP4, offload=Offload(0.5)),
    replace(PP4, vpp=2),
    replace(PP4, schedule="gpipe"),
    replace(PP4, schedule="zb_h1"),
    replace(PP4, schedule="zb_h2"),
    replace(PP4, schedule="zb_v", vpp=2),
    replace(PP4, schedule="v_half", vpp=2),
]
BATCH = 128


def order_of(layout: Layout) -> Order:
    name = schedule_name(layout)
    micro_batches = layout.micro_batches(BATCH) // kind_of(name).pipelines
    return order(name, layout.pp, micro_batches, chunks_of(layout))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label())
def test_the_fullest_pass_is_the_peak_of_the_estimate(layout: Layout, lazy: bool) -> None:
    the_job = job(BATCH, software=software(lazy_gradients=lazy))
    peaks = []
    for rank in range(layout.pp):
        found = memory_along(small(), the_job, layout, rank, order_of(layout))
        everything = (found.loaded, *found.during, *found.after, found.step)
        peaks.append(max(memory.allocated for memory in everything))
        # the closed forms are those of the fullest rank where weight gradients are passes
        assert peaks[-1] <= rank_memory(small(), the_job, layout, rank).allocated * (1 + 1e-12)
    estimate = max(rank_memory(small(), the_job, layout, r).allocated for r in range(layout.pp))

    assert max(peaks) == pytest.approx(estimate)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label())
def test_every_pass_gives_back_what_it_kept(layout: Layout) -> None:
    """Kept bytes rise by a pass with F, fall by one with its last backward pass, and end at 0."""
    found = memory_along(small(), job(BATCH), layout, 0, order_of(layout))
    kept = np.array([memory.activations for memory in found.after])
    change = np.diff(kept, prepend=0.0)

    assert kept[-1] == found.step.activations == 0
    assert set(np.round(change / change.max(), 9)) <= {-1.0, 0.0, 1.0}
    assert len(found.during) == order_of(layout).length
    for before, during, after in zip(
        found.after[:-1], found.during[1:], found.after[1:], strict=True
    ):
        assert during.allocated >= max(before.allocated, after.allocated) * (1 - 1e-12)


def test_experts_and_uneven_stages_have_a_peak_of_their_own() -> None:
    layout, split = Layout(pp=4, ep=4, dp=4), Split((5, 3, 4, 4))
    for rank in range(4):
        found = memory_along(small_moe(), job(BATCH), layout, rank, order_of(layout), split)
        peak = max(memory.allocated for memory in (*found.during, found.step, found.loaded))
        timeline = rank_timeline(small_moe(), job(BATCH), layout, rank, split)

        assert peak == pytest.approx(max(memory.allocated for memory in timeline))
