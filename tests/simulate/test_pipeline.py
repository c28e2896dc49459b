"""Pipelines: textbook formulas, an independent slow executor, exactness of the short run."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import LayoutError
from planner.schedule.orders import group_problem, legal_group, order
from planner.schedule.passes import FloatArray, Order
from planner.simulate import pipeline
from planner.simulate.pipeline import PipelineResult, pipeline_time, pipeline_trace

FIELDS = (
    "total_s",
    "per_rank_busy_s",
    "per_rank_idle_s",
    "first_forward_start_s",
    "first_backward_s",
    "last_backward_end_s",
)


def equal_stages(
    kind: str,
    stages: int,
    chunks: int,
    micro_batches: int,
    send_s: float = 0.0,
    overlap: bool = True,
) -> PipelineResult:
    """Return the times with 1 s forward and 2 s backward for each rank's layers."""
    count = stages * chunks
    return pipeline_time(
        kind,
        stages,
        chunks,
        micro_batches,
        np.full(count, 1 / chunks),
        np.full(count, 2 / chunks),
        np.full(count - 1, send_s),
        overlap,
    )


# Narayanan et al. 2021, section 2.2: bubble (p - 1) (f + b), divided by v when interleaved
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("stages", "micro_batches"), [(1, 5), (2, 2), (4, 8), (4, 3), (8, 64), (3, 7)]
)
def test_textbook_time_of_1f1b_and_gpipe(stages: int, micro_batches: int, overlap: bool) -> None:
    for kind in ("1f1b", "gpipe"):
        times = equal_stages(kind, stages, 1, micro_batches, overlap=overlap)

        assert times.total_s == pytest.approx((micro_batches + stages - 1) * 3)
        assert times.per_rank_idle_s == pytest.approx(np.full(stages, (stages - 1) * 3.0))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    ("stages", "chunks", "micro_batches"),
    [(2, 2, 4), (4, 2, 8), (4, 3, 12), (8, 4, 64), (4, 2, 400)],
)
def test_textbook_time_of_interleaving(
    stages: int, chunks: int, micro_batches: int, overlap: bool
) -> None:
    times = equal_stages("interleaved_1f1b", stages, chunks, micro_batches, overlap=overlap)
    bubble = float(times.per_rank_idle_s[0] / times.per_rank_busy_s[0])

    assert bubble == pytest.approx((stages - 1) / (chunks * micro_batches))


@pytest.mark.parametrize("micro_batches", [1, 2, 100, 10_000])
def test_one_stage_is_all_compute(micro_batches: int) -> None:
    times = pipeline_time("1f1b", 1, 1, micro_batches, [0.1], [0.2], [], False)

    assert times.total_s == pytest.approx(micro_batches * 0.3)
    assert times.per_rank_idle_s == pytest.approx([0.0], abs=1e-9)
    assert times.first_backward_s == pytest.approx([0.1])


# two stages, two micro-batches, f = 1, b = 2, transfer 0.5:
# overlapped: F0 0-1, rank 1 F0 1.5-2.5 B0 2.5-4.5, F1 4.5-5.5 B1 5.5-7.5; rank 0 B1 8-10
# blocking: F0 0-1, sent 1-1.5; rank 0 F1 1.5-2.5, rank 1 F0 1.5-2.5 B0 2.5-4.5, both exchange
# 4.5-5; rank 1 F1 5-6 B1 6-8, rank 0 B0 5-7, gradient sent 8-8.5, rank 0 B1 8.5-10.5
@pytest.mark.parametrize(("overlap", "total_s"), [(True, 10.0), (False, 10.5)])
def test_transfers_by_hand(overlap: bool, total_s: float) -> None:
    assert equal_stages("1f1b", 2, 1, 2, 0.5, overlap).total_s == pytest.approx(total_s)


def test_measures_by_hand() -> None:
    times = equal_stages("1f1b", 2, 1, 2, 0.5, overlap=True)

    assert times.first_forward_start_s == pytest.approx([0.0, 1.5])
    assert times.first_backward_s == pytest.approx([5.0, 2.5])
    assert times.last_backward_end_s == pytest.approx([10.0, 7.5])
    assert times.per_rank_busy_s == pytest.approx([6.0, 6.0])
    assert times.per_rank_idle_s == pytest.approx([4.0, 4.0])


def test_a_blocking_exchange_costs_each_inner_rank_two_transfers_per_micro_batch() -> None:
    few, many = (equal_stages("1f1b", 4, 1, m, 0.1, overlap=False).total_s for m in (100, 200))

    # f + b + one exchange after each of the two passes
    assert (many - few) / 100 == pytest.approx(3 + 2 * 0.1)


def test_an_overlapped_transfer_costs_only_the_round_trip() -> None:
    few, many = (equal_stages("1f1b", 4, 1, m, 0.1, overlap=True).total_s for m in (100, 200))

    # four micro-batches are under way on a loop of 4 (f + b) and 6 transfers
    assert (many - few) / 100 == pytest.approx(3 + 6 * 0.1 / 4)


