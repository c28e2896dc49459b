"""The closed forms against the orders that are really run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.orders import interleaved, legal_group, one_f_one_b, order
from planner.schedule.passes import in_flight, kept_moments
from tests.properties.strategies import quick


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8, 15, 24, 32])
def test_closed_forms_are_the_peaks_of_the_orders(stages: int, micro_batches: int) -> None:
    plain = [peak_chunk_passes(stages, 1, micro_batches, rank) for rank in range(stages)]
    assert in_flight(one_f_one_b(stages, micro_batches)).tolist() == plain

    group = legal_group(stages, micro_batches)
    for chunks in range(2, 5) if stages > 1 else ():
        made = interleaved(stages, micro_batches, chunks, group)
        kept = [
            peak_chunk_passes(stages, chunks, micro_batches, rank, group) for rank in range(stages)
        ]
        assert in_flight(made).tolist() == kept


# Korthikanti et al. 2022, section 4.2.3: 1 + (p - 1) / (p v) times the activations of all layers
@pytest.mark.parametrize(("stages", "chunks"), [(8, 3), (35, 3), (64, 2), (4, 2)])
def test_rank_0_of_the_paper(stages: int, chunks: int) -> None:
    kept = peak_chunk_passes(stages, chunks, 10 * stages, 0)

    assert kept / (stages * chunks) == pytest.approx(1 + (stages - 1) / (stages * chunks))
    assert peak_chunk_passes(stages, 1, 10 * stages, 0) == stages


def test_few_micro_batches_bound_what_is_kept() -> None:
    assert peak_chunk_passes(8, 2, 1, 0) == 2
    assert peak_chunk_passes(8, 1, 3, 0) == 3


@quick
@given(st.integers(1, 16), st.integers(1, 6), st.integers(1, 8))
def test_closed_form_of_legal_layouts(stages: int, chunks: int, rounds: int) -> None:
    """Whole rounds of as many micro-batches as stages: what layouts allow with chunks."""
    chunks = chunks if stages > 1 else 1
    kind = "1f1b" if chunks == 1 else "interleaved_1f1b"

    kept = in_flight(order(kind, stages, rounds * stages, chunks))

    forms = [peak_chunk_passes(stages, chunks, rounds * stages, rank) for rank in range(stages)]
    assert kept.tolist() == forms


@quick
@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 6))
def test_closed_form_is_the_fullest_moment(stages: int, chunks: int, rounds: int) -> None:
    """``kept_moments`` counts each virtual stage apart; a rank's largest sum is the closed form."""
    kind = "1f1b" if chunks == 1 else "interleaved_1f1b"
    moments = kept_moments(order(kind, stages, rounds * stages, chunks))

    by_rank = moments.reshape(len(moments), chunks, stages).sum(axis=1).max(axis=0)

    forms = [peak_chunk_passes(stages, chunks, rounds * stages, rank) for rank in range(stages)]
    assert by_rank.tolist() == forms


@quick
@given(st.integers(1, 32), st.integers(1, 8), st.integers(1, 128))
def test_earlier_ranks_keep_no_less(stages: int, chunks: int, micro_batches: int) -> None:
    kept = [peak_chunk_passes(stages, chunks, micro_batches, rank) for rank in range(stages)]

    assert kept == sorted(kept, reverse=True)
    assert kept[-1] >= 1
    assert kept[0] <= chunks * micro_batches


@quick
@given(st.integers(1, 32), st.integers(1, 8), st.integers(1, 127))
def test_more_micro_batches_keep_no_less(stages: int, chunks: int, micro_batches: int) -> None:
    few, many = (
        peak_chunk_passes(stages, chunks, count, 0) for count in (micro_batches, micro_batches + 1)
    )

    assert few <= many
