"""What is drawn beside the passes says the same as the seconds that the step was added up from."""

from dataclasses import replace
from itertools import pairwise

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.simulate.detail import SHOWN_MICRO_BATCHES
from planner.simulate.slices import (
    BUCKETS,
    CONTEXT,
    CPU,
    DATA,
    EXPERT,
    FROM_HOST,
    FROM_SSD,
    LAYERS,
    PREFETCH,
    STREAMS,
    TENSOR,
    TO_HOST,
    TO_SSD,
    Slice,
)  # fmt: skip
from planner.simulate.timeline import Timeline, step_timeline
from tests.properties.strategies import cluster, job, small, small_moe, software

FSDP = Layout(dp=16, shard=Shard(16, 16, 16))
PP4 = Layout(pp=4, dp=4, shard=Shard(1, 1, 4))
LAYOUTS = {
    "fsdp": FSDP,
    "fsdp recomputed": replace(FSDP, recompute=Recompute.FULL),
    "tp cp": Layout(tp=4, cp=2, dp=2, sequence_parallel=True),
    "tp recomputed": Layout(tp=4, pp=2, dp=2, sequence_parallel=True, recompute=Recompute.FULL),
    "interleaved": replace(PP4, vpp=2),
    "zb_v": replace(PP4, schedule="zb_v", vpp=2),
    "dualpipe": replace(PP4, schedule="dualpipe"),
    "host": replace(PP4, offload=Offload(0.5)),
    "ssd": replace(PP4, vpp=2, offload=Offload(0.5, "ssd")),
    "cpu optimizer": replace(PP4, offload_optimizer=1.0),
    "delayed": replace(PP4, offload_optimizer=0.5, delayed_update=True),
}
GROUPS = {TENSOR: "tensor_parallel", CONTEXT: "context_parallel", EXPERT: "expert_parallel"}


def simulated(layout: Layout, experts: bool = False) -> Timeline:
    model = small_moe() if experts else small()
    given = job(64, software=software(overlap_pipeline=True))
    return step_timeline(Prices(model, cluster("dgx-h100", 2), given), layout)


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def timeline(request: pytest.FixtureRequest) -> Timeline:
    return simulated(request.param)


def of(timeline: Timeline, stream: str, rank: int = 0) -> list[Slice]:
    found = [piece for piece in timeline.details if (piece.stream, piece.rank) == (stream, rank)]
    return sorted(found, key=lambda piece: piece.start_s)


def total_s(pieces: list[Slice]) -> float:
    return sum(piece.end_s - piece.start_s for piece in pieces)


def test_the_parts_of_a_pass_are_its_seconds(timeline: Timeline) -> None:
    for piece in timeline.slices:
        if piece.kind in ("F", "B", "W"):
            parts = timeline.parts_s[piece.rank, piece.chunk, piece.kind]
            assert sum(parts.values()) == pytest.approx(piece.end_s - piece.start_s)


def test_exposed_communication_is_that_of_the_causes(timeline: Timeline) -> None:
    for rank, causes in enumerate(timeline.causes_s):
        for stream, cause in GROUPS.items():
            assert total_s(of(timeline, stream, rank)) == pytest.approx(causes[cause])


def test_experts_exchanges_are_drawn() -> None:
    found = simulated(Layout(ep=4, dp=8, pp=2), experts=True)

    for rank, causes in enumerate(found.causes_s):
        assert 0 < total_s(of(found, EXPERT, rank)) == pytest.approx(causes["expert_parallel"])


def test_details_lie_within_the_step_and_their_pass(timeline: Timeline) -> None:
    spans = {(s.rank, s.micro_batch, s.chunk, s.kind): s for s in timeline.slices}
    last_s = max(piece.end_s for piece in timeline.slices)
    for piece in timeline.details:
        assert piece.stream in STREAMS
        assert -1e-9 <= piece.start_s <= piece.end_s <= last_s + 1e-9
        if piece.kind == "exposed":
            kind = piece.name.split()[2]
            own = spans[piece.rank, piece.micro_batch, piece.chunk, kind]
            assert own.start_s - 1e-9 <= piece.start_s <= piece.end_s <= own.end_s + 1e-9


