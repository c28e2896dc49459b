"""Parts of a cluster: the nodes under some GPU slots, nodes in another order, one kind of node."""

from functools import lru_cache

from planner.spec.cluster import ClusterSpec, NodeGroup
from planner.spec.gpu import GpuSpec


def part_of(cluster: ClusterSpec, first: int, slots: int) -> ClusterSpec:
    """Return the cluster that ``slots`` GPU slots from ``first`` see.

    That is the cluster itself where all nodes and links are alike. Otherwise it has only the nodes
    under these slots and their links; where they are of several kinds, all compute at the pace of
    the slowest, in the memory of the smallest.
    """
    if cluster.node_links is None and not cluster.node_groups:
        return cluster
    per_node = cluster.gpus_per_node
    return _part(cluster, first // per_node, (first + slots - 1) // per_node)


@lru_cache(maxsize=4096)
def _part(cluster: ClusterSpec, first: int, last: int) -> ClusterSpec:
    nodes = last - first + 1
    if cluster.node_links is not None:
        links = cluster.node_links.of(tuple(range(first, last + 1)))
        return cluster.model_copy(update={"nodes": nodes, "node_links": links})
    start, held = 0, []
    for group in cluster.node_groups:
        if start <= last and start + group.nodes > first:
            held.append(one_kind(cluster, group))
        start += group.nodes
    slowest = min(held, key=_speed)
    update: dict[str, object] = {"nodes": nodes}
    if len(held) > 1:
        least = min(part.gpu.memory_bytes for part in held)
        update["gpu"] = slowest.gpu.model_copy(update={"memory_bytes": least})
        update["scale_out"] = min(held, key=_network).scale_out
    return slowest.model_copy(update=update)


def _speed(cluster: ClusterSpec) -> float:
    gpu = cluster.gpu
    peak = gpu.peak_flops.get("bf16") or gpu.peak_flops["fp16"]
    return peak * gpu.sustained_fraction


def _network(cluster: ClusterSpec) -> float:
    net = cluster.scale_out
    return net.nics_per_node * net.nic_bytes_per_s * net.efficiency if net else 0.0


def one_kind(cluster: ClusterSpec, group: NodeGroup) -> ClusterSpec:
    """Return the nodes of one group as a cluster of their own."""
    gpu: GpuSpec = group.gpu
    if group.speed < 1:
        gpu = gpu.model_copy(update={"sustained_fraction": gpu.sustained_fraction * group.speed})
    return cluster.model_copy(
        update={
            "gpu": gpu,
            "nodes": group.nodes,
            "scale_up": group.scale_up or cluster.scale_up,
            "scale_out": group.scale_out or cluster.scale_out,
            "node_groups": (),
        }
    )


def of_groups(cluster: ClusterSpec, groups: tuple[NodeGroup, ...]) -> ClusterSpec:
    """Return the cluster with these of its groups, in the order given."""
    nodes = sum(group.nodes for group in groups)
    update = {"gpu": groups[0].gpu, "nodes": nodes, "node_groups": groups}
    return cluster.model_copy(update=update)


def in_order(cluster: ClusterSpec, nodes: tuple[int, ...]) -> ClusterSpec:
    """Return the cluster with the measured ``nodes`` as nodes 0, 1, ... of the job."""
    assert cluster.node_links is not None
    links = cluster.node_links.of(nodes)
    return cluster.model_copy(update={"nodes": len(nodes), "node_links": links})


def healthy(cluster: ClusterSpec) -> ClusterSpec:
    """Return the cluster as if every link were a healthy one: never slower than it is."""
    if cluster.node_links is None:
        return cluster
    return cluster.model_copy(update={"node_links": None})
