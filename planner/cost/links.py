"""Which links of a cluster with measured links a group of ranks uses, and how slow they are."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.spec.cluster import ClusterSpec
from planner.spec.nodes import NodeLinks

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BROKEN_SHARE = 1e-6  # of a healthy link's rate: what a link that carries nothing is counted as


class Links(NamedTuple):
    """The slowest links of a kind of group, against healthy ones.

    ``ring``: rate of the slowest link between neighbours. ``mesh``: rate at which the worst placed
    node reaches all others of its group in turn. ``latency``: the longest one.
    """

    ring: float = 1.0
    mesh: float = 1.0
    latency: float = 1.0


HEALTHY = Links()


@lru_cache(maxsize=1024)
def link_shares(links: NodeLinks) -> FloatArray:
    """Return each pair's share of a healthy link's rate, ``[nodes, nodes]``, 1 on the diagonal.

    A pair is as slow as its slower direction: rings and pipelines use both.
    """
    rates = np.array(links.bytes_per_s, dtype=np.float64)
    shares = np.minimum(rates, rates.T) / links.healthy_rate
    np.fill_diagonal(shares, 1.0)
    return np.asarray(np.clip(shares, BROKEN_SHARE, 1.0))


@lru_cache(maxsize=1024)
def latency_factors(links: NodeLinks) -> FloatArray:
    """Return each pair's latency ÷ a healthy one's, ``[nodes, nodes]``, 1 on the diagonal."""
    count = len(links.hosts)
    if not links.latency_s or not links.healthy_wait_s:
        return np.ones((count, count))
    measured = np.array(links.latency_s, dtype=np.float64)
    factors = np.maximum(measured, measured.T) / links.healthy_wait_s
    np.fill_diagonal(factors, 1.0)
    return np.asarray(np.maximum(factors, 1.0))


def group_nodes(cluster: ClusterSpec, ranks: int, stride: int) -> IntArray:
    """Return the node of each member of every group of ``ranks`` slots ``stride`` apart.

    ``[groups, ranks]``; groups of which the cluster holds a part only are left out, equal ones
    stand once.
    """
    blocks = cluster.gpus // (ranks * stride)
    slots = np.arange(blocks * ranks * stride).reshape(blocks, ranks, stride)
    nodes = slots.swapaxes(1, 2).reshape(-1, ranks) // cluster.gpus_per_node
    return np.unique(nodes, axis=0)


def ring_edges(nodes: IntArray) -> IntArray:
    """Return the pairs of nodes that the rings of ``nodes`` ``[groups, ranks]`` cross, ``[E, 2]``.

    A ring passes its members in rank order and closes; steps inside a node are left out.
    """
    pairs = np.stack([nodes, np.roll(nodes, -1, axis=1)], axis=-1).reshape(-1, 2)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def slowest_links(cluster: ClusterSpec, ranks: int, stride: int) -> Links:
    """Return the slowest links of all groups of ``ranks`` slots ``stride`` apart."""
    if cluster.node_links is None or cluster.nodes == 1 or ranks == 1:
        return HEALTHY
    return _slowest(cluster, ranks, stride)


@lru_cache(maxsize=16384)
def _slowest(cluster: ClusterSpec, ranks: int, stride: int) -> Links:
    assert cluster.node_links is not None
    groups = group_nodes(cluster, ranks, stride)
    edges = ring_edges(groups)
    if not len(edges):
        return HEALTHY
    shares, latencies = link_shares(cluster.node_links), latency_factors(cluster.node_links)
    first, second = edges.T
    mesh = 1.0
    for group in groups:
        own = np.unique(group)
        if len(own) > 1:
            waits = 1 / shares[np.ix_(own, own)]
            mesh = min(mesh, (len(own) - 1) / float((waits.sum(axis=1) - 1).max()))
    return Links(float(shares[first, second].min()), mesh, float(latencies[first, second].max()))


def hop_links(cluster: ClusterSpec, first: int, second: int, size: int) -> Links:
    """Return the slowest link from ``size`` slots at ``first`` to as many at ``second``."""
    if cluster.node_links is None:
        return HEALTHY
    offsets = np.arange(size)
    sender, receiver = (
        np.add(start, offsets) // cluster.gpus_per_node for start in (first, second)
    )
    share = float(link_shares(cluster.node_links)[sender, receiver].min())
    latency = float(latency_factors(cluster.node_links)[sender, receiver].max())
    return Links(share, share, latency)
