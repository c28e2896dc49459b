"""Time of one pipeline of forward and backward passes, executed as a task graph.

Tasks are passes (or, where Megatron exchanges only once per forward and backward pair, pairs).
Edges are the order of each rank and the data: ``F(stage)`` after ``F(stage - 1)``, ``B(stage)``
after ``B(stage + 1)``, each with the seconds of the transfer.

Overlapped transfers (``overlap_p2p_comm``) delay only the receiving pass. Without overlap a
transfer is a rendezvous: it begins when both ranks have reached it and holds both until its end,
as ``send_forward_recv_backward`` and its relatives in Megatron-LM
``core/pipeline_parallel/p2p_communication.py``. Both directions of one exchange run at once.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.schedule.orders import Order, checked_group, order
from planner.simulate.critical_path import Topology, critical_path, end_times, topology

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PipelineResult:
    """Times of one step's passes, in seconds from its first pass.

    ``total_s`` is ``[...]`` (the batch of the inputs, a 0-d array for none), the others ``[...,
    stages]`` by rank. Idle time is all that is not compute: bubble and exposed transfers.
    """

    total_s: FloatArray
    per_rank_busy_s: FloatArray
    per_rank_idle_s: FloatArray
    first_forward_start_s: FloatArray
    first_backward_s: FloatArray
    last_backward_end_s: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class PassTimes:
    """Start, end, and place on one longest path, of each pass: ``[stages, 2 * passes]``."""

    order: Order
    start_s: FloatArray
    end_s: FloatArray
    critical: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shape:
    """All that a task graph depends on."""

    kind: str
    stages: int
    chunks: int
    micro_batches: int
    group: int
    overlap_p2p: bool

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

    ``task`` ``[stages, 2 * passes]`` is the task of each pass; ``forward`` and ``backward``
    ``[tasks]`` its virtual stage or -1; ``boundary`` ``[edges]`` the transfer on an edge or -1.
    """

    order: Order
    graph: Topology
    task: IntArray
    forward: IntArray
    backward: IntArray
    boundary: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Seconds, one row per candidate: ``[candidates, virtual stages]``, send one fewer."""

    forward_s: FloatArray
    backward_s: FloatArray
    send_s: FloatArray

    def rows(self, chosen: IntArray) -> "Times":
        """Return the chosen candidates."""
        return Times(self.forward_s[chosen], self.backward_s[chosen], self.send_s[chosen])


def pipeline_time(
    kind: str,
    stages: int,
    chunks: int,
    micro_batches: int,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    send_s: ArrayLike,
    overlap_p2p: bool,
    group: int | None = None,
) -> PipelineResult:
    """Execute ``micro_batches`` on one pipeline and return its times.

    ``forward_s`` and ``backward_s`` ``[..., stages * chunks]`` are seconds of one micro-batch on
    each virtual stage (``chunk * stages + rank``); ``send_s`` ``[..., stages * chunks - 1]`` is the
    transfer from each virtual stage to the next, forward or backward. Leading dimensions are
    candidates that share the schedule; a batch costs little more than one.
    """
    group = checked_group(kind, stages, micro_batches, chunks, group)
    shape = Shape(kind, stages, chunks, micro_batches, group, overlap_p2p)
    batch, times = _times(stages * chunks, forward_s, backward_s, send_s)
    first_forward, first_backward, last_backward = _execute(shape, times)
    compute = (times.forward_s + times.backward_s).reshape(-1, chunks, stages)
    busy = micro_batches * compute.sum(axis=1)
    total = last_backward.max(axis=1)
    idle = total[:, None] - busy
    by_rank = (busy, idle, first_forward, first_backward, last_backward)
    return PipelineResult(
        total.reshape(batch), *(array.reshape(*batch, stages) for array in by_rank)
    )


def pass_times(
    kind: str,
    stages: int,
    chunks: int,
    micro_batches: int,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    send_s: ArrayLike,
    overlap_p2p: bool,
    group: int | None = None,
    tail_s: FloatArray | float = 0.0,
) -> PassTimes:
    """Return when each pass runs; arguments as ``pipeline_time`` without batch.

    The critical path ends where a rank is done with ``tail_s`` ``[stages]`` after its last pass.
    """
    group = checked_group(kind, stages, micro_batches, chunks, group)
    shape = Shape(kind, stages, chunks, micro_batches, group, overlap_p2p)
    _, times = _times(stages * chunks, forward_s, backward_s, send_s)
    passes, made = order(kind, stages, micro_batches, chunks, group), _tasks(shape)
    stage = passes.virtual_stage()
    own_s = np.where(passes.backward, times.backward_s[0][stage], times.forward_s[0][stage])
    task_s, lag_s = (seconds[0] for seconds in _task_s(shape, times))
    task_end_s = end_times(made.graph, task_s, lag_s)
    done_s = task_end_s[made.task[:, -1]] + tail_s
    last = int(made.task[done_s.argmax(), -1])
    path = critical_path(made.graph, task_s, lag_s, last).path
    # the forward pass of a pair ends where its backward pass starts
    pair = np.append(made.task[:, 1:] == made.task[:, :-1], np.zeros((stages, 1), bool), axis=1)
    end_s = task_end_s[made.task] - np.where(pair, np.roll(own_s, -1, axis=1), 0.0)
    return PassTimes(passes, end_s - own_s, end_s, np.isin(made.task, path))


def _times(
    count: int, forward_s: ArrayLike, backward_s: ArrayLike, send_s: ArrayLike
) -> tuple[tuple[int, ...], Times]:
    """Return the common batch shape and the times as one row per candidate."""
    arrays = [np.asarray(times, dtype=float) for times in (forward_s, backward_s, send_s)]
    widths = (count, count, count - 1)
    for name, array, width in zip(
        ("forward_s", "backward_s", "send_s"), arrays, widths, strict=True
    ):
        if array.shape[-1:] != (width,):
            raise ValueError(f"{name} has the shape {array.shape}; its last axis must be {width}")
    batch = np.broadcast_shapes(*(array.shape[:-1] for array in arrays))
    rows = (
        np.broadcast_to(array, (*batch, width)).reshape(math.prod(batch), width)
        for array, width in zip(arrays, widths, strict=True)
    )
    return batch, Times(*rows)


def _execute(shape: Shape, times: Times) -> FloatArray:
    """Return first forward start, first and last backward, ``[3, candidates, stages]``.

    The graph is a max-plus linear system: once all ranks repeat themselves with a period, they do
    so until the warm-down begins. So a short run in which the period shows (``_cycles``) gives the
    long run exactly: the same times, the last ones later by the periods left out.
    """
    result = np.empty((3, len(times.forward_s), shape.stages))
    left = np.arange(len(times.forward_s))
    for short in _short_shapes(shape):
        end_s = _end_s(short, times.rows(left))
        cycles = _cycles(short, end_s) if short != shape else np.ones(len(left), dtype=np.int64)
        for cycle in np.unique(cycles[cycles > 0]).tolist():
            members = np.flatnonzero(cycles == cycle)
            chosen = times.rows(left[members])
            # the run left out must be whole cycles
            exact = shape.with_groups(short.groups + (shape.groups - short.groups) % cycle)
            end = end_s[members] if exact == short else _end_s(exact, chosen)
            measures = _measures(exact, chosen, end)
            repeats = (shape.groups - exact.groups) // cycle
            if repeats:
                measures[2] += repeats * _period_s(exact, end, cycle)[:, None]
            result[:, left[members]] = measures
        left = left[cycles == 0]
        if not len(left):
            break
    return result


def _short_shapes(shape: Shape) -> list[Shape]:
    """Return shapes to try, shortest first; the last is ``shape`` itself.

    GPipe has no steady state of all ranks (no rank waits for a later one), so it runs in full.
    """
    if shape.kind == "gpipe":
        return [shape]
    least = -(-_steady_from(shape) // (shape.group * shape.chunks))
    stages, full = shape.stages, shape.groups
    if shape.kind == "1f1b":
        # cycles over all stages are common: leave out a multiple of them
        tries = [groups + (full - groups) % stages for groups in (least + stages, 5 * stages)]
    else:
        tries = [least + 2, least + 6]
    # a cold shape costs more than it saves unless it is clearly shorter
    return [shape.with_groups(groups) for groups in tries if 1.25 * groups < full] + [shape]


def _steady_from(shape: Shape) -> int:
    """Return the passes of rank 0 after which one window of the steady state is complete."""
    warm_up = shape.stages - 1
    if shape.kind != "1f1b":
        warm_up = 2 * warm_up + (shape.chunks - 1) * shape.group
    return warm_up + _memory(shape)


def _memory(shape: Shape) -> int:
    """Return how many steady pairs back a pass can depend on, counted along the skewed cut.

    The cut holds pair ``u + rank`` of each rank. Passes then depend on pair ``u - 1`` at the
    latest, or across a wrap from the last rank to the first on ``group - stages + 1`` pairs ago.
    1F1B without overlap reaches one further: the other end of a rendezvous.
    """
    return max(2, shape.group - shape.stages + 1)


@lru_cache(maxsize=256)
def _windows(shape: Shape) -> IntArray:
    """Return the tasks of the last steady window and of those 1, 2, ... groups earlier.

    Shape ``[windows, tasks of a window]``: ``_memory`` pairs of each rank, along the skewed cut.
    """
    made = _tasks(shape)
    per_group = shape.group * shape.chunks
    steady = shape.groups * per_group
    last = steady - int(made.order.warm_up[0]) - 1
    windows = np.arange((steady - _steady_from(shape)) // per_group + 1)
    # [windows, stages, pairs of a window]
    pairs = last - windows[:, None, None] * per_group - np.arange(_memory(shape))
    pairs = pairs + np.arange(shape.stages)[:, None]
    forward_at = made.order.warm_up[:, None] + 2 * pairs
    ranks = np.arange(shape.stages)[:, None]
    tasks = np.concatenate([made.task[ranks, forward_at], made.task[ranks, forward_at + 1]], -1)
    return tasks.reshape(len(windows), -1)


def _cycles(shape: Shape, end_s: FloatArray) -> IntArray:
    """Return after how many groups each candidate repeats itself, ``[candidates]``; 0: not yet.

    Max-plus systems do not expand distances, so a difference of 1e-13 stays one.
    """
    ends = end_s[:, _windows(shape)]
    step = ends[:, :1] - ends[:, 1:]
    repeats = step.max(axis=2) - step.min(axis=2) <= 1e-13 * ends[:, :1].max(axis=2)
    return np.where(repeats.any(axis=1), repeats.argmax(axis=1) + 1, 0)


def _period_s(shape: Shape, end_s: FloatArray, cycle: int) -> FloatArray:
    """Return the seconds of ``cycle`` groups in the steady state, ``[candidates]``."""
    now, earlier = _windows(shape)[[0, cycle]]
    return np.asarray((end_s[:, now] - end_s[:, earlier]).mean(axis=1))


def _task_s(shape: Shape, times: Times) -> tuple[FloatArray, FloatArray]:
    """Return the seconds of every task ``[candidates, tasks]`` and edge ``[candidates, edges]``."""
    made = _tasks(shape)
    none = np.zeros((len(times.forward_s), 1))  # what index -1 stands for
    forward, backward, send = (
        np.concatenate([seconds, none], axis=1)
        for seconds in (times.forward_s, times.backward_s, times.send_s)
    )
    return forward[:, made.forward] + backward[:, made.backward], send[:, made.boundary]


def _end_s(shape: Shape, times: Times) -> FloatArray:
    """Return the end of every task, ``[candidates, tasks]``."""
    return end_times(_tasks(shape).graph, *_task_s(shape, times))


def _measures(shape: Shape, times: Times, end_s: FloatArray) -> FloatArray:
    """Return first forward start, first backward start, last backward end ``[3, ..., stages]``."""
    made = _tasks(shape)
    ranks = np.arange(shape.stages)
    first_backward = made.task[ranks, made.order.backward.argmax(axis=1)]
    first_forward = made.task[:, 0]
    # a task may be a pair: its forward pass is at the start, its backward pass at the end
    pair_s = np.where(
        made.backward[first_forward] >= 0, times.backward_s[:, made.backward[first_forward]], 0.0
    )
    forward_start = end_s[:, first_forward] - pair_s - times.forward_s[:, ranks]
    backward_start = end_s[:, first_backward] - times.backward_s[:, made.backward[first_backward]]
    return np.stack([forward_start, backward_start, end_s[:, made.task[:, -1]]])


@lru_cache(maxsize=256)
def _tasks(shape: Shape) -> Tasks:
    """Return the task graph of a shape; cached, as it depends on no times."""
    passes = order(shape.kind, shape.stages, shape.micro_batches, shape.chunks, shape.group)
    slot = _slots(passes, shape.overlap_p2p)
    per_rank = slot[:, -1] + 1
    task = slot + (np.cumsum(per_rank) - per_rank)[:, None]
    virtual_stage, count = passes.virtual_stage(), int(per_rank.sum())
    forward, backward = np.full((2, count), -1)
    forward[task[~passes.backward]] = virtual_stage[~passes.backward]
    backward[task[passes.backward]] = virtual_stage[passes.backward]
    first = np.zeros(count, dtype=bool)
    first[task[:, 0]] = True
    tails, heads, boundary = _edges(passes, task, first, shape.overlap_p2p)
    return Tasks(passes, topology(count, tails, heads), task, forward, backward, boundary)


def _slots(passes: Order, overlap_p2p: bool) -> IntArray:
    """Return the place of each pass on its rank's timeline, ``[stages, 2 * passes]``.

    Without overlap Megatron's interleaved schedule exchanges once after each forward and backward
    pair of the steady state (``send_forward_backward_recv_forward_backward``): one task.
    """
    place = np.arange(2 * passes.passes) + np.zeros((passes.stages, 1), dtype=np.int64)
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
    sender, receiver, boundary = _transfers(passes, task)
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


def _transfers(passes: Order, task: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return sending task, receiving task and boundary of each transfer between stages."""
    virtual_stage, last = passes.virtual_stage(), passes.stages * passes.chunks - 1
    of_forward, of_backward = np.empty((2, last + 1, passes.micro_batches), dtype=np.int64)
    for table, chosen in ((of_forward, ~passes.backward), (of_backward, passes.backward)):
        table[virtual_stage[chosen], passes.micro_batch[chosen]] = task[chosen]
    boundary = np.arange(last).repeat(passes.micro_batches)
    sender = np.concatenate([of_forward[:-1].ravel(), of_backward[1:].ravel()])
    receiver = np.concatenate([of_forward[1:].ravel(), of_backward[:-1].ravel()])
    return sender, receiver, np.concatenate([boundary, boundary])
