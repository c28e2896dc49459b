"""The closed forms against the orders that are really run."""

import pytest

from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.orders import in_flight, interleaved, legal_group, one_f_one_b


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
