"""How many passes a rank keeps until their last backward pass: closed forms of the papers.

``tests/schedule`` compares them with the generated orders.
"""


def peak_chunk_passes(
    stages: int,
    chunks: int,
    micro_batches: int,
    rank: int,
    group: int | None = None,
    schedule: str = "",
) -> int:
    """Largest number of chunk passes alive on ``rank`` (0 first), each of one chunk's layers.

    1F1B: ``min(m, p - i)``. Interleaved: warm-up ``2 (p - i - 1) + (v - 1) g`` and one more, with
    groups of ``g`` micro-batches, as many as stages unless given (PTD-P, 2.2). GPipe: ``m``. With
    W passes a pass is alive until its weight gradient (Qi et al. 2024, table 1): ``p`` for
    ``zb_h1``, ``2 p - 1`` for ``zb_h2`` and ``zb_2p``, ``2 p`` of half a rank's layers for
    ``zb_v``, on every rank. ``schedule`` is empty for 1F1B, interleaved with chunks.
    """
    most = chunks * micro_batches
    if schedule == "gpipe":
        return most
    if schedule.startswith("zb_"):
        return min(most, {"zb_h1": stages, "zb_v": 2 * stages}.get(schedule, 2 * stages - 1))
    if chunks == 1:
        return min(micro_batches, stages - rank)
    group = min(stages, micro_batches) if group is None else group
    warm_up = 2 * (stages - rank - 1) + (chunks - 1) * group + 1
    return min(most, warm_up)
