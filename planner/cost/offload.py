"""Seconds of an optimizer on the host: gradients out, update on the CPUs, weights back.

ZeRO-Offload (USENIX ATC 21, sections 4 and 5): gradients leave the GPU behind the backward pass;
the CPUs update tile by tile while the tile before travels back, so the longest of these takes its
time and the others that of one tile; a delayed update runs behind the next step. All GPUs of a node
share its memory bandwidth, those behind one PCIe switch their link. The part of the state that
stays on the GPU is updated meanwhile (Twin-Flow, DeepSpeed 0.12).
"""

from math import ceil
from typing import NamedTuple

from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, sharded_by_kind, streams_gradients
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.optimizer import update_bytes


class HostUpdate(NamedTuple):
    """Seconds of one step on one rank: gradients left exposed, and the whole update."""

    gradients_s: float
    update_s: float


class HostParts(NamedTuple):
    """Seconds of one step on one rank, each alone: gradients out, update, weights back."""

    out_s: float
    cpu_s: float
    back_s: float
    tiles: int


def _busy_gpus(layout: Layout, cluster: ClusterSpec) -> int:
    """Return the GPUs of one node that the layout uses; all of them copy and update at once."""
    return min(cluster.gpus_per_node, layout.gpus)


def link_bytes_per_s(layout: Layout, cluster: ClusterSpec) -> float:
    """Return the bytes per second and direction that each GPU has to the host."""
    host = cluster.host
    assert host is not None
    return host.shared_link_bytes_per_s(_busy_gpus(layout, cluster))


def host_adam_s(moved_bytes: float, layout: Layout, cluster: ClusterSpec) -> float:
    """Return the seconds in which the CPUs move ``moved_bytes`` for each GPU of the node."""
    host = cluster.host
    assert host is not None
    return moved_bytes * _busy_gpus(layout, cluster) / host.stream_bytes_per_s


def _in_tiles(parts_s: tuple[float, ...], tiles: int) -> float:
    """Return the seconds of a chain whose parts overlap but for one tile of each."""
    longest = max(parts_s)
    return longest + (sum(parts_s) - longest) / tiles


def host_parts(
    local: LocalParameters, layout: Layout, job: JobSpec, cluster: ClusterSpec
) -> HostParts:
    """Return what the optimizer's share on the host takes, part by part."""
    software, share = job.software, layout.offload_optimizer
    matrices, others = (share * size for size in sharded_by_kind(local, layout))
    mine = matrices + others
    link = link_bytes_per_s(layout, cluster)
    moved = update_bytes(job.optimizer, software.optimizer_bytes, matrices, others)
    # weights that stay on the host are fetched by the layers that need them
    back_s = 0.0 if layout.offload_weights else mine * software.host_weight_bytes / link
    tiles = max(1, ceil(mine * software.reduce_bytes / software.bucket_bytes))
    out_s = mine * software.reduce_bytes / link
    return HostParts(out_s, host_adam_s(moved, layout, cluster), back_s, tiles)


def host_update(
    local: LocalParameters,
    layout: Layout,
    job: JobSpec,
    cluster: ClusterSpec,
    backward_s: float,
    step_s: float,
) -> HostUpdate:
    """Return what the optimizer's share on the host takes.

    ``backward_s`` is one micro-batch's backward pass on this rank, ``step_s`` all its passes, which
    a delayed update runs behind.
    """
    out_s, cpu_s, back_s, tiles = host_parts(local, layout, job, cluster)
    if streams_gradients(layout, job.software):
        times = layout.micro_batches(job.global_batch)
        gradients_s = times * max(0.0, out_s - backward_s) + out_s / tiles
        update_s = _in_tiles((cpu_s, back_s), tiles)
    else:
        gradients_s = 0.0
        update_s = _in_tiles((out_s, cpu_s, back_s), tiles)
    if layout.delayed_update:
        update_s = max(0.0, update_s - step_s)
    return HostUpdate(gradients_s, update_s)
