"""Orders of passes: counts of the papers, structure by hand, and laws for all shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import LayoutError
from planner.schedule.orders import (
    checked_group,
    gpipe,
    group_problem,
    interleaved,
    legal_group,
    one_f_one_b,
    order,
)
from planner.schedule.passes import Order, in_flight, kept_moments, kept_peak
from tests.properties.strategies import quick


def written(order: Order, rank: int) -> str:
    """Return the passes of one rank as ``F0 B0``, with ``.chunk`` if there are chunks."""
    passes = zip(order.backward[rank], order.micro_batch[rank], order.chunk[rank], strict=True)
    dot = "." if order.chunks > 1 else ""
    return " ".join(
        ("B" if back else "F") + str(micro_batch) + (dot and f"{dot}{chunk}")
        for back, micro_batch, chunk in passes
    )


def is_executable(order: Order) -> bool:
    """Run the order like machines that block: each rank goes on when its input is there."""
    last = order.stages * order.chunks - 1
    stage = order.virtual_stage()
    done: set[tuple[bool, int, int]] = set()
    at = [0] * order.stages
    moved = True
    while moved:
        moved = False
        for rank in range(order.stages):
            while at[rank] < 2 * order.passes:
                backward = bool(order.backward[rank, at[rank]])
                here = int(stage[rank, at[rank]])
                batch = int(order.micro_batch[rank, at[rank]])
                needs = {(False, here, batch)} if backward else set()
                if backward and here < last:
                    needs.add((True, here + 1, batch))
                if not backward and here > 0:
                    needs.add((False, here - 1, batch))
                if not needs <= done:
                    break
                done.add((backward, here, batch))
                at[rank] += 1
                moved = True
    return all(place == 2 * order.passes for place in at)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Draw any legal order with up to 6 stages, 3 chunks and 20 micro-batches."""
    stages, micro_batches = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    kind = draw(st.sampled_from(["1f1b", "gpipe", "interleaved_1f1b"]))
    if kind != "interleaved_1f1b":
        return order(kind, stages, micro_batches)
    groups = range(min(stages, micro_batches), micro_batches + 1)
    legal = [group for group in groups if group_problem(stages, micro_batches, group) is None]
    chunks = draw(st.integers(1, 3)) if stages > 1 else 1
    return interleaved(stages, micro_batches, chunks, draw(st.sampled_from(legal)))


# PTD-P figure 4 (top): 1F1B with 4 stages and 8 micro-batches
FIGURE_4 = [
    "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7",
    "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7",
    "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7",
    "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7",
]


@pytest.mark.parametrize("rank", range(4))
def test_1f1b_is_figure_4_of_the_paper(rank: int) -> None:
    assert written(one_f_one_b(4, 8), rank) == FIGURE_4[rank]


# by hand from Megatron's get_schedule_table: warm-up of rank i is 2 (p - i - 1) + (v - 1) g
INTERLEAVED = [
    (2, 4, 2, 2, 0, "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0",
     "B2.1 B3.1 B2.0 B3.0"),
    (2, 4, 2, 2, 1, "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1",
     "B2.0 B3.0"),
    # all micro-batches in one group, larger than the pipeline
    (2, 3, 2, 3, 1, "F0.0 F1.0 F2.0 F0.1 B0.1 F1.1 B1.1 F2.1 B2.1", "B0.0 B1.0 B2.0"),
    # a last group of 2 after a group of 3
    (2, 5, 2, 3, 1, "F0.0 F1.0 F2.0 F0.1 B0.1 F1.1 B1.1 F2.1 B2.1 F3.0 B0.0 F4.0 B1.0 F3.1 B2.0",
     "F4.1 B3.1 B4.1 B3.0 B4.0"),
    # fewer micro-batches than stages: everything is warm-up on rank 0
    (3, 2, 2, 2, 0, "F0.0 F1.0 F0.1 F1.1", "B0.1 B1.1 B0.0 B1.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "micro_batches", "chunks", "group", "rank", "most", "rest"), INTERLEAVED
)
def test_interleaved_by_hand(
    stages: int, micro_batches: int, chunks: int, group: int, rank: int, most: str, rest: str
) -> None:
    assert written(interleaved(stages, micro_batches, chunks, group), rank) == f"{most} {rest}"


def test_gpipe_runs_all_forward_passes_first() -> None:
    assert {written(gpipe(3, 3), rank) for rank in range(3)} == {"F0 F1 F2 B0 B1 B2"}


# Narayanan et al. 2021, section 2.2; Korthikanti et al. 2022, section 4.2.3
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 5, 8, 33])
def test_1f1b_keeps_as_many_micro_batches_as_stages_follow(stages: int, micro_batches: int) -> None:
    kept = [min(micro_batches, stages - rank) for rank in range(stages)]

    assert in_flight(one_f_one_b(stages, micro_batches)).tolist() == kept
    assert in_flight(gpipe(stages, micro_batches)).tolist() == [micro_batches] * stages


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("chunks", [2, 3, 5])
@pytest.mark.parametrize("times", [3, 4])
def test_interleaving_keeps_1_plus_p_minus_1_over_pv_of_the_layers(
    stages: int, chunks: int, times: int
) -> None:
    kept = in_flight(interleaved(stages, times * stages, chunks))

    assert kept[0] == 2 * (stages - 1) + (chunks - 1) * stages + 1
    # one chunk pass holds L / (p v) layers: rank 0 holds 1 + (p - 1) / (p v) times L layers
    layers = kept[0] / (stages * chunks)
    assert layers == pytest.approx(1 + (stages - 1) / (stages * chunks))
    assert kept.tolist() == [kept[0] - 2 * rank for rank in range(stages)]


