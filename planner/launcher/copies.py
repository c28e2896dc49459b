"""Which experts get copies on which ranks (Hecate, arXiv 2502.02581, Algorithm 1).

The planner prices what these say and the launcher does it. No torch is imported.
"""

from collections.abc import Sequence
from math import ceil


def materialised(
    loads: Sequence[float], ranks: int, hidden_experts: int, slots: int
) -> tuple[int, ...]:
    """Return the copies of each expert (Algorithm 1).

    ``hidden_experts`` can be gathered behind the rest of a layer, ``slots`` is the room of a rank.
    Where time is short, the most loaded go to all ranks; where room is, all slots are dealt in
    proportion to load, to the expert with the most tokens for each copy first.
    """
    experts = len(loads)
    by_load = sorted(range(experts), key=lambda one: -loads[one])
    if hidden_experts <= slots:
        everywhere = set(by_load[:hidden_experts])
        return tuple(ranks if one in everywhere else 1 for one in range(experts))
    copies = [1] * experts
    for _ in range(ranks * min(slots, experts - ceil(experts / ranks))):
        open_ones = [one for one in range(experts) if copies[one] < ranks]
        if not open_ones:
            break
        copies[max(open_ones, key=lambda one: loads[one] / copies[one])] += 1
    return tuple(copies)


def holders(copies: Sequence[int], ranks: int, node: int) -> list[set[int]]:
    """Return the ranks of each expert: its home, then those with most free slots, new nodes first.

    Experts with more copies choose first (Algorithm 1).
    """
    each = len(copies) / ranks
    found = [{int(expert // each)} for expert in range(len(copies))]
    taken = [0] * ranks
    for expert in sorted(range(len(copies)), key=lambda one: -copies[one]):
        mine = found[expert]
        while len(mine) < copies[expert]:
            nodes = {rank // node for rank in mine}
            best = min(
                (rank for rank in range(ranks) if rank not in mine),
                key=lambda rank: (taken[rank], rank // node in nodes, rank),
            )
            taken[best] += 1
            mine.add(best)
    return found
