"""Which layers each (virtual) stage holds, and how many of them it recomputes, under memory.

Minimises ``(m - 1 / v) slowest + sum_stage(t) / v + tail``: the slowest rank computes ``m``
micro-batches, and the pipeline fills and drains once, a ``v``-th of a rank's layers at a time
(PTD-P, arXiv 2104.04473, 2.2; for equal stages this is ``m t + (p - 1) t / v``). Without chunks
``slowest`` is the largest ``t`` and the dynamic programme below is exact. With chunks, several
stages share the memory and time of one rank: ``ilp.py`` solves that, and the dynamic programme
gives it a good start.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# With chunks a rank pairs passes of different chunks, and the longest chunk of any rank holds the
# others up. So "slowest" is the busiest rank at 1 - UNEVEN and v times the longest chunk at UNEVEN.
# Fitted to simulated schedules with uneven chunks the weight is 0.01 to 0.10 with overlapped
# transfers and 0.18 to 0.30 without; between 0.05 and 0.7 it picks the same partitions.
UNEVEN = 0.15

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
PER_LAYER = (
    "forward_s",
    "backward_s",
    "recompute_s",
    "kept_bytes",
    "kept_recompute_bytes",
    "static_bytes",
)


@dataclass(frozen=True, slots=True, eq=False)
class PartitionProblem:
    """Prices of layers and stages: ``L`` layers, ``S = stages * chunks`` virtual stages.

    Seconds and bytes are of one micro-batch on one rank. ``in_flight`` counts the micro-batches a
    stage keeps when its rank is fullest; give ``[moments, S]`` where that can be at several moments
    (``schedule.orders.kept_moments``). Every stage gets at least one layer.
    """

    stages: int
    chunks: int
    micro_batches: int
    forward_s: FloatArray  # [L]
    backward_s: FloatArray  # [L], without recompute
    recompute_s: FloatArray  # [L], on top of backward_s
    kept_bytes: FloatArray  # [L], per micro-batch in flight, without recompute
    kept_recompute_bytes: FloatArray  # [L], the same with recompute
    static_bytes: FloatArray  # [L], weights, gradients, optimizer
    stage_s: FloatArray  # [S], forward and backward of embedding and head
    stage_bytes: FloatArray  # [S], their bytes and all else that does not depend on layers
    in_flight: FloatArray  # [S] or [moments, S]
    limit_bytes: FloatArray  # [stages]
    tail_s: float = 0.0
    slowness: FloatArray | None = None  # [S], seconds of a layer there ÷ as priced; no chunks

    @property
    def slow(self) -> FloatArray:
        """Seconds of a layer on each stage ÷ as priced, ``[S]``: 1 where all GPUs are alike."""
        return np.ones(len(self.stage_s)) if self.slowness is None else self.slowness

    @property
    def bottleneck_weight(self) -> float:
        """How often the slowest rank's time counts."""
        return self.micro_batches - 1 / self.chunks

    @property
    def moments(self) -> FloatArray:
        """Kept micro-batches, ``[moments, S]``."""
        return np.atleast_2d(self.in_flight)

    @property
    def rank(self) -> IntArray:
        """Rank of each virtual stage, ``[S]``."""
        return np.arange(self.stages * self.chunks) % self.stages


