"""How many passes a rank keeps between forward and backward: closed forms of PTD-P, 2.2.

``tests/schedule`` compares them with the generated orders.
"""


def peak_chunk_passes(
    stages: int, chunks: int, micro_batches: int, rank: int, group: int | None = None
) -> int:
    """Largest number of chunk passes alive on ``rank`` (0 first), each of one chunk's layers.

    1F1B: ``min(m, p - i)``. Interleaved: warm-up ``2 (p - i - 1) + (v - 1) g`` and one more, with
    groups of ``g`` micro-batches, as many as stages unless given.
    """
    if chunks == 1:
        return min(micro_batches, stages - rank)
    group = min(stages, micro_batches) if group is None else group
    warm_up = 2 * (stages - rank - 1) + (chunks - 1) * group + 1
    return min(chunks * micro_batches, warm_up)
