"""Time of one pipeline of forward and backward passes, executed as the graph of ``tasks``.

Overlapped transfers (``overlap_p2p_comm``) delay only the receiving pass. Without overlap a
transfer is a rendezvous: it begins when both ranks have reached it and holds both until its end,
as ``send_forward_recv_backward`` and its relatives in Megatron-LM
``core/pipeline_parallel/p2p_communication.py``. Both directions of one exchange run at once.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.schedule.kinds import kind_of, stage_of
from planner.schedule.passes import Order
from planner.simulate.critical_path import end_times
from planner.simulate.tasks import Shape, Tasks, shape_of, tasks_of

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
class Times:
    """Seconds, one row per candidate: ``[candidates, virtual stages]``, send one fewer."""

    forward_s: FloatArray
    backward_s: FloatArray
    send_s: FloatArray
    weight_s: FloatArray

    def rows(self, chosen: IntArray) -> "Times":
        """Return the chosen candidates."""
        return Times(
            self.forward_s[chosen],
            self.backward_s[chosen],
            self.send_s[chosen],
            self.weight_s[chosen],
        )


@dataclass(frozen=True, slots=True, eq=False)
class PassTimes:
    """When each pass of one pipeline runs, for a timeline.

    ``start_s``, ``end_s`` and ``held_s`` (the end of a pass that is spent sending) have the shape
    ``[stages, passes of a rank]``; ``send_s`` is the transfer behind each virtual stage but the
    last; ``task_end_s`` ``[tasks]`` and ``lag_s`` ``[edges]`` belong to the graph of ``tasks``.
    """

    tasks: Tasks
    start_s: FloatArray
    end_s: FloatArray
    held_s: FloatArray
    send_s: FloatArray
    task_end_s: FloatArray
    lag_s: FloatArray

    @property
    def order(self) -> Order:
        """The order of the passes."""
        return self.tasks.order


class GraphTimes(NamedTuple):
    """The task graph of one pipeline: end of each task ``[tasks]``, lag on each edge ``[edges]``.

    ``held``: passes include the time in which they are sent, and edges have no lag.
    """

    tasks: Tasks
    end_s: FloatArray
    lag_s: FloatArray
    held: bool


def pipeline_time(
    kind: str | Order,
    stages: int,
    chunks: int,
    micro_batches: int,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    send_s: ArrayLike,
    overlap_p2p: bool,
    group: int | None = None,
    weight_s: ArrayLike | None = None,
    delay: int | None = None,
) -> PipelineResult:
    """Execute ``micro_batches`` on one pipeline and return its times.

    ``forward_s`` and ``backward_s`` ``[..., stages * chunks]`` are seconds of one micro-batch on
    each virtual stage; ``send_s`` ``[..., stages * chunks - 1]`` is the transfer from each virtual
    stage to the next, forward or backward. Leading dimensions are candidates that share the
    schedule; a batch costs little more than one.

    ``kind`` names the schedule, or is an order that a file gave (``schedule.custom``).
    Where the schedule splits the backward pass, ``backward_s`` is the input gradient, ``weight_s``
    the weight gradient (needed there, refused elsewhere). Without overlap a transfer then holds its
    sender alone; the receiver meanwhile sends the other way (one exchange, as the zero-bubble
    runtime batches them), so no rank waits for another's pace.
    """
    shape = shape_of(kind, stages, chunks, micro_batches, group, overlap_p2p, delay)
    batch, times = _times(shape, forward_s, backward_s, send_s, weight_s)
    run = times if overlap_p2p else _with_held_sends(shape, times)
    first_forward, first_backward, last_backward = _execute(shape, run)
    of_rank = shape.custom.stage if shape.custom else stage_of(shape.kind, stages, chunks)
    compute = (times.forward_s + times.backward_s + times.weight_s)[:, of_rank]
    pipelines = 1 if shape.custom else kind_of(shape.kind).pipelines
    busy = micro_batches // pipelines * compute.sum(axis=1)
    total = last_backward.max(axis=1)
    idle = total[:, None] - busy
    by_rank = (busy, idle, first_forward, first_backward, last_backward)
    return PipelineResult(
        total.reshape(batch), *(array.reshape(*batch, stages) for array in by_rank)
    )


def pipeline_trace(
    kind: str | Order,
    stages: int,
    chunks: int,
    micro_batches: int,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    send_s: ArrayLike,
    overlap_p2p: bool,
    group: int | None = None,
    weight_s: ArrayLike | None = None,
    delay: int | None = None,
) -> PassTimes:
    """Return when every pass and task of one pipeline runs; arguments as ``pipeline_time``."""
    shape = shape_of(kind, stages, chunks, micro_batches, group, overlap_p2p, delay)
    _, raw = _times(shape, forward_s, backward_s, send_s, weight_s)
    times = raw if overlap_p2p else _with_held_sends(shape, raw)
    made, task_end_s, lag_s = _graph_times(shape, times)
    order, stage = made.order, made.order.virtual_stage()

    def of_passes(seconds: Times) -> FloatArray:
        own_s = np.where(order.backward, seconds.backward_s[0][stage], seconds.forward_s[0][stage])
        return np.asarray(np.where(order.weight, seconds.weight_s[0][stage], own_s))

    own_s, end_s = of_passes(times), task_end_s[made.task]
    # passes of one task run one after the other, the last one up to its end
    joined = made.task[:, :-1] == made.task[:, 1:]
    for _ in range(int(np.bincount(made.task.ravel()).max()) - 1):
        next_start_s = end_s[:, 1:] - own_s[:, 1:]
        end_s[:, :-1] = np.where(joined, next_start_s, end_s[:, :-1])
    held_s = own_s - of_passes(raw)
    return PassTimes(made, end_s - own_s, end_s, held_s, raw.send_s[0], task_end_s, lag_s)


def graph_times(arguments: dict[str, Any]) -> GraphTimes:
    """Return when the tasks of one pipeline end; ``arguments`` are those of ``pipeline_time``."""
    of_shape = ("kind", "stages", "chunks", "micro_batches", "group", "overlap_p2p", "delay")
    shape = shape_of(*(arguments.get(name) for name in of_shape))  # type: ignore[arg-type]
    seconds = ("forward_s", "backward_s", "send_s", "weight_s")
    _, raw = _times(shape, *(arguments.get(name) for name in seconds))  # type: ignore[arg-type]
    times = raw if arguments["overlap_p2p"] else _with_held_sends(shape, raw)
    return GraphTimes(*_graph_times(shape, times), times is not raw)


def _graph_times(shape: Shape, times: Times) -> tuple[Tasks, FloatArray, FloatArray]:
    """Return the graph, the end of its tasks ``[tasks]`` and the lag on its edges ``[edges]``."""
    made = tasks_of(shape)
    return made, _end_s(shape, times)[0], np.append(times.send_s[0], 0.0)[made.boundary]


def _with_held_sends(shape: Shape, times: Times) -> Times:
    """Return times in which passes of a split backward hold their rank until they are sent."""
    if not (shape.splits or shape.custom):
        return times  # a rendezvous: edges of the graph
    forward_s, backward_s = times.forward_s.copy(), times.backward_s.copy()
    forward_s[:, :-1] += times.send_s
    backward_s[:, 1:] += times.send_s
    return Times(forward_s, backward_s, np.zeros_like(times.send_s), times.weight_s)


def _times(
    shape: Shape,
    forward_s: ArrayLike,
    backward_s: ArrayLike,
    send_s: ArrayLike,
    weight_s: ArrayLike | None,
) -> tuple[tuple[int, ...], Times]:
    """Return the common batch shape and the times as one row per candidate."""
    if weight_s is None and shape.splits:
        raise ValueError(f"{shape.kind} splits the backward pass: weight_s is missing")
    if weight_s is not None and not shape.splits:
        raise ValueError(f"{shape.kind} does not split the backward pass: leave weight_s out")
    count = shape.stages * shape.chunks
    given = (forward_s, backward_s, send_s, np.zeros(count) if weight_s is None else weight_s)
    arrays = [np.asarray(times, dtype=float) for times in given]
    names, widths = (
        ("forward_s", "backward_s", "send_s", "weight_s"),
        (count, count, count - 1, count),
    )
    for name, array, width in zip(names, arrays, widths, strict=True):
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

    GPipe has no steady state of all ranks (no rank waits for a later one), so it runs in full, and
    so do schedules with W passes.
    """
    if shape.kind == "gpipe" or shape.splits or shape.custom:
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
    made = tasks_of(shape)
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