@dataclass(frozen=True, slots=True)
class Partition:
    """The answer. ``gap`` is the proved distance to the optimum, as a fraction of the objective.

    ``status`` is ``optimal``, ``time limit`` (``gap`` is open; no layers if none were found) or
    ``infeasible``: no layers, and ``shortfall_bytes`` is what the fullest rank lacks at best.
    """

    layers: tuple[int, ...]
    recompute_layers: tuple[int, ...]
    objective_s: float
    gap: float
    status: str
    shortfall_bytes: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether there is an answer that fits."""
        return bool(self.layers)


def partition(problem: PartitionProblem, time_limit_s: float = 5.0) -> Partition:
    """Return the best partition: exact without chunks, else what ``time_limit_s`` can prove."""
    _check(problem)
    found = dynamic_programme(problem)
    if problem.chunks == 1:
        return found or no_partition(_least_excess(problem))
    from planner.search.ilp import solve

    return solve(problem, found and improved(problem, found), time_limit_s)


def dynamic_programme(problem: PartitionProblem) -> Partition | None:
    """Return the optimum without chunks; with chunks a first answer; ``None`` if there is none.

    With chunks each stage gets a fixed share of its rank's memory, and the other chunks count as
    if all stages held equally many layers.
    """
    seconds, recompute = stage_prices(problem, _stage_limit(problem))
    mean = (problem.forward_s + problem.backward_s).mean() * _mean_layers(problem)
    cuts = _cheapest_cuts(problem, seconds, _others(problem, problem.stage_s + mean))
    return None if cuts is None else _priced(problem, *_counts(cuts, recompute))


def improved(problem: PartitionProblem, start: Partition) -> Partition:
    """Return an answer that is no worse: re-cut every window of ``stages`` neighbours exactly.

    Such a window has one chunk of each rank. With the other chunks held, their time and memory
    are known, and the dynamic programme is exact for the window.
    """
    best, count = start, problem.stages * problem.chunks
    for _ in range(count):  # ends long before: an objective cannot fall for ever
        round_start = best.objective_s
        for low in range(count - problem.stages + 1):
            found = _recut(problem, best, low)
            if found is not None and found.objective_s < best.objective_s * (1 - 1e-12):
                best = found
        if best.objective_s == round_start:
            break
    return best


def _recut(problem: PartitionProblem, held: Partition, low: int) -> Partition | None:
    """Return ``held`` with stages ``low`` to ``low + stages`` cut as is best beside the others."""
    high = low + problem.stages
    first = np.cumsum((0, *held.layers))
    seconds, static, kept = _stage_totals(problem, held.layers, held.recompute_layers)
    other_bytes = static + problem.moments * kept
    other_bytes = np.stack([_others(problem, row) for row in other_bytes])
    limit = problem.limit_bytes[problem.rank] - other_bytes
    run, window = slice(first[low], first[high]), slice(low, high)
    part = replace(
        problem,
        **{name: getattr(problem, name)[run] for name in PER_LAYER},
        stage_s=problem.stage_s[window],
        stage_bytes=problem.stage_bytes[window],
        in_flight=problem.moments[:, window],
    )
    prices, recompute = stage_prices(part, limit[:, window])
    cuts = _cheapest_cuts(problem, prices, _others(problem, seconds)[window])
    if cuts is None:
        return None
    layers, again = _counts(cuts, recompute)
    return _priced(
        problem,
        (*held.layers[:low], *layers, *held.layers[high:]),
        (*held.recompute_layers[:low], *again, *held.recompute_layers[high:]),
    )


def _cheapest_cuts(
    problem: PartitionProblem, seconds: FloatArray, others_s: FloatArray
) -> list[int] | None:
    """Return the cuts that cost least, given what a stage's rank does besides, or ``None``.

    For a cap on the slowest rank, one pass over the stages finds the cuts with the least sum of
    times. The cap then falls below that answer's slowest rank, or to where it can first pay, until
    no lower one can: that visits every useful point of the (slowest, sum) front.
    """
    weight, share = problem.bottleneck_weight, 1 / problem.chunks
    by_rank = (1 - UNEVEN) * (seconds + others_s[:, None, None])
    by_rank += UNEVEN * problem.chunks * seconds
    slowest = _bottleneck_s(by_rank)
    best, best_s, cap = None, np.inf, slowest
    while (cuts := _cuts(np.where(by_rank <= cap, seconds, np.inf))) is not None:
        chosen = range(len(seconds)), cuts[:-1], cuts[1:]
        worst, filling = float(by_rank[chosen].max()), share * float(seconds[chosen].sum())
        if weight * worst + filling < best_s:
            best, best_s = cuts, weight * worst + filling
        if best is cuts and cap == slowest < np.inf:
            cap = np.inf  # the first answer is good to stop early with; now from the top
            continue
        if best_s - filling <= weight * slowest:
            break
        pays = (best_s - filling) / weight if weight else 0.0
        cap = np.nextafter(min(worst, pays), -np.inf)
    return best


def objective_s(
    problem: PartitionProblem, layers: tuple[int, ...], recompute: tuple[int, ...]
) -> float:
    """Return the seconds that a partition costs, as minimised."""
    seconds, _, _ = _stage_totals(problem, layers, recompute)
    busiest = seconds.reshape(problem.chunks, problem.stages).sum(axis=0).max()
    slowest = (1 - UNEVEN) * busiest + UNEVEN * problem.chunks * seconds.max()
    filling = seconds.sum() / problem.chunks
    return float(problem.bottleneck_weight * slowest + filling + problem.tail_s)


def rank_bytes(
    problem: PartitionProblem, layers: tuple[int, ...], recompute: tuple[int, ...]
) -> FloatArray:
    """Return the bytes of each rank at its fullest moment, ``[stages]``."""
    _, static, kept = _stage_totals(problem, layers, recompute)
    own = (static + problem.moments * kept).reshape(-1, problem.chunks, problem.stages)
    full: FloatArray = own.sum(axis=1).max(axis=0)
    return full


def _stage_totals(
    problem: PartitionProblem, layers: tuple[int, ...], recompute: tuple[int, ...]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return seconds, static bytes, and bytes kept per micro-batch of each stage, each ``[S]``."""
    held = np.asarray(layers, dtype=np.int64)
    end = np.cumsum(held)
    first = end - held
    again = first + np.asarray(recompute, dtype=np.int64)

    def total(values: FloatArray, low: IntArray, high: IntArray) -> FloatArray:
        sums = _sums(values)
        return np.asarray(sums[high] - sums[low])

    seconds = total(problem.forward_s + problem.backward_s, first, end)
    seconds += total(problem.recompute_s, first, again)
    seconds = problem.slow * seconds + problem.stage_s
    static = total(problem.static_bytes, first, end) + problem.stage_bytes
    kept = total(problem.kept_recompute_bytes, first, again)
    return seconds, static, kept + total(problem.kept_bytes, again, end)


