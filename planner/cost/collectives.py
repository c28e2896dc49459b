"""Seconds of one collective of a group placed on the cluster.

Message sizes follow nccl-tests: the full (gathered) buffer. ``busbw`` is what a link carries:
``x = f * S`` bus bytes with ``f = 2(n-1)/n`` for all-reduce and ``(n-1)/n`` otherwise.
"""

from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import NamedTuple

from planner.cost.links import HEALTHY, Links, slowest_links
from planner.spec.cluster import ClusterSpec, ScaleOutSpec
from planner.spec.gpu import CollectiveCurve, bus_factor

# NCCL's own constants for a hop inside a node and for a kernel start, in seconds
# (src/graph/tuning.cc: 0.6 us NVLink hop in LL, 6.6 us base).
HOP_S = 0.6e-6
START_S = 6.8e-6
# What an all-reduce over several nodes takes beyond latency and bandwidth, seconds per square root
# of a bus byte: fit to 46 points of nccl-tests (H100, H200, B200, A100; 2 to 8 nodes), median
# residual 11 %.
TREE_S_PER_SQRT_BYTE = 3.3e-8


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks of one collective on node-major GPU slots.

    ``inside`` ranks share a scale-up domain, ``domains`` such sets form the group, and each rank
    owns ``net_bytes_per_s`` of its node's network (all groups of that kind work at once).
    ``links`` are the slowest between nodes, where the cluster's were measured.
    """

    ranks: int
    inside: int
    domains: int
    links: Links = HEALTHY

    @classmethod
    def place(cls, ranks: int, stride: int, cluster: ClusterSpec) -> "Group":
        """Place ``ranks`` that lie ``stride`` slots apart."""
        domain = cluster.domain_gpus
        inside = max(1, min(ranks, domain // stride)) if stride < domain else 1
        return cls(ranks, inside, ceil(ranks / inside), slowest_links(cluster, ranks, stride))


def _inside_curve(kind: str, ranks: int, cluster: ClusterSpec) -> CollectiveCurve:
    """Return the measured curve of the nearest group size, or one from the link's line rate."""
    curves = cluster.gpu.collectives.get(kind)
    if curves:
        return min(curves, key=lambda curve: abs(log2(curve.ranks) - log2(ranks)))
    link = cluster.scale_up
    return CollectiveCurve(
        ranks=ranks,
        alpha_s=START_S + link.latency_s * (ranks - 1),
        bytes_per_s=0.75 * link.bytes_per_s,
    )


def inside_s(kind: str, bus_bytes: float, ranks: int, cluster: ClusterSpec) -> float:
    """Seconds inside one domain: ``alpha + x / beta + gamma sqrt(x)``."""
    curve = _inside_curve(kind, ranks, cluster)
    alpha = curve.alpha_s
    if ranks > curve.ranks:  # a larger domain than was measured: more hops of the same length
        alpha *= ranks / curve.ranks
    return alpha + bus_bytes / curve.bytes_per_s + curve.gamma_s_per_sqrt_byte * sqrt(bus_bytes)


def _net_per_gpu(cluster: ClusterSpec, net: ScaleOutSpec) -> float:
    """Line rate that one GPU owns when all GPUs of its node send."""
    return net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node


def _across_latency(kind: str, group: Group, cluster: ClusterSpec, net: ScaleOutSpec) -> float:
    """Small-message seconds: tree for all-reduce, a ring of ``n - 1`` steps otherwise.

    Hops inside a domain take what they take there without a network.
    """
    inside = 0.0
    if group.inside > 1:
        measured = inside_s(kind, 0.0, group.inside, cluster) - START_S
        inside = max(measured, (group.inside - 1) * HOP_S)
    latency_s = net.latency_s * group.links.latency
    if kind == "all_reduce":
        return START_S + inside + 2 * ceil(log2(group.domains)) * latency_s
    if kind == "all_to_all":
        return START_S + inside + latency_s + (group.ranks - 1) * 0.5e-6
    return START_S + group.domains * inside + (group.domains - 1) * latency_s


