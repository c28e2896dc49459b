"""Saved activations that wait outside the GPU: which bytes leave, and what the host must hold.

What stays (SSDTrain, arXiv 2408.10013): parameters; small tensors, here the statistics of fused
attention; the last layer before the loss, whose backward pass comes at once; the input of a stage,
which the pipeline itself keeps. Of all else every layer gives away the layout's fraction.
"""

from dataclasses import dataclass
from functools import lru_cache

from planner.errors import LayoutError
from planner.layout.layout import OFFLOAD_TARGETS, Layout, Recompute
from planner.layout.stages import StageLayers
from planner.memory.activations import layer_bytes
from planner.model.operations import Shape
from planner.schedule.kinds import chunks_of
from planner.spec.cluster import ClusterSpec, HostSpec, SsdSpec
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class MovedLayers:
    """``count`` equal layers of a stage, each of which gives away ``each_bytes`` per pass."""

    count: int
    moe_layer: bool
    recompute: Recompute
    each_bytes: float

    @property
    def total_bytes(self) -> float:
        """Bytes of all of them in one pass."""
        return self.count * self.each_bytes


def small_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, recompute: Recompute
) -> float:
    """Return the bytes of a layer's tensors that are too small to be worth a copy."""
    fused = software.flash_attention and recompute is not Recompute.FULL
    return 4 * shape.tokens * model.heads / shape.tp if fused else 0.0


@lru_cache(maxsize=16384)
def moved_layers(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, layout: Layout, stage: StageLayers
) -> tuple[MovedLayers, ...]:
    """Return the layers of ``stage`` that give something away, by kind."""
    fraction = layout.offload.fraction
    if not fraction:
        return ()
    kinds = stage.kinds(layout.recompute)
    # recomputed layers are the first of their stage, experts are in the later ones
    last = max(kinds, key=lambda kind: (kind[2] is not Recompute.FULL, kind[1]), default=None)
    found = []
    for kind in kinds:
        count, moe_layer, recompute = kind
        count -= stage.head and kind == last
        size = layer_bytes(model, shape, software, recompute, moe_layer)
        size -= small_bytes(model, shape, software, recompute)
        if count:
            found.append(MovedLayers(count, moe_layer, recompute, fraction * size))
    return tuple(found)


def moved_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, layout: Layout, stage: StageLayers
) -> float:
    """Return what one pass of a micro-batch through one chunk of ``stage`` gives away.

    ``stage`` holds all layers of a rank, of as many chunks as the layout's schedule gives it.
    """
    moved = moved_layers(model, shape, software, layout, stage)
    if not moved:
        return 0.0
    chunks = chunks_of(layout)
    total = sum(layers.total_bytes for layers in moved)
    if layout.pp > 1:  # what came from the stage before is kept by the pipeline
        received = 2 * shape.sharded_tokens * model.hidden
        total -= layout.offload.fraction * received * (chunks - stage.embedding)
    return max(0.0, total) / chunks


def offload_problems(layout: Layout, cluster: ClusterSpec) -> list[str]:
    """Return what is wrong with the layout's offload whatever it moves."""
    offload = layout.offload
    if not offload.fraction:
        return []
    if not 0 < offload.fraction <= 1:
        return [f"offload fraction {offload.fraction:g} is not between 0 and 1; try 0.5"]
    if offload.target not in OFFLOAD_TARGETS:
        known = ", ".join(OFFLOAD_TARGETS)
        return [f"offload target {offload.target!r} is not known; use one of {known}"]
    if cluster.host is None:
        return [f"cluster {cluster.name!r} describes no host; add host to its file"]
    if offload.target == "ssd" and cluster.ssd is None:
        return [
            f"cluster {cluster.name!r} describes no drives; add ssd to its file, or offload to host"
        ]
    return []


def host_of(cluster: ClusterSpec) -> HostSpec:
    """Return the host of a cluster; LayoutError where it is not described."""
    if cluster.host is None:
        raise LayoutError(f"cluster {cluster.name!r} describes no host; add host to its file")
    return cluster.host


def ssd_of(cluster: ClusterSpec) -> SsdSpec:
    """Return the drives of a node; LayoutError where they are not described."""
    if cluster.ssd is None:
        raise LayoutError(f"cluster {cluster.name!r} describes no drives; add ssd to its file")
    return cluster.ssd
