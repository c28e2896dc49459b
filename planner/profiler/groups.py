"""Which groups of ranks to measure: every kind of group a layout can form, all siblings at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class GroupKind:
    """Groups of equal shape that cover the job, so that they share links as in training.

    ``level`` is ``domain`` if each group lies within one scale-up fabric, else ``cluster``;
    ``ranks_per_node`` is how many ranks of one group sit on each node.
    """

    ranks: int
    level: Literal["domain", "cluster"]
    ranks_per_node: int
    members: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """A short name for progress and errors."""
        return f"{self.ranks} ranks, {self.ranks_per_node} per node, in one {self.level}"


def group_kinds(
    world_size: int, ranks_per_node: int, domain_ranks: int, degrees: Sequence[int] = ()
) -> tuple[GroupKind, ...]:
    """Return the kinds of groups to measure, smallest first.

    Inside a domain: neighbours in powers of two, the whole domain, and ``degrees`` such as the
    tensor-parallel one. Across domains: one rank per node in two nodes and in all (a rail each),
    and whole nodes together.
    """
    kinds = {}
    domain = min(domain_ranks, world_size)
    powers = [2**power for power in range(1, domain.bit_length())]
    for ranks in sorted({*powers, domain, *degrees}):
        # a node or domain that is no multiple would leave some groups on both sides of its border
        even = ranks % ranks_per_node == 0 or ranks_per_node % ranks == 0
        if 1 < ranks <= domain and domain % ranks == 0 and world_size % ranks == 0 and even:
            blocks = _blocks(world_size, ranks)
            per_node = min(ranks, ranks_per_node)
            kinds[blocks] = GroupKind(ranks, "domain", per_node, blocks)
    nodes = world_size // ranks_per_node
    for count in sorted({2, nodes}):
        if count > 1 and nodes % count == 0 and count * ranks_per_node > domain:
            rails = _rails(world_size, ranks_per_node, count)
            kinds[rails] = GroupKind(count, "cluster", 1, rails)
            whole = _blocks(world_size, count * ranks_per_node)
            kinds[whole] = GroupKind(count * ranks_per_node, "cluster", ranks_per_node, whole)
    return tuple(kinds.values())


def _blocks(world_size: int, ranks: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(low, low + ranks)) for low in range(0, world_size, ranks))


def _rails(world_size: int, ranks_per_node: int, nodes: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of the ranks with the same place on each of ``nodes`` neighbouring nodes."""
    span = nodes * ranks_per_node
    return tuple(
        tuple(range(low + place, low + span, ranks_per_node))
        for low in range(0, world_size, span)
        for place in range(ranks_per_node)
    )
