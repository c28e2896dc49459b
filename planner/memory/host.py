"""Bytes that a job keeps in the memory of its nodes, and whether they have as much."""

from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.estimate import rank_memory
from planner.memory.room import HOST_SHARE, fullest_node
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import format_bytes


def node_host_bytes(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None = None,
) -> float:
    """Return what optimizer and activations take of the fullest node's memory, all its ranks."""
    if not layout.offload_optimizer:
        return 0.0
    activations = layout.offload.target == "host"
    ranks = [rank_memory(model, job, layout, rank, split) for rank in range(layout.pp)]
    held = [memory.host + activations * memory.offloaded for memory in ranks]
    return fullest_node(held, layout, cluster)


def host_problems(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None = None,
) -> list[str]:
    """Return what the nodes lack for the layout's offload; empty when they have enough."""
    if not layout.offload_optimizer or cluster.host is None:
        return []
    needed = node_host_bytes(model, cluster, job, layout, split)
    limit = HOST_SHARE * cluster.host.memory_bytes
    if needed <= limit:
        return []
    share = layout.offload_optimizer * limit / needed
    return [
        f"offload_optimizer={layout.offload_optimizer:g} needs {format_bytes(needed)} of host "
        f"memory on a node, {cluster.name} has room for {format_bytes(limit)}; use more nodes, or "
        f"a share of at most {int(100 * share) / 100:g}"
    ]