def test_interleaving_pays_for_more_transfers() -> None:
    """PTD-P figure 12: the gain shrinks with the batch and is below that of the bubble alone."""
    ratios = []
    for micro_batches in (12, 60):
        plain = equal_stages("1f1b", 12, 1, micro_batches, 0.05, overlap=False).total_s
        chunked = equal_stages(
            "interleaved_1f1b", 12, 2, micro_batches, 0.05, overlap=False
        ).total_s
        ratios.append(float(plain / chunked))

    assert ratios[0] > ratios[1]
    assert ratios[0] < 23 / (12 + 11 / 2)


@dataclass(frozen=True)
class Case:
    """A schedule and its seconds, ``[..., virtual stages]``."""

    kind: str
    stages: int
    chunks: int
    micro_batches: int
    group: int | None
    forward_s: FloatArray
    backward_s: FloatArray
    send_s: FloatArray

    @property
    def passes(self) -> Order:
        return order(self.kind, self.stages, self.micro_batches, self.chunks, self.group)

    def run(self, overlap: bool) -> PipelineResult:
        return pipeline_time(
            self.kind, self.stages, self.chunks, self.micro_batches, self.forward_s,
            self.backward_s, self.send_s, overlap, self.group,
        )  # fmt: skip

    def timeline(self, overlap: bool) -> tuple[FloatArray, FloatArray]:
        times = pipeline_trace(
            self.kind, self.stages, self.chunks, self.micro_batches, self.forward_s,
            self.backward_s, self.send_s, overlap, self.group,
        )  # fmt: skip
        return times.start_s, times.end_s

    def slowly(self) -> tuple[FloatArray, FloatArray]:
        """Return start and end of each pass with overlapped transfers, pass by pass."""
        passes, last = self.passes, self.stages * self.chunks - 1
        stage = passes.virtual_stage()
        ends: dict[tuple[bool, int, int], float] = {}
        start, end = np.zeros(stage.shape), np.zeros(stage.shape)
        at, now = [0] * self.stages, [0.0] * self.stages
        while min(at) < 2 * passes.passes:
            for rank in range(self.stages):
                while (i := at[rank]) < 2 * passes.passes:
                    back, here = bool(passes.backward[rank, i]), int(stage[rank, i])
                    batch, ready = int(passes.micro_batch[rank, i]), now[rank]
                    before = here + 1 if back else here - 1
                    if 0 <= before <= last:
                        if (back, before, batch) not in ends:
                            break
                        ready = max(
                            ready, ends[back, before, batch] + self.send_s[min(before, here)]
                        )
                    start[rank, i] = ready
                    end[rank, i] = ready + (self.backward_s if back else self.forward_s)[here]
                    ends[back, here, batch] = now[rank] = end[rank, i]
                    at[rank] += 1
        return start, end


@st.composite
def cases(draw: st.DrawFn, most: int = 40, candidates: int = 0) -> Case:
    """Draw a schedule; stages are equal, equal but for the last one, or all different."""
    kind = draw(st.sampled_from(["1f1b", "interleaved_1f1b", "gpipe"]))
    stages, micro_batches = draw(st.integers(1, 8)), draw(st.integers(1, most))
    interleaved = kind == "interleaved_1f1b"
    chunks = draw(st.integers(1, 4)) if interleaved and stages > 1 else 1
    group = legal_group(stages, micro_batches) if interleaved else None
    if interleaved and draw(st.booleans()):
        group = micro_batches
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (*((candidates,) if candidates else ()), stages * chunks)
    spread = draw(st.sampled_from([0.0, 0.03, 1.0]))
    forward, backward = (base * (1 + spread * rng.random(shape)) for base in (1.0, 2.0))
    head = draw(st.sampled_from([0.0, 0.5]))
    forward[..., -1] += head
    backward[..., -1] += 2 * head
    slow = 1 + draw(st.sampled_from([0, 9])) * (np.arange(stages * chunks - 1) % 3 == 0)
    send = draw(st.sampled_from([0.0, 0.03, 0.5])) * slow * np.ones((*shape[:-1], 1))
    return Case(kind, stages, chunks, micro_batches, group, forward, backward, send)


@settings(deadline=None)
@given(cases())
def test_the_graph_equals_a_slow_executor(case: Case) -> None:
    start, end = case.slowly()
    found_start, found_end = case.timeline(True)
    times = case.run(True)

    np.testing.assert_allclose(found_start, start, atol=1e-9)
    np.testing.assert_allclose(found_end, end, atol=1e-9)
    first = case.passes.backward.argmax(axis=1)
    assert times.total_s == pytest.approx(end.max())
    assert times.first_forward_start_s == pytest.approx(start[:, 0])
    assert times.first_backward_s == pytest.approx(start[np.arange(case.stages), first])
    assert times.last_backward_end_s == pytest.approx(end[:, -1])


