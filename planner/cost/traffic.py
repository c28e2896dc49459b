"""Which pairs of nodes carry what of a layout: hops of pipelines, rings of every stage."""

from typing import NamedTuple

import numpy as np

from planner.cost.links import IntArray, group_nodes, ring_edges
from planner.layout.layout import Layout
from planner.schedule.kinds import chunks_of, rank_of, schedule_name
from planner.spec.cluster import ClusterSpec

AXES = {
    "tp": "tensor-parallel",
    "cp": "context-parallel",
    "ep": "expert-parallel",
    "dp": "data-parallel",
}


class Ring(NamedTuple):
    """The pairs of nodes ``[E, 2]`` that one kind of group of one stage talks over."""

    stage: int
    axis: str
    pairs: IntArray

    @property
    def name(self) -> str:
        """What the group is, in the field's words."""
        return f"{AXES[self.axis]} group of stage {self.stage}"


def rings(layout: Layout, cluster: ClusterSpec) -> list[Ring]:
    """Return what each stage's groups talk over, where that leaves a node."""
    size, per_node = layout.gpus // layout.pp, cluster.gpus_per_node
    found = []
    for stage in range(layout.pp):
        first = stage * size // per_node
        nodes = (stage * size + size - 1) // per_node - first + 1
        part = cluster.model_copy(update={"nodes": nodes, "node_links": None})
        for axis in AXES:
            pairs = _pairs(layout, part, axis)
            if len(pairs):
                found.append(Ring(stage, axis, first + pairs))
    return found


def _pairs(layout: Layout, stage: ClusterSpec, axis: str) -> IntArray:
    """Return the pairs of nodes of all groups of one kind; an exchange joins all its members."""
    if axis == "ep":
        groups = group_nodes(stage, layout.ep * layout.etp, 1)
        own = [np.unique(group) for group in groups]
        pairs = [np.array([(a, b) for a in some for b in some if a < b]) for some in own]
        return _unique([some.reshape(-1, 2) for some in pairs])
    kinds = {
        "tp": [(layout.tp, 1)],
        "cp": [(layout.cp, layout.tp)],
        "dp": [(layout.dp * layout.cp, layout.tp), (layout.edp, layout.ep * layout.etp)],
    }[axis]
    if layout.ep * layout.etp == 1:
        kinds = kinds[:1]
    return _unique([ring_edges(group_nodes(stage, *kind)) for kind in kinds if kind[0] > 1])


def _unique(pairs: list[IntArray]) -> IntArray:
    some = [one for one in pairs if len(one)]
    return np.unique(np.concatenate(some), axis=0) if some else np.zeros((0, 2), dtype=np.int64)


def pipelines(layout: Layout, cluster: ClusterSpec) -> IntArray:
    """Return the nodes that each hop of each pipeline joins, ``[pipelines, hops, 2]``.

    Pipelines of the same nodes stand once.
    """
    size = layout.gpus // layout.pp
    ranks = rank_of(schedule_name(layout), layout.pp, chunks_of(layout))
    slots = ranks[None, :] * size + np.arange(size)[:, None]
    nodes = slots // cluster.gpus_per_node
    return np.unique(np.stack([nodes[:, :-1], nodes[:, 1:]], axis=-1), axis=0)
