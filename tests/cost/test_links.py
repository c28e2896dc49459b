"""Measured links: which ones a group of ranks uses, and what slow ones cost."""

from itertools import pairwise

import numpy as np
import pytest

from planner.cost.collectives import Group, collective_s, send_recv_s
from planner.cost.links import HEALTHY, Links, group_nodes, hop_links, ring_edges, slowest_links
from planner.cost.traffic import pipelines, rings
from planner.layout.layout import Layout
from planner.layout.ranks import groups
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.nodes import NodeLinks

LAYOUTS = [
    Layout(tp=8, pp=2, dp=2),
    Layout(tp=4, cp=2, pp=2, dp=2),
    Layout(tp=2, pp=4, dp=4),
    Layout(tp=4, pp=8, dp=1),
    Layout(tp=1, cp=16, dp=2),
    Layout(tp=16, dp=2),
    Layout(dp=32, ep=16),
    Layout(tp=2, dp=8, pp=2, ep=8, etp=2),
]


def cluster(nodes: int = 4, slow: tuple[int, int] | None = None, share: float = 0.1) -> ClusterSpec:
    rates = np.full((nodes, nodes), 20e9)
    if slow is not None:
        rates[slow] = share * 20e9
    hosts = tuple(f"n{index}" for index in range(nodes))
    links = NodeLinks(hosts=hosts, bytes_per_s=tuple(map(tuple, rates.tolist())))
    spec = load_cluster("dgx-a100")
    return spec.model_copy(update={"nodes": nodes, "node_links": links})


def edges_of(layout: Layout, axes: tuple[str, ...], stage: int, ring: bool) -> set[tuple[int, int]]:
    """Return the pairs of nodes of the groups along ``axes`` in one stage, from the rank groups."""
    found = set()
    size = layout.gpus // layout.pp
    for group in groups(layout, axes):
        if group[0] // size != stage:
            continue
        nodes = [rank // 8 for rank in group]
        pairs = pairwise([*nodes, nodes[0]]) if ring else ((a, b) for a in nodes for b in nodes)
        found |= {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.label)
def test_rings_are_those_of_the_rank_groups(layout: Layout) -> None:
    found = {
        (ring.stage, ring.axis): set(map(tuple, ring.pairs.tolist()))
        for ring in rings(layout, cluster())
    }

    for stage in range(layout.pp):
        data = edges_of(layout, ("dp", "cp"), stage, ring=True)
        if layout.ep > 1:
            data |= edges_of(layout, ("edp",), stage, ring=True)
        expected = {
            "tp": edges_of(layout, ("tp",), stage, ring=True),
            "cp": edges_of(layout, ("cp",), stage, ring=True),
            "ep": edges_of(layout, ("ep", "etp"), stage, ring=False),
            "dp": data,
        }
        for axis, pairs in expected.items():
            assert found.get((stage, axis), set()) == pairs


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.label)
def test_pipelines_are_those_of_the_rank_groups(layout: Layout) -> None:
    expected = {
        tuple((a // 8, b // 8) for a, b in pairwise(group)) for group in groups(layout, "pp")
    }
    found = {tuple(map(tuple, hops)) for hops in pipelines(layout, cluster()).tolist()}

    assert found == expected


def test_a_ring_closes_and_stays_off_other_pairs() -> None:
    nodes = group_nodes(cluster(), 4, 8)  # one rank on each node

    assert nodes.tolist() == [[0, 1, 2, 3]]
    assert ring_edges(nodes).tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]


@pytest.mark.parametrize(
    ("slow", "ranks", "stride", "ring"),
    [
        ((0, 1), 4, 8, 0.1),  # neighbours
        ((3, 0), 4, 8, 0.1),  # the last and the first, in the slower direction
        ((0, 2), 4, 8, 1.0),  # across the ring
        ((1, 2), 2, 8, 1.0),  # groups 0-1 and 2-3
        ((1, 2), 8, 1, 1.0),  # inside a node
    ],
)
def test_the_slowest_link_of_any_ring_counts(
    slow: tuple[int, int], ranks: int, stride: int, ring: float
) -> None:
    assert slowest_links(cluster(slow=slow), ranks, stride).ring == pytest.approx(ring)


def test_an_exchange_meets_every_pair_once() -> None:
    found = slowest_links(cluster(slow=(0, 2)), 32, 1)

    assert found.ring == 1.0
    assert found.mesh == pytest.approx(3 / (1 + 1 + 10))


KINDS = ["all_reduce", "all_gather", "reduce_scatter"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ring_over_a_slow_link_takes_its_bytes_as_much_longer(kind: str) -> None:
    times = []
    for slow in (None, (0, 1)):
        spec = cluster(slow=slow)
        large, small = (
            collective_s(kind, size, Group.place(32, 1, spec), spec) for size in (4e9, 2e9)
        )
        times.append(large - small)

    assert times[1] == pytest.approx(10 * times[0], rel=0.02)


@pytest.mark.parametrize("kind", [*KINDS, "all_to_all"])
def test_equal_links_cost_what_no_measurement_costs(kind: str) -> None:
    plain, measured = load_cluster("dgx-a100"), cluster()

    assert collective_s(kind, 1e8, Group.place(32, 1, plain), plain) == collective_s(
        kind, 1e8, Group.place(32, 1, measured), measured
    )


def test_a_hop_takes_the_slowest_of_its_parallel_links() -> None:
    spec = cluster(slow=(1, 3))  # stage 0 on nodes 0 and 1, stage 1 on 2 and 3

    assert hop_links(spec, 0, 16, 16).ring == pytest.approx(0.1)
    assert hop_links(spec, 0, 16, 8).ring == 1.0
    assert hop_links(load_cluster("dgx-a100"), 0, 16, 16) is HEALTHY


def test_latency_and_rate_of_a_link_both_count() -> None:
    spec = cluster()
    assert spec.scale_out is not None
    base = send_recv_s(1e6, 8, spec)
    waits = send_recv_s(1e6, 8, spec, Links(latency=3.0))
    half = send_recv_s(1e6, 8, spec, Links(ring=0.5))
    double = send_recv_s(2e6, 8, spec)

    assert waits - base == pytest.approx(2 * spec.scale_out.latency_s)
    assert half == pytest.approx(double)
