"""Zero-bubble schedules: the papers' orders, counts and bubbles, and laws for all shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import LayoutError
from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.kinds import CROSSED, KINDS, SPLIT, rank_of, stage_of
from planner.schedule.orders import order
from planner.schedule.passes import Order, in_flight
from planner.schedule.zero_bubble import held_back
from planner.simulate.pipeline import pipeline_time
from tests.properties.strategies import quick


def chunks_of(kind: str) -> int:
    return KINDS[kind].chunks


def made(kind: str, stages: int, micro_batches: int, delay: int | None = None) -> Order:
    return order(kind, stages, micro_batches, chunks_of(kind), delay=delay)


def written(order: Order, rank: int) -> str:
    """Return the passes of one rank as ``F0 B0 W0``, the second chunk in lower case."""
    what = order.backward[rank] + 2 * order.weight[rank]
    return " ".join(
        ("FBW", "fbw")[chunk][kind] + str(micro_batch)
        for kind, micro_batch, chunk in zip(
            what, order.micro_batch[rank], order.chunk[rank], strict=True
        )
    )


# by hand from the rules of Qi et al. 2024, section 2: rank 0 holds nothing back, the last rank two
# weight gradients in H1 and four in H2, whose first rank warms up with 2 p - 1 passes
BY_HAND = [
    ("zb_h1", 0, "F0 F1 F2 B0 W0 F3 B1 W1 F4 B2 W2 F5 B3 W3 B4 W4 B5 W5"),
    ("zb_h1", 1, "F0 F1 B0 F2 B1 W0 F3 B2 W1 F4 B3 W2 F5 B4 W3 B5 W4 W5"),
    ("zb_h1", 2, "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 F4 B4 W2 F5 B5 W3 W4 W5"),
    ("zb_h2", 0, "F0 F1 F2 F3 F4 B0 W0 F5 B1 W1 B2 W2 B3 W3 B4 W4 B5 W5"),
    ("zb_h2", 2, "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 W0 F5 B5 W1 W2 W3 W4 W5"),
]


@pytest.mark.parametrize(("kind", "rank", "passes"), BY_HAND)
def test_orders_by_hand(kind: str, rank: int, passes: str) -> None:
    assert written(made(kind, 3, 6), rank) == passes


def test_the_v_turns_round_on_the_last_rank() -> None:
    assert written(made("zb_v", 2, 3), 0) == "F0 F1 F2 f0 b0 w0 f1 b1 w1 B0 W0 f2 b2 w2 B1 W1 B2 W2"
    assert written(made("zb_v", 2, 3), 1) == "F0 f0 F1 f1 b0 w0 F2 B0 W0 f2 b1 w1 B1 b2 B2 W1 w2 W2"
    assert stage_of("zb_v", 3, 2).tolist() == [[0, 1, 2], [5, 4, 3]]
    assert rank_of("zb_v", 3, 2).tolist() == [0, 1, 2, 2, 1, 0]
    assert rank_of("interleaved_1f1b", 3, 2).tolist() == [0, 1, 2, 0, 1, 2]


def idle_s(
    kind: str, stages: int, micro_batches: int, seconds: tuple[float, float, float]
) -> float:
    """Return the longest idle time of a rank between its first and last pass, no transfers."""
    chunks = chunks_of(kind)
    forward, backward, weight = (np.full(stages * chunks, each / chunks) for each in seconds)
    send = np.zeros(stages * chunks - 1)
    times = pipeline_time(
        kind, stages, chunks, micro_batches, forward, backward, send, True, weight_s=weight
    )
    span = times.last_backward_end_s - times.first_forward_start_s
    return float((span - times.per_rank_busy_s).max())


# Qi et al. 2024, table 1: H1 (p - 1) (F + B - W), H2 (p - 1) (F + B - 2 W); section 6: V none
@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (1.2, 1.3, 0.7), (1.0, 1.1, 0.9)])
@pytest.mark.parametrize(("stages", "times"), [(2, 2), (3, 2), (4, 3), (8, 2), (8, 8)])
def test_textbook_bubbles(stages: int, times: int, seconds: tuple[float, float, float]) -> None:
    forward, backward, weight = seconds
    micro_batches = times * stages + (times - 1)

    for kind, held in (("zb_h1", 1), ("zb_h2", 2)):
        bubble = (stages - 1) * (forward + backward - held * weight)
        assert idle_s(kind, stages, micro_batches, seconds) == pytest.approx(bubble, abs=1e-9)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("times", [2, 3, 8])
def test_the_v_has_no_bubble_where_passes_are_equal(stages: int, times: int) -> None:
    assert idle_s("zb_v", stages, times * stages, (1.0, 1.0, 1.0)) == pytest.approx(0, abs=1e-9)


def test_holding_back_more_hides_what_h2_leaves() -> None:
    """With (p - 1) (F + B) / W weight gradients held back nothing is left to wait for."""
    stages, micro_batches, (forward, backward, weight) = 8, 64, (1.5, 1.5, 1.0)
    times = {
        delay: pipeline_time(
            "zb_2p", stages, 1, micro_batches, np.full(8, forward), np.full(8, backward),
            np.zeros(7), True, weight_s=np.full(8, weight), delay=delay,
        )
        for delay in (14, 21)
    }  # fmt: skip
    idle = {
        delay: (t.last_backward_end_s - t.first_forward_start_s - t.per_rank_busy_s).max()
        for delay, t in times.items()
    }

    assert idle[14] == pytest.approx(7 * (forward + backward - 2 * weight))
    assert idle[21] == pytest.approx(0, abs=1e-9)


@st.composite
def split_orders(draw: st.DrawFn) -> Order:
    kind = draw(st.sampled_from(SPLIT))
    even = 2 if KINDS[kind].placement == CROSSED else 1
    stages, micro_batches = even * draw(st.integers(1, 7)), even * draw(st.integers(1, 24))
    delay = draw(st.integers(0, 30)) if kind == "zb_2p" else None
    return made(kind, stages, micro_batches, delay)


@quick
@given(split_orders())
def test_every_pass_runs_once_and_w_after_b_after_f(made: Order) -> None:
    what = made.backward + 2 * made.weight
    number = np.ravel_multi_index((what, made.micro_batch, made.chunk),
                                  (3, made.micro_batches, made.chunks))  # fmt: skip
    place = np.argsort(number, axis=1).reshape(made.stages, 3, -1)

    assert made.length == 3 * made.passes
    assert (np.sort(number, axis=1) == np.arange(made.length)).all()
    assert (np.diff(place, axis=1) > 0).all()


@quick
@given(split_orders())
def test_warm_up_is_what_stands_before_the_first_backward(made: Order) -> None:
    first = made.backward.argmax(axis=1)

    assert (made.warm_up <= first).all()
    assert (first - made.warm_up <= 1).all()


# table 1 of the paper: p and 2 p - 1 micro-batches; V: p, each of two chunk passes
@pytest.mark.parametrize("kind", ["zb_h1", "zb_h2", "zb_v"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 15, 24, 32])
def test_closed_forms_are_the_peaks_of_the_orders(
    kind: str, stages: int, micro_batches: int
) -> None:
    chunks = chunks_of(kind)
    kept = in_flight(made(kind, stages, micro_batches))
    forms = [
        peak_chunk_passes(stages, chunks, micro_batches, rank, schedule=kind)
        for rank in range(stages)
    ]

    assert (kept <= forms).all()
    if micro_batches >= 2 * stages - 1:
        assert kept.tolist() == forms


def test_gpipe_keeps_every_micro_batch() -> None:
    assert [peak_chunk_passes(4, 1, 9, rank, schedule="gpipe") for rank in range(4)] == [9] * 4


def test_what_is_held_back() -> None:
    assert held_back("zb_h1", 4).tolist() == [0, 1, 2, 3]
    assert held_back("zb_h2", 4).tolist() == [0, 2, 4, 6]
    assert held_back("zb_2p", 4, 10).tolist() == [0, 3, 6, 10]
    assert held_back("zb_h1", 1).tolist() == [0]


@pytest.mark.parametrize(
    ("kind", "chunks", "text"),
    [
        ("zb_v", 1, "zb_v has 2 chunks per rank, not 1; use chunks=2"),
        ("zb_h1", 2, "zb_h1 has one chunk per rank, not 2"),
    ],
)
def test_illegal_chunks_are_refused(kind: str, chunks: int, text: str) -> None:
    with pytest.raises(LayoutError, match=text):
        order(kind, 4, 8, chunks)
