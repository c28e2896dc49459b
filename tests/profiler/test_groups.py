"""Which groups are measured: by hand for common machines, and laws for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.profiler.groups import GroupKind, group_kinds


def summary(kinds: tuple[GroupKind, ...]) -> list[tuple[int, str, int, int]]:
    """Return ranks, level, ranks per node and number of groups of each kind."""
    return [(k.ranks, k.level, k.ranks_per_node, len(k.members)) for k in kinds]


MACHINES = [
    # one process: nothing to measure; two; a node of eight
    (1, 1, 1, (), []),
    (2, 2, 2, (), [(2, "domain", 2, 1)]),
    (8, 8, 8, (), [(2, "domain", 2, 4), (4, "domain", 4, 2), (8, "domain", 8, 1)]),
    # six GPUs, and a degree that is no power of two
    (6, 6, 6, (3,), [(2, "domain", 2, 3), (3, "domain", 3, 2), (6, "domain", 6, 1)]),
    # a degree that does not divide the domain forms no group
    (4, 4, 4, (3,), [(2, "domain", 2, 2), (4, "domain", 4, 1)]),
    # bridged pairs inside a node of four: the rest of the node is no network
    (4, 4, 2, (), [(2, "domain", 2, 2)]),
    # nodes of three in one fabric: no pair lies the same way for all
    (6, 3, 6, (), [(6, "domain", 3, 1)]),
    # two nodes of two: rails between the nodes, and both nodes together
    (4, 2, 2, (), [(2, "domain", 2, 2), (2, "cluster", 1, 2), (4, "cluster", 2, 1)]),
    # four nodes of two: rails and nodes in pairs, then all
    (8, 2, 2, (), [(2, "domain", 2, 4), (2, "cluster", 1, 4), (4, "cluster", 2, 2),
                   (4, "cluster", 1, 2), (8, "cluster", 2, 1)]),
    # a fabric over four nodes of two (NVL72 in small)
    (8, 2, 8, (), [(2, "domain", 2, 4), (4, "domain", 2, 2), (8, "domain", 2, 1)]),
]  # fmt: skip


@pytest.mark.parametrize(("world_size", "per_node", "domain", "degrees", "expected"), MACHINES)
def test_kinds_by_hand(
    world_size: int,
    per_node: int,
    domain: int,
    degrees: tuple[int, ...],
    expected: list[tuple[int, str, int, int]],
) -> None:
    assert summary(group_kinds(world_size, per_node, domain, degrees)) == expected


def test_rails_connect_the_same_place_on_each_node() -> None:
    kinds = group_kinds(8, 4, 4)
    rails = next(kind for kind in kinds if kind.level == "cluster" and kind.ranks_per_node == 1)

    assert rails.members == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert rails.name == "2 ranks, 1 per node, in one cluster"


@given(
    nodes=st.integers(1, 6),
    per_node=st.integers(1, 8),
    domain_nodes=st.integers(1, 3),
    degrees=st.lists(st.integers(1, 16), max_size=3),
)
def test_every_kind_covers_each_rank_once(
    nodes: int, per_node: int, domain_nodes: int, degrees: list[int]
) -> None:
    world_size = nodes * per_node
    kinds = group_kinds(world_size, per_node, domain_nodes * per_node, degrees)

    assert len({kind.members for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert sorted(rank for group in kind.members for rank in group) == list(range(world_size))
        assert kind.ranks >= 2
        for group in kind.members:
            assert len(group) == kind.ranks
            places = [rank // per_node for rank in group]
            assert max(places.count(place) for place in places) == kind.ranks_per_node
            if kind.level == "domain":
                assert len({rank // (domain_nodes * per_node) for rank in group}) == 1
