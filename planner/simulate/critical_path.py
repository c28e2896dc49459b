"""Longest path over a graph of tasks, by arrays: one numpy step per level of the graph.

A task starts when all tasks before it have ended, each plus the lag of the edge between them. The
topology depends on no times, so it is sorted once and used for many sets of times; these may
carry leading batch dimensions, which cost far less than one sweep each.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
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


def topology(tasks: int, tails: ArrayLike, heads: ArrayLike) -> Topology:
    """Sort a graph of ``tasks`` tasks whose edge ``e`` runs from ``tails[e]`` to ``heads[e]``.

    Raises ``ValueError`` if the graph has a cycle, so that no order of execution exists.
    """
    tail, head = (np.asarray(ends, dtype=np.int64).ravel() for ends in (tails, heads))
    depth = _depths(tasks, tail, head)
    order = np.argsort(depth, kind="stable")
    place = np.empty(tasks, dtype=np.int64)
    place[order] = np.arange(tasks)
    edge_order = np.argsort(place[head], kind="stable")
    place_of_head = place[head[edge_order]]
    levels = _levels(np.bincount(depth), place[tail[edge_order]], place_of_head)
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
    graph: Topology,
    task_s: ArrayLike,
    lag_s: ArrayLike | None = None,
    last: int | None = None,
) -> CriticalPath:
    """Return length, start, end and one longest path for a single set of times.

    The path leads to the task ``last``, by default to the one that ends last.
    """
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
    task = int(end_s.argmax()) if last is None else last
    path = [task]
    while (task := int(binding[task])) >= 0:
        path.append(task)
    return CriticalPath(float(end_s[path[0]]), end_s - tasks_s, end_s, tuple(reversed(path)))


def _sorted_rows(times: FloatArray, batch: tuple[int, ...], order: IntArray) -> FloatArray:
    """Return ``times[..., order]`` as ``[len(order), batch size]``."""
    rows = np.broadcast_to(times, (*batch, len(order))).reshape(math.prod(batch), len(order))
    return rows.T[order]


def _depths(tasks: int, tails: IntArray, heads: IntArray) -> IntArray:
    """Return the number of edges on the longest chain into each task (Kahn's algorithm).

    A plain loop: levels are narrow, so lists beat arrays here.
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
    if len(ready) < tasks:
        stuck = next(task for task in range(tasks) if waiting[task])
        raise ValueError(
            f"the task graph has a cycle; {tasks - len(ready)} tasks wait, one is {stuck}"
        )
    return np.array(depth, dtype=np.int64)


def _levels(widths: IntArray, tails: IntArray, place_of_head: IntArray) -> tuple[Level, ...]:
    """Cut sorted tasks and edges into levels; the first level has no edges and is left out."""
    task_bounds = np.concatenate([[0], np.cumsum(widths)])
    first_edge = np.searchsorted(place_of_head, np.arange(task_bounds[-1] + 1))
    levels = []
    for low, high in zip(task_bounds[1:-1].tolist(), task_bounds[2:].tolist(), strict=True):
        edges = slice(int(first_edge[low]), int(first_edge[high]))
        starts = first_edge[low:high] - edges.start
        levels.append(Level(slice(low, high), edges, tails[edges], starts))
    return tuple(levels)