def in_full(case: Case, overlap: bool) -> PipelineResult:
    """Simulate every micro-batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_short_shapes", lambda shape: [shape])
        return case.run(overlap)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_a_short_run_gives_the_long_run_exactly(seed: int, overlap: bool) -> None:
    rng = np.random.default_rng(seed)
    stages, micro_batches = int(rng.integers(1, 9)), int(rng.integers(100, 300))
    chunks = int(rng.integers(1, 4)) if stages > 1 else 1
    kind, group = ("interleaved_1f1b" if chunks > 1 else "1f1b"), None
    if chunks > 1:
        group = legal_group(stages, micro_batches) + seed % 2
        if group_problem(stages, micro_batches, group):
            group -= 1
    spread = rng.choice([0, 0.02, 1.0], size=(5, 1))  # candidates settle at different times
    forward = 1 + spread * rng.random((5, stages * chunks))
    slow = 1.0 + rng.integers(0, 2, size=(5, stages * chunks - 1))
    send = rng.choice([0, 0.05, 0.5], size=(5, 1)) * slow
    case = Case(kind, stages, chunks, micro_batches, group, forward, 2 * forward, send)
    short, full = case.run(overlap), in_full(case, overlap)

    for field in FIELDS:
        tolerance = 1e-10 * float(full.total_s.max())
        np.testing.assert_allclose(
            getattr(short, field), getattr(full, field), rtol=1e-9, atol=tolerance, err_msg=field
        )


def test_a_long_run_is_not_simulated_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated: list[int] = []
    run = pipeline._end_s

    def noted(shape: pipeline.Shape, times: pipeline.Times) -> FloatArray:
        simulated.append(shape.micro_batches)
        return run(shape, times)

    monkeypatch.setattr(pipeline, "_end_s", noted)
    equal_stages("1f1b", 16, 1, 4096, 0.05)
    equal_stages("interleaved_1f1b", 16, 2, 4096, 0.05)

    assert max(simulated) < 100


@settings(deadline=None)
@given(cases(candidates=3), st.booleans())
def test_a_batch_is_each_of_its_members(case: Case, overlap: bool) -> None:
    batch = case.run(overlap)

    assert batch.total_s.shape == (3,)
    assert batch.per_rank_busy_s.shape == (3, case.stages)
    for i in range(3):
        own = (case.forward_s[i], case.backward_s[i], case.send_s[i])
        alone = replace(case, forward_s=own[0], backward_s=own[1], send_s=own[2]).run(overlap)
        for field in FIELDS:
            assert getattr(batch, field)[i] == pytest.approx(getattr(alone, field), abs=1e-9)


@settings(deadline=None)
@given(cases(), st.booleans())
def test_laws_of_time(case: Case, overlap: bool) -> None:
    total_s = case.run(overlap).total_s
    forward, backward, send = case.forward_s, case.backward_s, case.send_s
    doubled = replace(case, forward_s=2 * forward, backward_s=2 * backward, send_s=2 * send)

    assert (case.run(overlap).per_rank_idle_s >= -1e-9).all()
    assert replace(case, send_s=0 * send).run(overlap).total_s <= total_s + 1e-9
    assert replace(case, backward_s=1.5 * backward).run(overlap).total_s >= total_s - 1e-9
    assert doubled.run(overlap).total_s == pytest.approx(2 * total_s)
    # one micro-batch has to go there and back
    assert total_s >= forward.sum() + backward.sum() + 2 * send.sum() - 1e-9


@settings(deadline=None)
@given(cases())
def test_overlap_never_loses(case: Case) -> None:
    assert case.run(True).total_s <= case.run(False).total_s + 1e-9


@settings(deadline=None)
@given(cases(), st.booleans())
def test_a_timeline_has_no_two_passes_at_once_on_a_rank(case: Case, overlap: bool) -> None:
    start, end = case.timeline(overlap)

    assert start.shape == case.passes.backward.shape
    assert (start[:, 1:] >= end[:, :-1] - 1e-9).all()
    assert end.max() == pytest.approx(case.run(overlap).total_s)


@pytest.mark.parametrize(
    ("forward", "send", "text"),
    [
        (3, 3, r"forward_s has the shape \(3,\); its last axis must be 4"),
        (4, 4, "send_s has the shape"),
    ],
)
def test_wrong_shapes_are_named(forward: int, send: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pipeline_time("1f1b", 4, 1, 8, np.ones(forward), np.ones(4), np.zeros(send), True)


def test_illegal_schedules_are_refused() -> None:
    with pytest.raises(LayoutError, match="last group of 2"):
        pipeline_time("interleaved_1f1b", 4, 2, 10, np.ones(8), np.ones(8), np.zeros(7), True)
