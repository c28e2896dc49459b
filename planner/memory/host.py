"""Bytes that a job keeps in the memory of its nodes, and whether they have as much."""

from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.estimate import rank_memory
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
    """Return the host bytes of the fullest node: the sum over the ranks on its GPUs."""
    if not layout.offload_optimizer:
        return 0.0
    ranks = layout.tp * layout.cp * layout.dp
    held = [rank_memory(model, job, layout, rank, split).host for rank in range(layout.pp)]
    each = cluster.gpus_per_node
    if ranks % each == 0:
        return max(held) * each
    nodes = range(0, layout.gpus, each)
    slots = (range(first, min(first + each, layout.gpus)) for first in nodes)
    return max(sum(held[slot // ranks] for slot in node) for node in slots)


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
    limit = cluster.host.memory_bytes
    if needed <= limit:
        return []
    share = layout.offload_optimizer * limit / needed
    return [
        f"offload_optimizer={layout.offload_optimizer:g} needs {format_bytes(needed)} of host "
        f"memory on a node, {cluster.name} has {format_bytes(limit)}; use more nodes, or a share "
        f"of at most {int(100 * share) / 100:g}"
    ]