class Rows(NamedTuple):
    """How the rows of an all-to-all travel.

    Each has ``copies`` for members chosen at random; of the group's domains a ``share`` is open to
    it, and one copy serves all members of a domain.
    """

    copies: int = 1
    share: float = 1.0


def _leaving_share(group: Group, rows: Rows) -> float:
    """Return the share of an all-to-all message that crosses the network."""
    open_domains = max(1.0, group.domains * rows.share)
    reached = open_domains * (1 - (1 - 1 / open_domains) ** rows.copies)
    return reached * (1 - 1 / group.domains) / rows.copies


def _all_to_all_s(message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows) -> float:
    net = cluster.scale_out
    assert net is not None
    n, g = group.ranks, group.inside
    leaving = message_bytes * _leaving_share(group, rows)
    inside = message_bytes * (g - 1) / n
    rate = net.all_to_all_efficiency * _net_per_gpu(cluster, net) * group.links.mesh
    outside_s = leaving / rate
    inside_seconds = inside_s("all_to_all", inside, g, cluster) if g > 1 else 0.0
    return _across_latency("all_to_all", group, cluster, net) + max(inside_seconds, outside_s)


def _across_s(
    kind: str, message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows
) -> float:
    """Seconds of a ring (or two-node tree) over the network.

    Every rail of the group is driven, so its bus bandwidth is ``eta * g * w``; two-node
    all-reduce runs a tree, which crosses the network once for each byte.
    """
    net = cluster.scale_out
    if net is None:
        raise ValueError("a group that spans domains needs scale_out")
    if kind == "all_to_all":
        return _all_to_all_s(message_bytes, group, cluster, rows)
    n, g = group.ranks, group.inside
    bus_bytes = bus_factor(kind, n) * message_bytes
    # a rank alone in its node drives one NIC through one pair of channels, as a send does: 175B
    # and 530B lose twice as much to data parallelism as a ring at 0.92 would (Korthikanti, dp 8)
    efficiency = net.efficiency if g > 1 else net.p2p_efficiency
    rate = efficiency * g * _net_per_gpu(cluster, net) * group.links.ring
    if kind == "all_reduce" and group.domains == 2 and g > 1:
        rate *= bus_factor(kind, n)
    bound = bus_bytes / rate
    if g > 1:
        curve = _inside_curve(kind, g, cluster)
        bound = max(bound, bus_bytes / curve.bytes_per_s)
    steps = (2 if kind == "all_reduce" else 1) * (n - 1)
    latency = _across_latency(kind, group, cluster, net)
    if kind == "all_reduce":  # short messages take a tree: few hops, less of the bandwidth
        tree = TREE_S_PER_SQRT_BYTE * sqrt(bus_bytes)
        return latency + bound + min(steps * net.ring_step_s, tree)
    return bound + max(latency, START_S + steps * net.ring_step_s)


def collective_s(
    kind: str, message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows = Rows()
) -> float:
    """Seconds of one collective; a group of one rank has nobody to talk to.

    ``rows``: of an all-to-all.
    """
    if group.ranks == 1:
        return 0.0
    if group.domains == 1:
        bus_bytes = bus_factor(kind, group.ranks) * message_bytes
        return inside_s(kind, bus_bytes, group.ranks, cluster)
    return _across_s(kind, message_bytes, group, cluster, rows)


def send_recv_s(
    message_bytes: float, stride: int, cluster: ClusterSpec, links: Links = HEALTHY
) -> float:
    """Seconds to hand ``message_bytes`` to the GPU ``stride`` slots away.

    Inside a domain over its fabric; otherwise over the NIC of the sending GPU and ``links``.
    """
    net = cluster.scale_out
    if stride < cluster.domain_gpus or net is None:
        return inside_s("send_recv", message_bytes, 2, cluster)
    rate = net.p2p_efficiency * _net_per_gpu(cluster, net) * links.ring
    return START_S + net.latency_s * links.latency + message_bytes / rate