def stage_prices(problem: PartitionProblem, limit_bytes: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return seconds and recomputed layers of every stage with every run of layers.

    Both are ``[S, L + 1, L + 1]`` over (stage, first layer, layer after the last). A stage
    recomputes as few layers as let it stay under ``limit_bytes``, ``[S]`` or ``[moments, S]``;
    infinite: it cannot.
    """
    saved = _sums(problem.kept_bytes - problem.kept_recompute_bytes)
    again_s, work_s = _sums(problem.recompute_s), _sums(problem.forward_s + problem.backward_s)
    first = np.arange(len(saved))[:, None]
    recompute = np.zeros((len(problem.stage_s), len(saved), len(saved)), dtype=np.int64)
    limits = np.broadcast_to(limit_bytes, problem.moments.shape)
    for kept, limit in zip(problem.moments, limits, strict=True):
        static = _runs(problem.static_bytes) + problem.stage_bytes[:, None, None]
        activations = kept[:, None, None] * _runs(problem.kept_bytes)
        excess = static + activations - limit[:, None, None]
        # a stage that keeps nothing saves nothing, so no number of layers is enough
        per_batch = excess / np.maximum(kept, 1e-12)[:, None, None] - 1e-12 * saved[-1]
        needed = np.searchsorted(saved, saved[first] + per_batch)
        recompute = np.maximum(recompute, needed - first)
    held = np.arange(len(saved)) - first
    fits = (held > 0) & (recompute <= held)
    end = np.where(fits, first + recompute, 0)
    seconds = work_s - work_s[first] + again_s[end] - again_s[first]
    seconds = problem.slow[:, None, None] * seconds + problem.stage_s[:, None, None]
    # sums of equal layers must compare equal wherever they start
    digits = 13 - int(np.ceil(np.log10(max(float(np.abs(seconds).max()), 1e-300))))
    return np.where(fits, np.round(seconds, digits), np.inf), recompute


def least_sums(seconds: FloatArray) -> FloatArray:
    """Return the least sum of ``s`` stages with the first ``j`` layers, ``[S + 1, L + 1]``."""
    best = np.full((len(seconds) + 1, seconds.shape[1]), np.inf)
    best[0, 0] = 0.0
    for stage, of_runs in enumerate(seconds):
        best[stage + 1] = (best[stage][:, None] + of_runs).min(axis=0)
    return best


def no_partition(shortfall_bytes: float) -> Partition:
    """Return the answer "no"."""
    return Partition((), (), float("inf"), 0.0, "infeasible", shortfall_bytes)


def _cuts(seconds: FloatArray) -> list[int] | None:
    """Return the cuts ``[S + 1]`` with the least sum of ``seconds``, or ``None``."""
    best = least_sums(seconds)
    cuts = [seconds.shape[1] - 1]
    if np.isinf(best[-1, -1]):
        return None
    for stage in reversed(range(len(seconds))):
        cuts.append(int((best[stage] + seconds[stage, :, cuts[-1]]).argmin()))
    return cuts[::-1]


def _bottleneck_s(seconds: FloatArray) -> float:
    """Return the least possible value of the largest stage."""
    best = np.where(np.arange(seconds.shape[1]) == 0, -np.inf, np.inf)
    for of_runs in seconds:
        best = np.maximum(best[:, None], of_runs).min(axis=0)
    return float(best[-1])


def _counts(cuts: list[int], recompute: IntArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return layers and recomputed layers of each stage."""
    again = recompute[range(len(recompute)), cuts[:-1], cuts[1:]]
    return tuple(np.diff(cuts).tolist()), tuple(again.tolist())


def _priced(
    problem: PartitionProblem, layers: tuple[int, ...], recompute: tuple[int, ...]
) -> Partition:
    cost_s = objective_s(problem, layers, recompute)
    return Partition(layers, recompute, cost_s, 0.0, "optimal")


def _stage_limit(problem: PartitionProblem) -> FloatArray:
    """Return the memory of each virtual stage ``[S]``: a rank's, shared as equal chunks need it."""
    own_bytes = problem.stage_bytes + problem.static_bytes.mean() * _mean_layers(problem)
    own_bytes += problem.moments.max(axis=0) * problem.kept_bytes.mean() * _mean_layers(problem)
    by_rank = own_bytes.reshape(problem.chunks, problem.stages)
    shared = problem.limit_bytes * by_rank / by_rank.sum(axis=0)
    return np.asarray(shared.ravel())


def _others(problem: PartitionProblem, of_stage: FloatArray) -> FloatArray:
    """Return the sum over the other chunks of the same rank, ``[S]``."""
    by_rank = of_stage.reshape(problem.chunks, problem.stages)
    return np.asarray((by_rank.sum(axis=0) - by_rank).ravel())


def _mean_layers(problem: PartitionProblem) -> float:
    return len(problem.forward_s) / (problem.stages * problem.chunks)


def _least_excess(problem: PartitionProblem) -> float:
    """Return the bytes that the fullest stage lacks when every layer is recomputed (no chunks)."""
    kept = problem.moments[:, :, None, None] * _runs(problem.kept_recompute_bytes)
    static = _runs(problem.static_bytes) + problem.stage_bytes[:, None, None]
    excess = kept.max(axis=0) + static - problem.limit_bytes[:, None, None]
    held = np.arange(len(problem.forward_s) + 1)
    return _bottleneck_s(np.where(held > held[:, None], excess, np.inf))


def _sums(values: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(values)])