@pytest.mark.parametrize("name", ["fsdp", "fsdp recomputed"])
def test_layers_fill_the_pass_and_gathers_run_behind_them(name: str) -> None:
    found = simulated(LAYOUTS[name])
    layers, exchanges = of(found, LAYERS), of(found, PREFETCH)
    shown = min(SHOWN_MICRO_BATCHES, found.layout.micro_batches(64))
    first = [piece for piece in layers if piece.name.endswith(", F 0")]
    forward = next(piece for piece in found.slices if piece.name == "F 0")

    assert len(layers) == 2 * small().layers * shown
    assert all(b.start_s == pytest.approx(a.end_s) for a, b in pairwise(first))
    # embedding and head are the rest of the pass
    assert 0.8 < total_s(first) / (forward.end_s - forward.start_s) < 1
    assert first[-1].end_s < forward.end_s
    kinds = [piece.kind for piece in exchanges]
    assert kinds.count("all_gather") == 2 * kinds.count("reduce_scatter") == len(layers)
    for piece in exchanges:
        assert any(own.start_s - 1e-9 <= piece.start_s and piece.end_s <= own.end_s + 1e-9
                   for own in layers)  # fmt: skip


def test_gradient_buckets_end_with_the_reduction(timeline: Timeline) -> None:
    for rank in range(timeline.layout.pp):
        tail = next(s for s in timeline.slices if s.rank == rank and s.kind == "gradient reduction")
        buckets = [s for s in of(timeline, BUCKETS, rank) if s.kind != "all_gather"]
        assert bool(buckets) == (tail.end_s > tail.start_s)
        if buckets:
            assert tail.stream == DATA
            assert buckets[-1].end_s == pytest.approx(tail.end_s)
            assert total_s(buckets) >= (tail.end_s - tail.start_s) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("name", "out", "back"), [("host", TO_HOST, FROM_HOST), ("ssd", TO_SSD, FROM_SSD)]
)
def test_activations_leave_in_every_forward_pass_and_return(name: str, out: str, back: str) -> None:
    found = simulated(LAYOUTS[name])
    passes = sum(piece.kind == "F" and piece.rank == 0 for piece in found.slices)

    assert len(of(found, out)) == len(of(found, back)) == passes
    assert {piece.kind for piece in of(found, out)} == {"store"}


def test_the_hosts_optimizer_follows_the_gradients_and_sends_weights() -> None:
    found = simulated(LAYOUTS["cpu optimizer"])
    for rank in range(4):
        (update,) = of(found, CPU, rank)
        (back,) = of(found, FROM_HOST, rank)
        out = of(found, TO_HOST, rank)
        ends = {s.kind: s for s in found.slices if s.rank == rank}

        assert out[0].start_s < update.start_s < back.start_s
        assert update.end_s <= back.end_s == pytest.approx(ends["optimizer"].end_s)


def test_a_delayed_update_runs_behind_the_passes() -> None:
    found = simulated(LAYOUTS["delayed"])
    (update,) = of(found, CPU)
    passes = [s for s in found.slices if s.rank == 0 and s.kind in "FB"]

    assert passes[0].start_s < update.end_s <= max(s.end_s for s in passes) + 1e-9


def test_memory_is_highest_at_its_peak_and_lowest_after_the_step(timeline: Timeline) -> None:
    for track in timeline.memory:
        assert track.allocated_bytes.max() == pytest.approx(track.peak.allocated)
        at = track.at_s.searchsorted(track.peak_s, side="right") - 1
        assert track.allocated_bytes[at] == pytest.approx(track.peak.allocated)
        assert track.allocated_bytes[-1] == track.allocated_bytes.min()
        assert all(b > a for a, b in pairwise(track.at_s))
