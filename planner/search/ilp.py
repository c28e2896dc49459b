"""Layers to stages as an integer programme, where chunks share the memory and time of a rank.

One binary per priced column (stage, run of layers, recomputed layers) instead of one per layer,
stage and choice: the columns that cannot beat the incumbent are left out before the solver starts.
Written for what PuLP 3.3 and 4.x have in common; HiGHS solves.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.search.partition import (
    PER_LAYER,
    UNEVEN,
    FloatArray,
    IntArray,
    Partition,
    PartitionProblem,
    least_sums,
    no_partition,
    objective_s,
    rank_bytes,
    stage_prices,
)

PROVED = 1e-6  # relative gap at which an answer counts as optimal
SOLVER_OPTIONS = {"mip_feasibility_tolerance": 1e-9, "primal_feasibility_tolerance": 1e-9}


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Priced choices, one per row: ``bytes`` is ``[columns, moments]``.

    With equal layers ``first`` is 0 throughout: only the number of layers matters.
    """

    stage: IntArray
    first: IntArray
    held: IntArray
    recompute: IntArray
    seconds: FloatArray
    bytes: FloatArray

    def at(self, chosen: Any) -> "Columns":
        """Return the chosen rows."""
        names = ("stage", "first", "held", "recompute", "seconds", "bytes")
        return Columns(*(getattr(self, name)[chosen] for name in names))


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver run left: values by column, best bound, and whether it ran to its end."""

    chosen: IntArray
    bound: float
    finished: bool


def solve(
    problem: PartitionProblem, incumbent: Partition | None = None, time_limit_s: float = 5.0
) -> Partition:
    """Return the best partition found in ``time_limit_s``, with the gap that is still open."""
    columns, least = _priced_columns(problem, incumbent)
    if incumbent is not None and time_limit_s <= 0:
        return _unproved(incumbent, least)
    solved = _solve(problem, columns, _objective, time_limit_s) if len(columns.stage) else None
    found = _partition(problem, columns, solved.chosen) if solved and len(solved.chosen) else None
    candidates = [answer for answer in (incumbent, found) if answer is not None]  # first of equals
    if not candidates:
        if solved is None or solved.finished:
            return no_partition(shortfall_bytes(problem, time_limit_s))
        return Partition((), (), float("inf"), float("inf"), "time limit")
    best = min(candidates, key=lambda answer: answer.objective_s)
    if solved is None or solved.finished:  # nothing better is left
        return replace(best, gap=0.0, status="optimal")
    return _unproved(best, max(least, solved.bound))


def _unproved(answer: Partition, bound_s: float) -> Partition:
    gap = max(0.0, 1 - bound_s / answer.objective_s)
    return replace(answer, gap=gap, status="time limit" if gap > PROVED else "optimal")


def shortfall_bytes(problem: PartitionProblem, time_limit_s: float = 5.0) -> float:
    """Return the bytes that the fullest rank lacks at best, with every layer recomputed."""
    size = len(problem.forward_s) + 1
    all_of_run = np.maximum(0, np.arange(size) - np.arange(size)[:, None])
    all_of_runs = np.tile(all_of_run, (problem.stages * problem.chunks, 1, 1))
    all_of_runs[0, 1:] = all_of_runs[-1, :, :-1] = 0  # the first stage starts, the last one ends
    stage, first, end = np.nonzero(all_of_runs)
    columns = _expanded(problem, stage, first, end, all_of_runs)
    solved = _solve(problem, columns, _excess, time_limit_s)
    layers = tuple(len(part) for part in np.array_split(problem.forward_s, len(all_of_runs)))
    if len(solved.chosen):
        layers = _partition(problem, columns, solved.chosen).layers
    return float((rank_bytes(problem, layers, layers) - problem.limit_bytes).max())


def _priced_columns(
    problem: PartitionProblem, incumbent: Partition | None
) -> tuple[Columns, float]:
    """Return the columns that can be part of a better answer, and a bound on every answer.

    A column is priced with the cheapest rest of the pipeline, each stage as if it had its rank's
    memory to itself: a relaxation, so what it excludes cannot win.
    """
    seconds, recompute = stage_prices(problem, problem.limit_bytes[problem.rank])
    before = least_sums(seconds)
    after = least_sums(seconds[::-1, ::-1, ::-1].transpose(0, 2, 1))[::-1, ::-1]
    through = before[:-1, :, None] + seconds + after[1:, None, :]
    stage, first, end = np.nonzero(np.isfinite(through))
    through, alone = through[stage, first, end], seconds[stage, first, end]
    if not len(stage):  # some stage fits nothing
        return _expanded(problem, stage, first, end, recompute), np.inf
    # the other chunks of the rank take at least their smallest run of layers, and so do the other
    # rounds; what all ranks do has a mean, and the rounds take no less than the busiest rank
    least = seconds.min(axis=(1, 2)).reshape(problem.chunks, -1)
    others = (least.sum(axis=0) - least).ravel()[stage]
    busiest = np.maximum(
        max(_least_busiest_s(problem), before[-1, -1] / problem.stages), alone + others
    )
    longest = least.max(axis=1)
    rounds = np.maximum(busiest, alone + (longest.sum() - longest)[stage // problem.stages])
    slowest = (1 - UNEVEN) * busiest + UNEVEN * rounds
    bound = problem.bottleneck_weight * slowest + through / problem.chunks + problem.tail_s
    keep = bound <= (np.inf if incumbent is None else incumbent.objective_s * (1 + 1e-9))
    columns = _expanded(problem, stage[keep], first[keep], end[keep], recompute)
    return columns, float(bound.min())


def _expanded(
    problem: PartitionProblem, stage: IntArray, first: IntArray, end: IntArray, recompute: IntArray
) -> Columns:
    """Return a column for each run of layers and each useful number of recomputed ones.

    ``recompute`` ``[S, L + 1, L + 1]`` is the least number with which the run can fit.
    """
    least, held = recompute[stage, first, end], end - first
    if _equal_layers(problem):
        runs = np.unique(np.stack([stage, held, least], axis=1), axis=0)
        stage, held, least = runs.T
        first = np.zeros_like(held)
    # without chunks the memory of a stage is its own: recomputing more than needed never pays
    choices = held - least + 1 if problem.chunks > 1 else np.ones_like(held)
    row = np.repeat(np.arange(len(stage)), choices)
    again = least[row] + np.arange(len(row)) - np.repeat(np.cumsum(choices) - choices, choices)
    stage, first, held = stage[row], first[row], held[row]
    return _price(problem, stage, first, held, again)


def _price(
    problem: PartitionProblem, stage: IntArray, first: IntArray, held: IntArray, again: IntArray
) -> Columns:
    """Return columns with their seconds, and bytes at each moment."""

    def total(values: FloatArray, count: IntArray) -> FloatArray:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(sums[first + count] - sums[first])

    saved = problem.kept_bytes - problem.kept_recompute_bytes
    seconds = total(problem.forward_s + problem.backward_s, held) + problem.stage_s[stage]
    seconds += total(problem.recompute_s, again)
    static = total(problem.static_bytes, held) + problem.stage_bytes[stage]
    kept = total(problem.kept_bytes, held) - total(saved, again)
    at_moments = static[:, None] + problem.moments.T[stage] * kept[:, None]
    return Columns(stage, first, held, again, seconds, at_moments)


def _equal_layers(problem: PartitionProblem) -> bool:
    return all(np.ptp(getattr(problem, name)) == 0 for name in PER_LAYER)


def _least_busiest_s(problem: PartitionProblem) -> float:
    """Return a bound on the busiest rank: layers are indivisible.

    A rank with ``n`` layers needs the ``n`` cheapest at least; all layers must be somewhere.
    """
    cheapest = np.sort(problem.forward_s + problem.backward_s).cumsum()
    own = problem.stage_s.reshape(problem.chunks, problem.stages).sum(axis=0)
    values = np.unique(cheapest + own[:, None])
    held = np.searchsorted(cheapest, (values[:, None] - own) * (1 + 1e-12), side="right")
    return float(values[np.argmax(held.sum(axis=1) >= len(cheapest))])


def _partition(problem: PartitionProblem, columns: Columns, chosen: IntArray) -> Partition:
    """Return the answer that the chosen columns (one for each stage) spell."""
    rows = chosen[np.argsort(columns.stage[chosen])]
    layers = tuple(columns.held[rows].tolist())
    again = tuple(columns.recompute[rows].tolist())
    return Partition(layers, again, objective_s(problem, layers, again), 0.0, "optimal")


def _solve(problem: PartitionProblem, columns: Columns, finish: Any, time_limit_s: float) -> Solved:
    """Build the programme, let ``finish`` add limits and objective, and run the solver."""
    import pulp

    programme = pulp.LpProblem("partition", pulp.LpMinimize)
    use = [programme.add_variable(f"use_{n}", 0, 1, "Integer") for n in range(len(columns.stage))]
    for rows in _rows_by(columns.stage):
        programme += pulp.lpSum(use[row] for row in rows) == 1
    _link(problem, columns, use, programme)
    scale = finish(problem, columns, use, programme)
    return _run(programme, use, scale, time_limit_s)


def _link(problem: PartitionProblem, columns: Columns, use: list[Any], programme: Any) -> None:
    """Each stage begins where the one before it ends; equal layers only have to add up."""
    import pulp

    layers = len(problem.forward_s)
    if _equal_layers(problem):
        held = columns.held.tolist()
        programme += pulp.lpSum(h * one for h, one in zip(held, use, strict=True)) == layers
        return
    flow: dict[tuple[int, int], list[Any]] = {}
    runs = zip(columns.stage.tolist(), columns.first.tolist(), columns.held.tolist(), strict=True)
    for one, (stage, first, held) in zip(use, runs, strict=True):
        flow.setdefault((stage, first), []).append(-one)
        flow.setdefault((stage + 1, first + held), []).append(one)
    for (stage, _), terms in flow.items():
        if 0 < stage < problem.stages * problem.chunks:
            programme += pulp.lpSum(terms) == 0


def _objective(
    problem: PartitionProblem, columns: Columns, use: list[Any], programme: Any
) -> float:
    """Add time and memory of each rank and the objective; return the seconds of one unit of it."""
    import pulp

    scale = float(columns.seconds.max())
    seconds = (columns.seconds / scale).tolist()
    # further below than the tolerance: HiGHS 1.16 called a worse answer optimal with 1e-9
    least = _least_busiest_s(problem) / scale * (1 - 1e-6)
    busiest = programme.add_variable("busiest", least)
    longest = [programme.add_variable(f"longest_{c}", 0) for c in range(problem.chunks)]
    slowest = (1 - UNEVEN) * busiest + UNEVEN * pulp.lpSum(longest)
    programme += pulp.lpSum(longest) >= busiest
    programme += problem.bottleneck_weight * slowest + pulp.lpSum(
        second / problem.chunks * one for second, one in zip(seconds, use, strict=True)
    )
    for stage, rows in enumerate(_rows_by(columns.stage)):
        spent = pulp.lpSum(seconds[row] * use[row] for row in rows)
        programme += spent <= longest[stage // problem.stages]
    for rank, rows in enumerate(_rows_by(columns.stage % problem.stages)):
        programme += pulp.lpSum(seconds[row] * use[row] for row in rows) <= busiest
        limit = float(problem.limit_bytes[rank])
        for at_moment in np.unique(columns.bytes[rows].T / limit, axis=0).tolist():
            terms = zip(at_moment, rows, strict=True)
            programme += pulp.lpSum(share * use[row] for share, row in terms) <= 1
    return scale


def _excess(problem: PartitionProblem, columns: Columns, use: list[Any], programme: Any) -> float:
    """Minimise the bytes that the fullest rank has too many; return the bytes of one unit."""
    import pulp

    scale = float(problem.limit_bytes.max())
    excess = programme.add_variable("excess")
    programme += 1 * excess
    for rank, rows in enumerate(_rows_by(columns.stage % problem.stages)):
        limit = float(problem.limit_bytes[rank]) / scale
        for at_moment in np.unique(columns.bytes[rows].T / scale, axis=0).tolist():
            terms = zip(at_moment, rows, strict=True)
            programme += pulp.lpSum(size * use[row] for size, row in terms) <= limit + excess
    return scale


def _rows_by(group: IntArray) -> list[list[int]]:
    """Return the rows of each group number, in order of the number."""
    rows = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    return [part.tolist() for part in np.split(rows, np.cumsum(sizes)[:-1])]


def _run(programme: Any, use: list[Any], scale: float, time_limit_s: float) -> Solved:
    """Run HiGHS; PuLP 3 and 4 report differently, so its own model is asked."""
    import pulp

    solver = pulp.HiGHS(msg=False, gapRel=PROVED, timeLimit=time_limit_s, **SOLVER_OPTIONS)
    with stdout_silenced():
        programme.solve(solver)
    model = programme.solverModel
    finished = model.getModelStatus().name in ("kOptimal", "kInfeasible")
    info = model.getInfo()
    if info.primal_solution_status != 2:  # kSolutionStatusFeasible
        return Solved(np.empty(0, dtype=np.int64), -np.inf, finished)
    values = np.array([one.varValue for one in use])
    return Solved(np.flatnonzero(values > 0.5), scale * info.mip_dual_bound, finished)


@contextmanager
def stdout_silenced() -> Iterator[None]:
    """Keep the solver's banner, written by C++ to file descriptor 1, out of ``--json`` output."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
