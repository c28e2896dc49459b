"""Shardings whose group sizes differ by tensor class, along the levels of the links."""

from planner.layout.layout import Shard


def levels(ranks: int, inside: int) -> list[Shard]:
    """Return what keeps exchanges of each micro-batch inside a domain of ``inside`` ranks.

    ZeRO++'s second copy of the weights (arXiv 2306.10209), and three levels (arXiv 2501.04266) with
    weights whole, or shared in the domain: only the step's own exchanges cross domains then.
    """
    return [
        Shard(ranks, ranks, ranks, inside),
        Shard(inside, inside, ranks),
        Shard(1, inside, ranks),
    ]
