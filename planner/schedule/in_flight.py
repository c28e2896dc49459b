"""How many passes a rank keeps until their last backward pass: closed forms of the papers.

``tests/schedule`` compares them with the generated orders.
"""

from planner.schedule.kinds import kind_of


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
    W passes a pass is alive until its weight gradient, and the number is that of the fullest rank:
    of all layers of a rank ``p`` for ``zb_h1``, ``2 p - 1`` for ``zb_h2`` and ``zb_2p`` (Qi et al.
    2024, table 1); of half of them ``2 p`` for ``zb_v``, twice ``(p + 2) // 2`` for ``v_half`` and
    ``(p + 4) // 3`` for ``v_min`` (arXiv 2405.15362, table 1), the number of stages and one for
    DualPipe (its README). ``schedule`` is empty for 1F1B, interleaved with chunks.
    """
    pipelines = kind_of(schedule).pipelines if schedule else 1
    most = chunks * (micro_batches // pipelines)
    if schedule == "gpipe":
        return most
    split = {
        "zb_h1": stages,
        "zb_h2": 2 * stages - 1,
        "zb_2p": 2 * stages - 1,
        "zb_v": 2 * stages,
        "v_half": 2 * ((stages + 2) // 2),
        "v_min": 2 * ((stages + 4) // 3),
        "dualpipe": stages + 1,
        "dualpipe_v": 2 * stages + 1,
    }
    if schedule in split:
        return min(most, split[schedule])
    if chunks == 1:
        return min(micro_batches, stages - rank)
    group = min(stages, micro_batches) if group is None else group
    warm_up = 2 * (stages - rank - 1) + (chunks - 1) * group + 1
    return min(most, warm_up)