def _runs(values: FloatArray) -> FloatArray:
    """Return the sum of ``values[i:j]`` for all ``i, j``, ``[L + 1, L + 1]``."""
    sums = _sums(values)
    return np.asarray(sums - sums[:, None])


def _check(problem: PartitionProblem) -> None:
    """Raise ``ValueError`` for arrays that do not belong together."""
    layers, stages = len(problem.forward_s), problem.stages * problem.chunks
    if layers < stages:
        raise ValueError(f"{layers} layers cannot fill {stages} stages with one layer each")
    lengths = dict.fromkeys(PER_LAYER, layers) | {"stage_s": stages, "stage_bytes": stages}
    for name, length in (lengths | {"limit_bytes": problem.stages}).items():
        if np.shape(getattr(problem, name)) != (length,):
            raise ValueError(
                f"{name} has the shape {getattr(problem, name).shape}, not ({length},)"
            )
    if problem.slowness is not None and problem.chunks > 1:
        raise ValueError("slowness is for one chunk per rank; chunks take all ranks as alike")
    if problem.moments.shape[1] != stages:
        raise ValueError(f"in_flight has {problem.moments.shape[1]} stages, not {stages}")
    if (problem.kept_recompute_bytes > problem.kept_bytes).any():
        raise ValueError(
            "kept_recompute_bytes exceeds kept_bytes: recomputing keeps less, not more"
        )
    if (problem.recompute_s < 0).any():
        raise ValueError("recompute_s is negative: recomputing takes time")
