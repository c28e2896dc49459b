"""Whether the nodes can hold what their GPUs give away."""

from collections.abc import Sequence

from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.estimate import rank_memory
from planner.memory.offload import host_of, offload_problems, ssd_of
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import format_bytes

# The rest is for the operating system, data loading and the processes themselves (assumed).
HOST_SHARE = 0.9


def node_sums(each: Sequence[float], layout: Layout, cluster: ClusterSpec) -> list[float]:
    """Return for each node the sum of what its ranks have, ``each`` that of a pipeline rank.

    Stages of fewer ranks than a node has GPUs share nodes, in rank order.
    """
    size, node = layout.gpus // layout.pp, min(cluster.gpus_per_node, layout.gpus)
    ranks = [each[rank // size] for rank in range(layout.gpus)]
    return [sum(ranks[first : first + node]) for first in range(0, layout.gpus, node)]


def fullest_node(each: Sequence[float], layout: Layout, cluster: ClusterSpec) -> float:
    """Return the largest of ``node_sums``."""
    node = min(cluster.gpus_per_node, layout.gpus)
    if layout.gpus // layout.pp >= node:  # most of it on nodes of one stage: no need to list them
        return node * max(each)
    return max(node_sums(each, layout, cluster))


def fullest_node_bytes(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None = None,
) -> float:
    """Return the activations that the GPUs of one node have given away at once, at most."""
    if not layout.offload.fraction:
        return 0.0
    each = [rank_memory(model, job, layout, rank, split).offloaded for rank in range(layout.pp)]
    return fullest_node(each, layout, cluster)


def room_bytes(layout: Layout, cluster: ClusterSpec) -> float:
    """Return the bytes of one node that offloaded activations may take."""
    if layout.offload.target == "ssd":
        return float(ssd_of(cluster).capacity_bytes)
    return HOST_SHARE * host_of(cluster).memory_bytes


def offload_refusals(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None = None,
) -> list[str]:
    """Return one sentence for everything that keeps ``cluster`` from this offload; empty: none."""
    if problems := offload_problems(layout, cluster):
        return problems
    needed = fullest_node_bytes(model, cluster, job, layout, split)
    if not needed:
        return []
    room = room_bytes(layout, cluster)
    if layout.offload_optimizer and layout.offload.target == "host":
        held = [rank_memory(model, job, layout, rank, split).host for rank in range(layout.pp)]
        room = max(0.0, room - fullest_node(held, layout, cluster))
    if needed <= room:
        return []
    what = "drives" if layout.offload.target == "ssd" else "host memory"
    fraction = int(100 * layout.offload.fraction * room / needed) / 100
    return [
        f"{layout.offload.label()}: a node would hold {format_bytes(needed)} of activations in "
        f"{what}, which has room for {format_bytes(room)}; try a fraction of {fraction:g}"
    ]