def test_a_larger_group_keeps_more() -> None:
    kept = [in_flight(interleaved(4, 24, 3, group))[0] for group in (4, 6, 8, 12)]

    assert kept == [2 * 3 + 2 * group + 1 for group in (4, 6, 8, 12)]


def test_kept_peak_weighs_chunks() -> None:
    made = interleaved(2, 4, 2)
    # rank 0 keeps 5 passes; rank 1 keeps F0.0 F1.0 F2.0 of chunk 0 before B0.0, and none of chunk 1
    peak = kept_peak(made, np.array([[1.0, 1.0], [10.0, 1.0]]))

    assert peak.tolist() == [5.0, 30.0]


@given(orders())
def test_every_pass_runs_once_on_its_rank(made: Order) -> None:
    number = np.ravel_multi_index(
        (made.backward.astype(int), made.micro_batch, made.chunk),
        (2, made.micro_batches, made.chunks),
    )

    assert made.backward.shape == (made.stages, 2 * made.passes)
    assert (np.sort(number, axis=1) == np.arange(2 * made.passes)).all()


@given(orders())
def test_every_order_can_be_executed(made: Order) -> None:
    assert is_executable(made)


@given(orders())
def test_warm_up_counts_the_forward_passes_before_the_first_backward(made: Order) -> None:
    first_backward = made.backward.argmax(axis=1)
    # a steady state puts one forward pass in front of its first backward pass
    steady = made.warm_up < made.passes

    assert (first_backward == made.warm_up + steady).all()


@given(orders())
def test_in_flight_falls_along_the_pipeline_and_is_at_least_one(made: Order) -> None:
    kept = in_flight(made)

    assert (np.diff(kept) <= 0).all()
    assert kept[-1] >= 1
    assert kept[0] <= made.passes


@given(orders())
def test_orders_are_shared_and_read_only(made: Order) -> None:
    with pytest.raises(ValueError, match="read-only"):
        made.backward[0, 0] = True


ILLEGAL = [
    ("zero_bubble", 4, 8, 1, None, "'zero_bubble' is not a schedule; use one of 1f1b"),
    ("1f1b", 0, 8, 1, None, "stages=0"),
    ("gpipe", 4, 0, 1, None, "micro_batches=0"),
    ("1f1b", 4, 8, 2, None, "1f1b has one chunk per rank, not 2; use interleaved_1f1b"),
    ("interleaved_1f1b", 1, 8, 2, None, "one stage cannot be interleaved"),
    ("interleaved_1f1b", 4, 10, 2, None, "leave a last group of 2, fewer than the 4 stages; use 5"),
    ("interleaved_1f1b", 4, 8, 2, 9, "group 9 is not between 4"),
    ("interleaved_1f1b", 4, 8, 2, 3, "group 3 is not between 4"),
    ("interleaved_1f1b", 8, 4, 2, 3, "group 3 is not between 4"),
    ("interleaved_1f1b", 4, 7, 2, None, "use 7"),
]


@pytest.mark.parametrize(("kind", "stages", "micro_batches", "chunks", "group", "text"), ILLEGAL)
def test_illegal_numbers_are_refused_with_a_remedy(
    kind: str, stages: int, micro_batches: int, chunks: int, group: int | None, text: str
) -> None:
    with pytest.raises(LayoutError, match=text):
        order(kind, stages, micro_batches, chunks, group)


# Megatron: stages <= group <= micro_batches, and micro_batches % group == 0 or >= stages
@pytest.mark.parametrize(
    ("stages", "micro_batches", "legal"),
    [(4, 16, 4), (4, 17, 6), (4, 7, 7), (4, 9, 5), (4, 10, 5), (8, 4, 4), (2, 3, 3), (4, 6, 6)],
)
def test_smallest_legal_group(stages: int, micro_batches: int, legal: int) -> None:
    assert legal_group(stages, micro_batches) == legal


@given(st.integers(1, 16), st.integers(1, 64))
def test_the_suggested_group_is_always_legal(stages: int, micro_batches: int) -> None:
    suggested = legal_group(stages, micro_batches)

    assert group_problem(stages, micro_batches, suggested) is None
    smaller = range(min(stages, micro_batches), suggested)
    assert all(group_problem(stages, micro_batches, group) for group in smaller)


def test_schedules_without_chunks_have_groups_of_one() -> None:
    assert checked_group("1f1b", 4, 7, 1) == 1
    assert checked_group("interleaved_1f1b", 4, 8, 2) == 4
    assert checked_group("interleaved_1f1b", 8, 4, 2) == 4


@quick
@given(orders(), st.integers(0, 2**32))
def test_kept_moments_give_the_peak_whatever_chunks_weigh(made: Order, seed: int) -> None:
    weights = np.random.default_rng(seed).random((made.stages, made.chunks))
    moments = kept_moments(made).reshape(-1, made.chunks, made.stages)
    peak = (moments * weights.T).sum(axis=1).max(axis=0)

    assert peak == pytest.approx(kept_peak(made, weights))


def test_few_moments_matter() -> None:
    assert len(kept_moments(one_f_one_b(16, 512))) == 1
    assert len(kept_moments(interleaved(16, 512, 4))) <= 4
