"""Stages made better under the simulator itself, many candidates in one batch.

The partition minimises a formula; the schedule of unequal chunks, the waits of a split backward
pass and transfers are not in it. So its answer is the start of a climb: a layer moves from one
stage to another, every rank recomputes as little as its memory asks for, and all the neighbours of
an answer run through the simulator together, since they share one task graph.
"""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import PassCost, Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import Split
from planner.schedule.kinds import kind_of, schedule_name
from planner.search.partition import FloatArray, PartitionProblem, moment_bytes
from planner.simulate.pipeline import pipeline_time
from planner.simulate.step import StepCosts, ends_s, pipeline_arguments, step_costs

IntArray = NDArray[np.int64]
MOST_NEIGHBOURS = 64  # of one answer; those from the longest stages to the shortest come first
MOST_AT_ONCE = 512  # candidates of one batch
MOST_PASSES = 1_000_000  # of all candidates of a batch: some tenths of a second
LEAST_GAIN = 1e-4  # of the step; a smaller gain ends the climb


class Simulator:
    """Simulates splits of one layout in batches: prices of layers are asked once.

    Gradient and weight tails are those of ``split``; they change little with a layer more or less.
    """

    def __init__(self, prices: Prices, layout: Layout, split: Split) -> None:
        """Price the layers of ``layout``, each kept and recomputed."""
        self.base: StepCosts = step_costs(prices, layout, split)
        self.arguments = pipeline_arguments(prices, layout, self.base)
        kinds = [prices.model.is_moe_layer(layer) for layer in range(prices.model.layers)]
        self.sums = {}
        for again in (False, True):
            by_kind = layer_seconds(prices, layout, again)
            self.sums[again] = _sums(np.array([by_kind[moe] for moe in kinds]))
        count = len(split.layers)
        self.ends = end_seconds(prices, layout, count)
        passes = 2 * count * self.base.micro_batches
        self.most_at_once = min(MOST_AT_ONCE, max(8, MOST_PASSES // passes))
        self.tails = np.array([tail.total for tail in self.base.tails])

    def stage_s(self, layers: IntArray, again: IntArray) -> FloatArray:
        """Return forward, backward and weight seconds of every stage, ``[splits, S, 3]``.

        ``layers`` and ``again`` (recomputed, the first of their stage) are ``[splits, S]``.
        """
        end = np.cumsum(layers, axis=1)
        first = end - layers
        middle = first + again
        full, kept = self.sums[True], self.sums[False]
        return np.asarray(full[middle] - full[first] + kept[end] - kept[middle] + self.ends)

    def step_stages_s(self, layers: tuple[int, ...]) -> FloatArray:
        """Return the seconds of every stage for one micro-batch, nothing recomputed, ``[S]``."""
        one = np.array([layers])
        return np.asarray(self.stage_s(one, np.zeros_like(one))[0].sum(axis=-1))

    def step_s(self, layers: IntArray, again: IntArray) -> FloatArray:
        """Return the seconds of a step for every split, ``[splits]``."""
        seconds = self.stage_s(layers, again)
        forward, backward, weight = (
            np.tile(seconds[..., part], self.base.kind.pipelines) for part in range(3)
        )
        changed = {"forward_s": forward, "backward_s": backward}
        changed["weight_s"] = weight if self.base.kind.splits else None  # type: ignore[assignment]
        result = pipeline_time(**self.arguments | changed)
        return np.asarray((ends_s(self.base, result) + self.tails).max(axis=-1)) + self.base.stall_s


def layer_seconds(prices: Prices, layout: Layout, again: bool) -> dict[bool, FloatArray]:
    """Return seconds of forward, backward and weight pass of a layer, ``[3]``, by "has experts".

    ``again``: recomputed in full.
    """
    layout = replace(layout, recompute=kept_recompute(layout))
    recompute, splits = (
        Recompute.FULL if again else layout.recompute,
        kind_of(schedule_name(layout)).splits,
    )
    kinds = {prices.model.is_moe_layer(layer) for layer in range(prices.model.layers)}
    if splits:
        return {
            moe: _totals(prices.split_backward("moe" if moe else "dense", layout, recompute))
            for moe in kinds
        }
    return {moe: _totals(prices.layer(layout, moe, recompute)) for moe in kinds}


def end_seconds(prices: Prices, layout: Layout, stages: int) -> FloatArray:
    """Return the same of embedding and head on their stages, ``[stages, 3]``."""
    ends = np.zeros((stages, 3))
    for stage, block, price in ((0, "embedding", prices.embedding), (-1, "head", prices.head)):
        if kind_of(schedule_name(layout)).splits:
            ends[stage] += _totals(prices.split_backward(block, layout, Recompute.NONE))
        else:
            ends[stage] += _totals(price(layout))
    return ends


def kept_recompute(layout: Layout) -> Recompute:
    """Return what the layers do that are not recomputed in full."""
    return Recompute.NONE if layout.recompute is Recompute.FULL else layout.recompute


def _totals(cost: PassCost) -> FloatArray:
    return np.array([cost.forward.total, cost.backward.total, cost.weight.total])


def _sums(values: FloatArray) -> FloatArray:
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])


