"""Exchanges of sharded weights and gradients: which group, in which format, how long.

ZeRO-3 gathers weights in both passes and scatters gradients, three times the model over the network
for each micro-batch. ZeRO++ (arXiv 2306.10209) sends 8-bit weights (qwZ), keeps a second shard in
the node for the backward pass (hpZ) and 4-bit gradients in two hops (qgZ): 0.75 times. Three levels
(arXiv 2501.04266) hold weights near and gradients nearer than the optimizer: nothing crosses nodes
but once per step. Scales of quantised blocks, below 1 % of the bytes, are left out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from planner.cost.collectives import Group, collective_s
from planner.cost.data_parallel import ParameterShares, between, shares
from planner.cost.overlap import lost_share
from planner.layout.layout import Layout
from planner.layout.local import LocalParameters
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import bus_factor
from planner.spec.job import SoftwareSpec

WEIGHT_BYTES = 2.0
INT8_BYTES, INT4_BYTES = 1.0, 0.5
# Memory traffic of quantising, bytes per parameter: read 2 and write 1, and back. The first hop of
# qgZ reads 2 and writes 0.5, and reads 0.5 of all it receives; its sum is quantised again.
DEQUANTISE_BYTES = QUANTISE_BYTES = WEIGHT_BYTES + INT8_BYTES
FIRST_HOP_BYTES = WEIGHT_BYTES + 2 * INT4_BYTES
SECOND_HOP_BYTES = 2 * (WEIGHT_BYTES + 2 * INT4_BYTES)


class Exchange(NamedTuple):
    """One collective. ``message_bytes`` is the whole buffer of a rank, as nccl-tests counts.

    ``tensor`` is weights or gradients, ``phase`` forward, backward (of every micro-batch) or step;
    ``converted_bytes`` is the memory traffic of quantising.
    """

    tensor: str
    phase: str
    kind: str
    message_bytes: float
    group: Group
    converted_bytes: float = 0.0

    @property
    def crossing_bytes(self) -> float:
        """Bytes that one GPU sends out of its scale-up domain."""
        if self.group.domains == 1:
            return 0.0
        return bus_factor(self.kind, self.group.ranks) * self.message_bytes / self.group.inside

    def lost(self, cluster: ClusterSpec) -> float:
        """Seconds that compute loses for each second of the collective beside it."""
        return lost_share(self.kind, self.message_bytes, self.group, cluster)

    def seconds(self, cluster: ClusterSpec) -> float:
        """Seconds of the collective, at the slowest link that it crosses, and of quantising."""
        gpu = cluster.gpu
        converting = self.converted_bytes / (gpu.memory_bound_fraction * gpu.hbm_bytes_per_s)
        return collective_s(self.kind, self.message_bytes, self.group, cluster) + converting


def weight_bytes(software: SoftwareSpec) -> float:
    """Return the bytes of a weight on the wire."""
    return INT8_BYTES if software.quantised_weight_gather else WEIGHT_BYTES


def layer_exchanges(
    local: LocalParameters, layout: Layout, cluster: ClusterSpec, software: SoftwareSpec
) -> tuple[Exchange, ...]:
    """Return what ``local`` parameters take in each micro-batch, without a pipeline.

    Weights are gathered before each pass, from the second shard before the backward pass where
    there is one; gradients are scattered after it.
    """
    shard = layout.shard
    if shard.gradients == 1 or layout.pp > 1:
        return ()
    found: list[Exchange] = []
    if shard.weights > 1:
        forward = shares(local, layout, cluster, shard.weights)
        again = shares(local, layout, cluster, shard.secondary or shard.weights)
        found += _gathers("forward", forward, software)
        found += _gathers("backward", again, software)
    found += _scatters(shares(local, layout, cluster, shard.gradients), layout, cluster, software)
    return tuple(found)


def copied_bytes(
    local: LocalParameters, layout: Layout, software: SoftwareSpec
) -> tuple[float, float]:
    """Return the memory traffic of copies in the forward and the backward pass of a micro-batch.

    FSDP2 copies what it gathered out of one buffer, and gradients into another of the reduction's
    format (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, ``split_with_sizes_copy`` and
    ``chunk_cat``), on the stream of compute: each byte is read and written once.
    """
    if not software.copies_gathered or layout.shard.gradients == 1 or layout.pp > 1:
        return 0.0, 0.0
    out = 2 * WEIGHT_BYTES * local.total if layout.shard.weights > 1 else 0.0
    return out, out + (WEIGHT_BYTES + software.reduce_bytes) * local.total


def _present(parts: ParameterShares) -> list[tuple[float, Group]]:
    both = ((parts.dense, parts.dense_group), (parts.expert, parts.expert_group))
    return [(count, group) for count, group in both if count and group.ranks > 1]


def _gathers(phase: str, parts: ParameterShares, software: SoftwareSpec) -> Iterator[Exchange]:
    for count, group in _present(parts):
        converted = 0.0
        if software.quantised_weight_gather:
            converted = count * (QUANTISE_BYTES / group.ranks + DEQUANTISE_BYTES)
        message = weight_bytes(software) * count
        yield Exchange("weights", phase, "all_gather", message, group, converted)


def _scatters(
    parts: ParameterShares, layout: Layout, cluster: ClusterSpec, software: SoftwareSpec
) -> Iterator[Exchange]:
    strides = {parts.dense_group: layout.tp, parts.expert_group: layout.ep * layout.etp}
    for count, group in _present(parts):
        if not software.quantised_gradient_reduction:
            message = float(software.reduce_bytes) * count
            yield Exchange("gradients", "backward", "reduce_scatter", message, group)
            continue
        near = Group.place(group.inside, strides[group], cluster)
        sent = INT4_BYTES * count
        yield Exchange("gradients", "backward", "all_to_all", sent, near, FIRST_HOP_BYTES * count)
        if group.domains > 1:
            far = Group.place(group.domains, strides[group] * group.inside, cluster)
            rest = count / group.inside
            converted = SECOND_HOP_BYTES * rest
            yield Exchange("gradients", "backward", "all_to_all", INT4_BYTES * rest, far, converted)


def gradient_copies(
    local: LocalParameters, layout: Layout, cluster: ClusterSpec, software: SoftwareSpec
) -> tuple[str, ParameterShares, float]:
    """Return (collective, groups, bytes each) of the reduction after the last micro-batch.

    Gradients scattered layer by layer leave their copies to be summed: scattered once more where
    the optimizer is sharded over all ranks and more finely, all-reduced otherwise.
    """
    shard, bytes_each = layout.shard, float(software.reduce_bytes)
    if shard.gradients > 1 and layout.pp == 1:
        parts = between(local, layout, cluster, shard.gradients)
        if shard.optimizer == shard.gradients or shard.optimizer < layout.dp * layout.cp:
            return "all_reduce", parts, bytes_each
        if software.quantised_gradient_reduction:
            return "all_to_all", parts, INT4_BYTES
        return "reduce_scatter", parts, bytes_each
    scatters = shard.optimizer > 1 and software.reduce_scatter_gradients
    kind = "reduce_scatter" if scatters else "all_reduce"
    return kind, shares(local, layout, cluster), bytes_each


def weight_refresh(
    local: LocalParameters, layout: Layout, cluster: ClusterSpec
) -> ParameterShares | None:
    """Return the groups in which updated weights are gathered after the step; None: in none."""
    shard = layout.shard
    if layout.pp > 1 and shard.optimizer > 1:
        return shares(local, layout, cluster, shard.optimizer)
    if shard.weights == shard.optimizer:
        return None
    return between(local, layout, cluster, shard.weights, shard.optimizer)


def step_exchanges(
    local: LocalParameters, layout: Layout, cluster: ClusterSpec, software: SoftwareSpec
) -> tuple[Exchange, ...]:
    """Return what ``local`` parameters take once per step."""
    kind, parts, bytes_each = gradient_copies(local, layout, cluster, software)
    found = [
        Exchange("gradients", "step", kind, bytes_each * count, group)
        for count, group in _present(parts)
    ]
    refresh = weight_refresh(local, layout, cluster)
    for count, group in _present(refresh) if refresh else ():
        message = weight_bytes(software) * count
        found.append(Exchange("weights", "step", "all_gather", message, group))
    return tuple(found)
