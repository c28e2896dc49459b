"""The passes of a pipeline as a task graph: what runs on which rank, and what waits for what.

Tasks are passes (or, where Megatron exchanges only once per forward and backward pair, pairs).
Edges are the order of each rank and the data: ``F(stage)`` after ``F(stage - 1)``, ``B(stage)``
after ``B(stage + 1)``, each with the seconds of the transfer. Schedules that split the backward
pass have tasks ``W`` too, which only their own rank waits for.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.errors import LayoutError
from planner.schedule.kinds import kind_of
from planner.schedule.orders import checked_group, order
from planner.schedule.passes import IntArray, Order
from planner.simulate.critical_path import Topology, topology


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a task graph depends on."""

    kind: str
    stages: int
    chunks: int
    micro_batches: int
    group: int
    overlap_p2p: bool
    delay: int | None = None
    custom: Order | None = None

    @property
    def splits(self) -> bool:
        """Whether weight gradients are passes of their own."""
        return self.custom.splits_backward if self.custom else kind_of(self.kind).splits

    @property
    def groups(self) -> int:
        """Full groups of micro-batches; the last, partial one is not counted."""
        return self.micro_batches // self.group

    def with_groups(self, groups: int) -> "Shape":
        """Return the same shape with ``groups`` full groups and the same partial one."""
        fewer = self.groups - groups
        return replace(self, micro_batches=self.micro_batches - fewer * self.group)


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """The graph of one shape.

    ``task`` ``[stages, passes of a rank]`` is the task of each pass; ``forward``, ``backward`` and
    ``weight`` ``[tasks]`` its virtual stage or -1; ``boundary`` ``[edges]`` the transfer on an edge
    or -1.
    """

    order: Order
    graph: Topology
    task: IntArray
    forward: IntArray
    backward: IntArray
    weight: IntArray
    boundary: IntArray


def shape_of(
    kind: str | Order,
    stages: int,
    chunks: int,
    micro_batches: int,
    group: int | None,
    overlap_p2p: bool,
    delay: int | None,
) -> Shape:
    """Return the shape of a schedule; LayoutError where its numbers cannot run."""
    if isinstance(kind, Order):
        made = (kind.stages, kind.chunks, kind.micro_batches)
        if made != (stages, chunks, micro_batches):
            raise LayoutError(
                f"the order is for {made[0]} ranks of {made[1]} chunks and {made[2]} "
                f"micro-batches; the pipeline has {stages} of {chunks} and {micro_batches}"
            )
        return Shape(kind.kind, stages, chunks, micro_batches, 1, True, custom=kind)
    group = checked_group(kind, stages, micro_batches, chunks, group)
    return Shape(
        kind, stages, chunks, micro_batches, group, overlap_p2p or kind_of(kind).splits, delay
    )


@lru_cache(maxsize=256)
def tasks_of(shape: Shape) -> Tasks:
    """Return the task graph of a shape; cached, as it depends on no times."""
    passes = shape.custom or order(
        shape.kind, shape.stages, shape.micro_batches, shape.chunks, shape.group, shape.delay
    )
    slot = _slots(passes, shape.overlap_p2p)
    per_rank = slot[:, -1] + 1
    task = slot + (np.cumsum(per_rank) - per_rank)[:, None]
    virtual_stage, count = passes.virtual_stage(), int(per_rank.sum())
    kinds = passes.forward, passes.backward, passes.weight
    forward, backward, weight = made = np.full((3, count), -1)
    for stage_of_task, chosen in zip(made, kinds, strict=True):
        stage_of_task[task[chosen]] = virtual_stage[chosen]
    first = np.zeros(count, dtype=bool)
    first[task[:, 0]] = True
    tails, heads, boundary = _edges(passes, task, first, shape.overlap_p2p)
    graph = topology(count, tails, heads, task[:, 0])
    return Tasks(passes, graph, task, forward, backward, weight, boundary)


def _slots(passes: Order, overlap_p2p: bool) -> IntArray:
    """Return the place of each pass on its rank's timeline, ``[stages, passes of a rank]``.

    Without overlap Megatron's interleaved schedule exchanges once after each forward and backward
    pair of the steady state (``send_forward_backward_recv_forward_backward``): one task.
    """
    place = np.cumsum(~passes.joined, axis=1) - 1
    if overlap_p2p or passes.kind != "interleaved_1f1b":
        return place
    warm = passes.warm_up[:, None]
    return np.where(
        place < warm, place, np.maximum(warm + (place - warm) // 2, place - passes.passes + warm)
    )


def _edges(
    passes: Order, task: IntArray, first: NDArray[np.bool_], overlap_p2p: bool
) -> tuple[IntArray, IntArray, IntArray]:
    """Return tail and head task and boundary (-1 for none) of every edge."""
    later = np.flatnonzero(~first)
    edges = [(later - 1, later, np.full(len(later), -1))]
    sent, received, boundary = passes.transfers()
    sender, receiver = task.ravel()[sent], task.ravel()[received]
    edges.append((sender, receiver, boundary))
    if not overlap_p2p:
        # a rendezvous: both sides reach it (sender, ready), both leave it (receiver, go_on)
        receiver = receiver - _early_receives(passes)
        ready, go_on = receiver - 1, sender + 1
        has_ready = ~first[receiver]
        has_go_on = ~np.append(first, True)[go_on]
        both = has_ready & has_go_on
        edges.append((ready[has_ready], receiver[has_ready], boundary[has_ready]))
        edges.append((sender[has_go_on], go_on[has_go_on], boundary[has_go_on]))
        edges.append((ready[both], go_on[both], boundary[both]))
    tails, heads, boundaries = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    return tails, heads, boundaries


def _early_receives(passes: Order) -> IntArray:
    """Return by how many tasks each transfer is received before its pass needs it.

    The last rank sends to the first, and back, when it has the tensor: ``stages - 1`` passes after
    the other has run that micro-batch. A group larger than the pipeline needs it later
    (``recv_tensor_from_previous_stage`` in Megatron's schedules).
    """
    boundary = np.arange(passes.stages * passes.chunks - 1)[:, None]
    wraps = boundary % passes.stages == passes.stages - 1
    micro_batch = np.arange(passes.micro_batches)
    full = passes.micro_batches // passes.group * passes.group
    size = np.where(micro_batch < full, passes.group, passes.micro_batches - full)
    early = np.where(wraps, np.maximum(size - passes.stages, 0), 0).ravel()
    return np.concatenate([early, early])
