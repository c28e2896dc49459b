"""Uneven routing, and experts materialised on more ranks than their own (FSSDP).

Hecate (arXiv 2502.02581): every expert has a home rank that keeps its optimizer state; in each pass
the most loaded experts are copied to other ranks, which send their gradients back. Loads are shares
of all routed tokens, by expert, ``[E]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from planner.launcher.copies import holders


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the tokens of a layer go.

    ``fullest``: tokens of the fullest rank ÷ the mean. ``exchanged``: tokens that the rank with the
    most receives from others ÷ the same with balanced routing. ``copies`` ``[E]`` counts the ranks
    that hold each expert, its home included.
    """

    fullest: float
    exchanged: float
    copies: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """Copies beside the home, for each expert: the paper's lambda."""
        return sum(self.copies) / len(self.copies) - 1


def zipf_loads(experts: int, exponent: float, seed: int = 0) -> tuple[float, ...]:
    """Return loads in proportion to ``rank ** -exponent``, dealt to the experts at random."""
    loads = [rank**-exponent for rank in range(1, experts + 1)]
    Random(seed).shuffle(loads)
    total = sum(loads)
    return tuple(load / total for load in loads)


def zipf_exponent(experts: int, ranks: int, fullest: float) -> float:
    """Return the exponent at which the fullest rank of static placement has ``fullest`` means.

    ``ranks`` caps what is possible: one rank that has everything.
    """
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if placed(zipf_loads(experts, middle), ranks).fullest < fullest:
            low = middle
        else:
            high = middle
    return high


def placed(
    loads: Sequence[float], ranks: int, copies: Sequence[int] | None = None, node: int = 8
) -> Balance:
    """Return the balance of experts held by ``copies`` ranks each (one: static placement).

    Tokens stay on a rank that holds their expert; the others are split evenly over its holders, so
    each processes ``load / copies`` and receives ``load (1 / copies - 1 / ranks)``.
    """
    many = tuple(copies) if copies is not None else (1,) * len(loads)
    work, received = [0.0] * ranks, [0.0] * ranks
    for load, count, found in zip(loads, many, holders(many, ranks, node), strict=True):
        for rank in found:
            work[rank] += load / count
            received[rank] += load * (1 / count - 1 / ranks)
    balanced = (1 - 1 / ranks) / ranks
    exchanged = max(received) / balanced if ranks > 1 else 1.0
    return Balance(max(work) * ranks, exchanged, many)