def least_recompute_of(
    problem: PartitionProblem, layers: tuple[int, ...], uniform: bool
) -> tuple[int, ...] | None:
    """Return few recomputed layers with which every rank fits; ``None``: it cannot fit.

    One more at a time, in the chunk that keeps most passes when its rank is fullest. ``uniform``:
    as many in every stage as the fullest rank needs.
    """
    again, held = np.zeros(len(layers), dtype=np.int64), np.array(layers)
    limit = problem.limit_bytes * (1 + 1e-12)
    at_rank = problem.rank == np.arange(problem.stages)[:, None]
    while True:
        used = moment_bytes(problem, layers, tuple(again.tolist()))  # [moments, stages]
        over = np.flatnonzero((used > limit).any(axis=0))
        if not len(over):
            return tuple(again.tolist())
        if uniform:
            if (again[at_rank[over].any(axis=0)] == held[at_rank[over].any(axis=0)]).all():
                return None
            again = np.minimum(again + 1, held)
            continue
        for rank in over:
            kept = problem.moments[used[:, rank].argmax()]
            open_stages = np.flatnonzero(at_rank[rank] & (again < held))
            if not len(open_stages):
                return None
            again[open_stages[kept[open_stages].argmax()]] += 1


def _neighbours(
    layers: tuple[int, ...], stage_s: FloatArray, empty_ends: bool, most: int
) -> list[tuple[int, ...]]:
    """Return ``layers`` with one layer moved to another stage, from long stages to short ones."""
    order = np.argsort(-stage_s, kind="stable").tolist()
    last = len(layers) - 1
    found = []
    for reach in range(1, 2 * len(order)):  # pairs by how far both are from the ends of ``order``
        for place in range(min(reach, len(order))):
            source, target = order[place], order[-1 - (reach - 1 - place) % len(order)]
            least = 0 if empty_ends and source in (0, last) else 1
            if reach - 1 - place >= len(order) or source == target or layers[source] <= least:
                continue
            moved = list(layers)
            moved[source] -= 1
            moved[target] += 1
            found.append(tuple(moved))
            if len(found) == min(most, MOST_NEIGHBOURS):
                return found
    return found


def climb(
    problem: PartitionProblem,
    simulator: Simulator,
    starts: list[Split],
    uniform: bool,
    time_limit_s: float,
) -> Split:
    """Return the fastest split found from the best of ``starts``; never slower than any of them.

    Where one layer moved makes nothing better, two are moved. A start keeps its own recompute. The
    same question has the same answer as long as the time does not run out.
    """
    deadline = time.monotonic() + time_limit_s
    best, best_s = _fastest(
        simulator,
        [(start.layers, start.recomputed or (0,) * len(start.layers)) for start in starts],
    )
    empty_ends = min(best[0][0], best[0][-1]) == 0
    seen = {best[0]} if best[1] == least_recompute_of(problem, best[0], uniform) else set()
    moved = [best[0]]  # where the next layer is moved from
    while moved and time.monotonic() < deadline:
        fresh: dict[tuple[int, ...], tuple[int, ...]] = {}
        for layers in moved:
            stage_s = simulator.step_stages_s(layers)
            for one in _neighbours(layers, stage_s, empty_ends, simulator.most_at_once):
                again = None if one in seen else least_recompute_of(problem, one, uniform)
                seen.add(one)
                if again is not None:
                    fresh[one] = again
            if len(fresh) >= simulator.most_at_once:
                break
        if not fresh:
            break
        found, found_s = _fastest(simulator, list(fresh.items()))
        if found_s < best_s * (1 - LEAST_GAIN):
            best, best_s, moved = found, found_s, [found[0]]
        else:
            few = len(fresh) < simulator.most_at_once
            moved = list(fresh) if len(moved) == 1 and few else []
    return Split(*best)


Stages = tuple[tuple[int, ...], tuple[int, ...]]


def _fastest(simulator: Simulator, pairs: list[Stages]) -> tuple[Stages, float]:
    layers, again = (np.array(column) for column in zip(*pairs, strict=True))
    seconds = simulator.step_s(layers, again)
    at = int(seconds.argmin())
    return pairs[at], float(seconds[at])
