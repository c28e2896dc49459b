"""Seconds of one collective of a group placed on the cluster.

Message sizes follow nccl-tests: the full (gathered) buffer. ``busbw`` is what a link carries:
``x = f * S`` bus bytes with ``f = 2(n-1)/n`` for all-reduce and ``(n-1)/n`` otherwise.
"""

from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import NamedTuple

from planner.cost.links import HEALTHY, Links, slowest_links
from planner.cost.priors import nearest, prior_curve
from planner.spec.cluster import ClusterSpec, ScaleOutSpec
from planner.spec.gpu import CollectiveCurve, GroupCurve, bus_factor

# NCCL's own constants for a hop inside a node and for a kernel start, in seconds
# (src/graph/tuning.cc: 0.6 us NVLink hop in LL, 6.6 us base).
HOP_S = 0.6e-6
START_S = 6.8e-6
# What an all-reduce over several nodes takes beyond latency and bandwidth, seconds per square root
# of a bus byte: fit to 46 points of nccl-tests (H100, H200, B200, A100; 2 to 8 nodes), median
# residual 11 %.
TREE_S_PER_SQRT_BYTE = 3.3e-8
# The same of rings that gather and scatter: fit to four curves of two nodes from 256 KiB on, median
# residual 20 % (B200), 13 % (H200), 4 % (H100 on TCPXO); B200 takes twice that below 4 MiB.
GATHER_S_PER_SQRT_BYTE = 1.3e-8


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
    """Return the measured curve of the nearest group size, or what the link leads to expect."""
    curves = cluster.gpu.collectives.get(kind)
    return nearest(curves, ranks) if curves else prior_curve(kind, ranks, cluster)


def inside_s(kind: str, bus_bytes: float, ranks: int, cluster: ClusterSpec) -> float:
    """Seconds inside one domain: ``alpha + x / beta + gamma sqrt(x)``."""
    curve = _inside_curve(kind, ranks, cluster)
    more = max(0.0, ranks / curve.ranks - 1)  # a larger domain: more hops of the same length
    return more * curve.alpha_s + curve.seconds(bus_bytes)


def _net_per_gpu(cluster: ClusterSpec, net: ScaleOutSpec) -> float:
    """Line rate that one GPU owns when all GPUs of its node send."""
    return net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node


def _measured_across(kind: str, group: Group, cluster: ClusterSpec) -> GroupCurve | None:
    """Return the curve of this very group, where a profile measured it."""
    curves = () if cluster.scale_out is None else cluster.scale_out.collectives.get(kind, ())
    same = (one for one in curves if (one.ranks, one.inside) == (group.ranks, group.inside))
    return next(same, None)


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


# Share of a scale-up link that dispatchers with kernels of their own reach: HybridEP 0.91 of 450
# and 0.72 of 900 GB/s, DeepEP 0.81 of 900 (its README); residual 14 %.
FUSED_SHARE = 0.8


class Rows(NamedTuple):
    """How the rows of an all-to-all travel.

    Each has ``copies`` for members chosen at random; of the group's domains a ``share`` is open to
    it. One copy crosses the network for all members of a domain, and one goes to each member.
    """

    copies: int = 1
    share: float = 1.0


def _distinct(places: float, copies: int) -> float:
    """Return how many of ``places`` so many copies reach, each chosen at random."""
    return places * (1 - (1 - 1 / places) ** copies)


def _leaving_share(group: Group, rows: Rows) -> float:
    """Return the share of an all-to-all message that crosses the network."""
    reached = _distinct(max(1.0, group.domains * rows.share), rows.copies)
    return reached * (1 - 1 / group.domains) / rows.copies


def _rows_inside_s(message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows) -> float:
    """Seconds of the rows that members of one domain hand to each other."""
    n, g = group.ranks, group.inside
    inside = message_bytes * (g - 1) / n
    if rows.copies == 1:
        return inside_s("all_to_all", inside, g, cluster)
    members = max(1.0, n * (rows.share if group.domains > 1 else 1.0))
    inside *= _distinct(members, rows.copies) / rows.copies
    rate = FUSED_SHARE * cluster.scale_up.bytes_per_s
    start = inside_s("all_to_all", 0.0, g, cluster)
    return min(start + inside / rate, inside_s("all_to_all", inside, g, cluster))