def _end_s(shape: Shape, times: Times) -> FloatArray:
    """Return the end of every task, ``[candidates, tasks]``."""
    made = tasks_of(shape)
    none = np.zeros((len(times.forward_s), 1))  # what index -1 stands for
    forward, backward, send, weight = (
        np.concatenate([seconds, none], axis=1)
        for seconds in (times.forward_s, times.backward_s, times.send_s, times.weight_s)
    )
    task_s = forward[:, made.forward] + backward[:, made.backward] + weight[:, made.weight]
    return end_times(made.graph, task_s, send[:, made.boundary])


def _measures(shape: Shape, times: Times, end_s: FloatArray) -> FloatArray:
    """Return first forward start, first backward start, last backward end ``[3, ..., stages]``."""
    made = tasks_of(shape)
    ranks = np.arange(shape.stages)
    first_backward = made.task[ranks, made.order.backward.argmax(axis=1)]
    first_forward = made.task[:, 0]
    none = np.zeros((len(times.forward_s), 1))  # what index -1 stands for
    forward, backward, weight = (
        np.concatenate([seconds, none], axis=1)
        for seconds in (times.forward_s, times.backward_s, times.weight_s)
    )
    # a task may hold several passes: F comes first, then B, then W
    rest = backward[:, made.backward[first_forward]] + weight[:, made.weight[first_forward]]
    forward_start = end_s[:, first_forward] - rest - forward[:, made.forward[first_forward]]
    rest = backward[:, made.backward[first_backward]] + weight[:, made.weight[first_backward]]
    backward_start = end_s[:, first_backward] - rest
    return np.stack([forward_start, backward_start, end_s[:, made.task[:, -1]]])
