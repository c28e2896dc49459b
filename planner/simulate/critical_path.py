"""Longest path over a graph of tasks, by arrays: one numpy step per level of the graph.

A task starts when all tasks before it have ended, each plus the lag of the edge between them. The
topology depends on no times, so it is sorted once and used for many sets of times; these may
carry leading batch dimensions, which cost far less than one sweep each.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Level(NamedTuple):
    """Tasks of equal depth and the edges into them, as ranges of the sorted order.

    ``tails`` holds the sorted position of each edge's tail, ``first_edges`` the edge (counted
    within the level) at which each task's edges begin.
    """

    tasks: slice
    edges: slice
    tails: IntArray
    first_edges: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """A task graph sorted by depth: sorted place ``i`` holds task ``order[i]``.

    ``edge_order`` sorts the edges by the place of their head, ``place_of_head`` is that place.
    """

    order: IntArray
    edge_order: IntArray
    place_of_head: IntArray
    tails: IntArray
    heads: IntArray
    levels: tuple[Level, ...]

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.order)


@dataclass(frozen=True, slots=True, eq=False)
class CriticalPath:
    """Start and end of each task ``[tasks]``, the length, and the tasks of one longest path."""

    length_s: float
    start_s: FloatArray
    end_s: FloatArray
    path: tuple[int, ...]


def topology(
    tasks: int, tails: ArrayLike, heads: ArrayLike, chains: IntArray | None = None
) -> Topology:
    """Sort a graph of ``tasks`` tasks whose edge ``e`` runs from ``tails[e]`` to ``heads[e]``.

    ``chains`` are the first tasks, in rising order, of runs in which every task has an edge from
    the one before it, such as the passes of a rank; they make sorting several times as fast.

    Raises ``ValueError`` if the graph has a cycle, so that no order of execution exists.
    """
    tail, head = (np.asarray(ends, dtype=np.int64).ravel() for ends in (tails, heads))
    if chains is None or not tasks:
        order, widths = _by_depth(tasks, tail, head)
    else:
        order, widths = _chains_by_depth(tasks, tail, head, chains)
    if len(order) < tasks:
        stuck = np.setdiff1d(np.arange(tasks), order)
        raise ValueError(
            f"the task graph has a cycle; {len(stuck)} tasks wait, one is {int(stuck[0])}"
        )
    place = np.empty(tasks, dtype=np.int64)
    place[order] = np.arange(tasks)
    place_of_head = place[head]
    edge_order = np.argsort(place_of_head, kind="stable")
    place_of_head = place_of_head[edge_order]
    levels = _levels(widths, place[tail[edge_order]], place_of_head)
    return Topology(order, edge_order, place_of_head, tail, head, levels)


def end_times(graph: Topology, task_s: ArrayLike, lag_s: ArrayLike | None = None) -> FloatArray:
    """Return when each task ends, in seconds, shape ``[..., tasks]`` as ``task_s``.

    ``lag_s`` of shape ``[..., edges]`` is the delay on each edge, such as a transfer (default 0).
    Leading dimensions broadcast.
    """
    tasks_s = np.asarray(task_s, dtype=float)
    lags_s = np.zeros(len(graph.tails)) if lag_s is None else np.asarray(lag_s, dtype=float)
    batch = np.broadcast_shapes(tasks_s.shape[:-1], lags_s.shape[:-1])
    # tasks come first, so that one level is one block of memory whatever the batch
    end = _sorted_rows(tasks_s, batch, graph.order)
    # the head's own time rides on its edges: one operation less per level
    cost = _sorted_rows(lags_s, batch, graph.edge_order) + end[graph.place_of_head]
    for level in graph.levels:
        arrival = end.take(level.tails, axis=0)
        arrival += cost[level.edges]
        np.maximum.reduceat(arrival, level.first_edges, axis=0, out=end[level.tasks])
    result = np.empty((*batch, graph.tasks))
    result[..., graph.order] = end.T.reshape(*batch, graph.tasks)
    return result


def critical_path(
    graph: Topology, task_s: ArrayLike, lag_s: ArrayLike | None = None
) -> CriticalPath:
    """Return length, start, end and one longest path for a single set of times."""
    tasks_s = np.asarray(task_s, dtype=float)
    lags_s = np.zeros(len(graph.tails)) if lag_s is None else np.asarray(lag_s, dtype=float)
    end_s = end_times(graph, tasks_s, lags_s)
    if not graph.tasks:
        return CriticalPath(0.0, end_s, end_s, ())
    # of the edges into each task keep the one that arrives last: a stable sort puts it last
    arrival = end_s[graph.tails] + lags_s
    binding = np.full(graph.tasks, -1)
    by_arrival = np.argsort(arrival, kind="stable")
    binding[graph.heads[by_arrival]] = graph.tails[by_arrival]
    task = int(end_s.argmax())
    path = [task]
    while (task := int(binding[task])) >= 0:
        path.append(task)
    return CriticalPath(float(end_s.max()), end_s - tasks_s, end_s, tuple(reversed(path)))


def _sorted_rows(times: FloatArray, batch: tuple[int, ...], order: IntArray) -> FloatArray:
    """Return ``times[..., order]`` as ``[len(order), batch size]``."""
    rows = np.broadcast_to(times, (*batch, len(order))).reshape(math.prod(batch), len(order))
    return rows.T[order]


def _by_depth(tasks: int, tails: IntArray, heads: IntArray) -> tuple[IntArray, IntArray]:
    """Return tasks by the edges on the longest chain into each, and how many have 0, 1, ... edges.

    Kahn's algorithm, without the tasks of a cycle. A plain loop: of a graph of which no more is
    known levels may be narrow, and lists then beat arrays.
    """
    waiting = np.bincount(heads, minlength=tasks).tolist()
    first = np.concatenate([[0], np.cumsum(np.bincount(tails, minlength=tasks))]).tolist()
    successors = heads[np.argsort(tails, kind="stable")].tolist()
    depth = [0] * tasks
    ready = [task for task in range(tasks) if not waiting[task]]
    for task in ready:
        below = depth[task] + 1
        for after in successors[first[task] : first[task + 1]]:
            waiting[after] -= 1
            # tasks become ready in order of depth, so the last to arrive is the deepest
            if not waiting[after]:
                depth[after] = below
                ready.append(after)
    order = np.array(ready, dtype=np.int64)
    return order, np.bincount(np.array(depth, dtype=np.int64)[order])


def _chains_by_depth(
    tasks: int, tails: IntArray, heads: IntArray, chains: IntArray
) -> tuple[IntArray, IntArray]:
    """Return what ``_by_depth`` does, with one step of arrays per depth: the next of each chain."""
    number = np.arange(len(chains))
    ends = np.append(chains[1:], tasks)
    # behind each chain lies a place that never becomes ready
    place = np.arange(tasks) + number.repeat(ends - chains)
    never, nothing = tasks + len(chains) + np.arange(2)
    done = np.zeros(nothing + 1, dtype=bool)
    done[nothing] = True
    columns = _waits(place[tails], place[heads], np.full(nothing, nothing))
    columns[0][ends + number] = never
    following, fronts = chains + number, []
    while True:
        ready = done.take(columns[0].take(following))
        for column in columns[1:]:
            ready &= done.take(column.take(following))
        front = following[ready]
        if not len(front):
            break
        done[front] = True
        following += ready
        fronts.append(front)
    found = np.concatenate(fronts) if fronts else np.empty(0, dtype=np.int64)
    order = found - number.repeat(ends - chains + 1)[found]
    return order, np.array([len(front) for front in fronts], dtype=np.int64)


def _waits(tails: IntArray, heads: IntArray, nothing: IntArray) -> list[IntArray]:
    """Return columns that together hold the tails of every head, apart from the task before it."""
    kept = tails != heads - 1
    tails, heads = tails[kept], heads[kept]
    columns: list[IntArray] = []
    while len(heads) or not columns:
        column = nothing.copy()
        column[heads] = tails
        columns.append(column)
        left = column[heads] != tails  # of several tails the last stands in the column
        tails, heads = tails[left], heads[left]
    return columns


def _levels(widths: IntArray, tails: IntArray, place_of_head: IntArray) -> tuple[Level, ...]:
    """Cut sorted tasks and edges into levels; the first level has no edges and is left out."""
    bounds = np.concatenate([[0], np.cumsum(widths)])
    edges_into = np.bincount(place_of_head, minlength=bounds[-1])
    first = np.concatenate([[0], np.cumsum(edges_into)])
    starts = first[:-1] - first[bounds[:-1]].repeat(widths)
    cuts = zip(bounds.tolist(), first[bounds].tolist(), strict=True)
    return tuple(
        Level(slice(low, high), slice(begin, end), tails[begin:end], starts[low:high])
        for (low, begin), (high, end) in list(pairwise(cuts))[1:]
    )
