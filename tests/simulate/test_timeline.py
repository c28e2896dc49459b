"""The timeline of a step: the same step time as the estimate, each second once, a tight path."""

from dataclasses import replace
from itertools import pairwise

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.simulate.slices import TAIL, Slice
from planner.simulate.step import estimate_step
from planner.simulate.timeline import CAUSES, Timeline, step_timeline
from tests.properties.strategies import cluster, job, small, small_moe, software

PP4 = Layout(pp=4, dp=4, shard=Shard(1, 1, 4))
LAYOUTS = [
    Layout(dp=16, shard=Shard(16, 16, 16)),
    Layout(tp=4, dp=4, sequence_parallel=True, recompute=Recompute.FULL),
    PP4,
    replace(PP4, recompute=Recompute.FULL),
    replace(PP4, vpp=2),
    replace(PP4, schedule="gpipe"),
    replace(PP4, schedule="zb_h1"),
    replace(PP4, schedule="zb_h2", tp=2, dp=2, sequence_parallel=True, shard=Shard()),
    replace(PP4, schedule="zb_2p"),
    replace(PP4, schedule="zb_v", vpp=2),
    replace(PP4, schedule="v_half", vpp=2),
    replace(PP4, schedule="dualpipe"),
    replace(PP4, schedule="dualpipe_v", vpp=2),
]


def prices(overlap: bool = True) -> Prices:
    return Prices(
        small(), cluster("dgx-h100", 2), job(128, software=software(overlap_pipeline=overlap))
    )


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.label())
def layout(request: pytest.FixtureRequest) -> Layout:
    found: Layout = request.param
    return found


@pytest.fixture(params=[True, False], ids=["overlapped", "blocking"])
def timeline(request: pytest.FixtureRequest, layout: Layout) -> Timeline:
    return step_timeline(prices(request.param), layout)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_step_time_is_that_of_the_estimate(layout: Layout, overlap: bool) -> None:
    table = prices(overlap)

    assert step_timeline(table, layout).step_time_s == pytest.approx(
        estimate_step(table, layout).step_time_s
    )


def test_every_second_of_every_rank_has_one_cause(timeline: Timeline) -> None:
    assert len(timeline.causes_s) == timeline.layout.pp
    for causes in timeline.causes_s:
        assert tuple(causes) == CAUSES
        assert sum(causes.values()) == pytest.approx(timeline.step_time_s)
        assert all(seconds >= -1e-9 * timeline.step_time_s for seconds in causes.values())


@pytest.mark.parametrize("overlap", [True, False])
def test_causes_refine_the_parts_of_the_estimate(layout: Layout, overlap: bool) -> None:
    table = prices(overlap)
    parts = estimate_step(table, layout).parts_s
    causes = [
        found
        for found in step_timeline(table, layout).causes_s
        if found["optimizer"] == pytest.approx(parts["optimizer"])
    ]
    compute = [c["forward"] + c["backward"] + c["weight_gradient"] for c in causes]

    assert any(seconds == pytest.approx(parts["compute"]) for seconds in compute)
    for cause in ("tensor_parallel", "recompute", "host", "data_parallel"):
        assert any(found[cause] == pytest.approx(parts[cause]) for found in causes)


def test_a_rank_does_one_thing_at_a_time(timeline: Timeline) -> None:
    for rank in range(timeline.layout.pp):
        mine = [s for s in timeline.slices if s.rank == rank and s.kind != "send"]
        mine.sort(key=lambda piece: piece.start_s)
        assert all(b.start_s >= a.end_s - 1e-9 for a, b in pairwise(mine))


def test_slices_are_the_passes_of_the_schedule(timeline: Timeline) -> None:
    layout = timeline.layout
    micro_batches = layout.micro_batches(128)
    kinds = "FBW" if layout.schedule.startswith("zb") else "FB"
    for kind in kinds:
        found = [piece for piece in timeline.slices if piece.kind == kind]
        assert len(found) == layout.pp * layout.vpp * micro_batches
        assert len({(s.rank, s.micro_batch, s.chunk) for s in found}) == len(found)
    assert sum(piece.kind in TAIL for piece in timeline.slices) == len(TAIL) * layout.pp


def test_a_transfer_ends_before_what_it_brings_is_used(timeline: Timeline) -> None:
    starts: dict[tuple[str, int, int], list[float]] = {}
    for piece in timeline.slices:
        starts.setdefault((piece.kind, piece.rank, piece.micro_batch), []).append(piece.start_s)
    sends = [piece for piece in timeline.slices if piece.kind == "send"]

    assert bool(sends) == (timeline.layout.pp > 1)
    for send in sends:
        to = int(send.name.rpartition(" ")[2])
        users = [start for kind in "FB" for start in starts.get((kind, to, send.micro_batch), [])]
        assert any(start >= send.end_s - 1e-9 for start in users)


def path_slices(timeline: Timeline) -> list[Slice]:
    return [timeline.slices[place] for place in timeline.path]


def test_the_critical_path_is_tight(timeline: Timeline) -> None:
    """No task on it waits for anything but the task before it and a transfer."""
    path = path_slices(timeline)
    slowest = max(s.end_s - s.start_s for s in timeline.slices if s.kind == "send") if any(
        s.kind == "send" for s in timeline.slices
    ) else 0.0  # fmt: skip

    assert path[0].start_s == pytest.approx(0, abs=1e-9)
    assert path[-1].rank == timeline.critical_rank
    assert path[-1].end_s == pytest.approx(
        max(s.end_s for s in timeline.slices if s.rank == timeline.critical_rank)
    )
    for before, after in pairwise(path):
        assert -1e-9 <= after.start_s - before.end_s <= 2 * slowest + 1e-9


def test_the_longest_path_spans_the_step() -> None:
    path = path_slices(step_timeline(prices(), PP4))

    assert path[-1].end_s - path[0].start_s == pytest.approx(
        estimate_step(prices(), PP4).step_time_s
    )
    assert [piece.kind for piece in path[-len(TAIL) :]] == list(TAIL)


def test_experts_exposed_exchange_is_named() -> None:
    table = Prices(small_moe(), cluster("dgx-h100", 2), job(64))

    causes = step_timeline(table, Layout(ep=4, dp=8, pp=2)).causes_s

    assert all(found["expert_parallel"] > 0 for found in causes)