def _all_to_all_s(message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows) -> float:
    net = cluster.scale_out
    assert net is not None
    leaving = message_bytes * _leaving_share(group, rows)
    rate = net.all_to_all_efficiency * _net_per_gpu(cluster, net) * group.links.mesh
    outside_s = leaving / rate
    one = group.inside == 1
    inside_seconds = 0.0 if one else _rows_inside_s(message_bytes, group, cluster, rows)
    return _across_latency("all_to_all", group, cluster, net) + max(inside_seconds, outside_s)


def _inside_part_s(kind: str, bus_bytes: float, group: Group, cluster: ClusterSpec) -> float:
    """Seconds that the links inside a domain need for a group over several, latency apart.

    The tree of two nodes moves ``2 (g - 1) / g`` of a message inside, at the share of its rate that
    it reaches of a network's. xGMI is no bound: two to eight nodes of MI300X and MI325X reach 357
    and 350 GB/s, one node 317 and 319 (RCCL tests).
    """
    n, g = group.ranks, group.inside
    if g == 1 or cluster.scale_up.kind == "xgmi":
        return 0.0
    curve = _inside_curve(kind, g, cluster)
    seconds = curve.seconds(bus_bytes) - curve.alpha_s
    if kind == "all_reduce" and group.domains == 2:
        net = cluster.scale_out
        assert net is not None
        seconds *= bus_factor(kind, g) / bus_factor(kind, n) / net.efficiency
    return seconds


def _across_s(
    kind: str, message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows
) -> float:
    """Seconds of a ring (or two-node tree) over the network.

    Every rail of the group is driven, so its bus bandwidth is ``eta * g * w``; two-node
    all-reduce runs a tree, which crosses the network once for each byte. RCCL stays with the ring:
    two nodes of MI300X, MI325X and MI355X reach 0.87-0.92 of the NICs, no more than eight nodes.
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
    ring = net.efficiency if kind == "all_reduce" else net.gather_efficiency
    efficiency = ring if g > 1 else net.p2p_efficiency
    rate = efficiency * g * _net_per_gpu(cluster, net) * group.links.ring
    if kind == "all_reduce" and group.domains == 2 and g > 1 and cluster.scale_up.kind != "xgmi":
        rate *= bus_factor(kind, n)
    bound = max(bus_bytes / rate, _inside_part_s(kind, bus_bytes, group, cluster))
    steps = (2 if kind == "all_reduce" else 1) * (n - 1)
    latency = _across_latency(kind, group, cluster, net)
    if kind == "all_reduce":  # short messages take a tree: few hops, less of the bandwidth
        tree = TREE_S_PER_SQRT_BYTE * sqrt(bus_bytes)
        return latency + bound + min(steps * net.ring_step_s, tree)
    filling = GATHER_S_PER_SQRT_BYTE * sqrt(bus_bytes) if g > 1 else 0.0
    return bound + max(latency + filling, START_S + steps * net.ring_step_s)


def collective_s(
    kind: str, message_bytes: float, group: Group, cluster: ClusterSpec, rows: Rows = Rows()
) -> float:
    """Seconds of one collective; a group of one rank has nobody to talk to.

    ``rows``: of an all-to-all.
    """
    if group.ranks == 1:
        return 0.0
    bus_bytes = bus_factor(kind, group.ranks) * message_bytes
    if group.domains == 1:
        if kind == "all_to_all":
            return _rows_inside_s(message_bytes, group, cluster, rows)
        return inside_s(kind, bus_bytes, group.ranks, cluster)
    measured = _measured_across(kind, group, cluster)
    if measured is not None and rows == Rows() and group.links == HEALTHY:
        return measured.seconds(bus_bytes)
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
