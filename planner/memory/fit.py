"""The least recompute that makes a layout fit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import rank_memory
from planner.schedule.kinds import IntArray, kind_of, schedule_name, stage_of
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def _with(layers: tuple[int, ...], layout: Layout, rank: int, count: int, uniform: bool) -> Split:
    """Recompute ``count`` layers of ``rank``, dealt to its chunks; ``uniform``: in each chunk.

    Earlier chunks get what is left over: more of their passes wait for a backward pass.
    """
    again = [0] * len(layers)
    chunks = _stages_of(layout)[:, rank].tolist()
    while count and any(again[chunk] < layers[chunk] for chunk in chunks):
        for chunk in chunks:
            if count and again[chunk] < layers[chunk]:
                again[chunk] += 1
                count -= not uniform
        count -= uniform
    return Split(layers, tuple(again))


def _stages_of(layout: Layout) -> IntArray:
    """Return the stages of each rank, ``[chunks, ranks]``; crossed pipelines: of one of them."""
    name = schedule_name(layout)
    chunks = layout.vpp * kind_of(name).pipelines
    return np.asarray(stage_of(name, layout.pp, chunks)[: layout.vpp])


def _least(fits: Callable[[int], bool], most: int, guess: int) -> int | None:
    """Return the least of 0 to ``most`` that fits, or None; ``guess`` is tried first."""
    guess = min(guess, most)
    if fits(guess):
        low, high = 0, guess
        if guess and not fits(guess - 1):
            return guess
    elif guess < most and fits(most):
        low, high = guess + 1, most
    else:  # a layer recomputed alone may need more than it saves
        return 0 if guess and fits(0) else None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def least_recompute(
    model: ModelSpec, job: JobSpec, layout: Layout, limit_bytes: float, uniform: bool = False
) -> Split | None:
    """Return equal stages with the fewest layers recomputed in full that fit, or None.

    ``layout.recompute`` is what the other layers do. ``uniform``: the same number on every rank
    (Megatron's ``--recompute-num-layers``), that of the fullest.
    """
    layers = split_layers(model.layers, layout.pp * layout.vpp)
    base = replace(layout, recompute=Recompute.NONE) if layout.recompute == "full" else layout
    counts: list[int] = []
    table = _stages_of(layout)
    for rank in range(layout.pp):

        def fits(count: int, rank: int = rank) -> bool:
            split = _with(layers, base, rank, count, uniform)
            return rank_memory(model, job, base, rank, split).device <= limit_bytes

        most = (max if uniform else sum)(layers[stage] for stage in table[:, rank])
        # neighbours mostly need the same
        found = _least(fits, most, counts[-1] if counts else 0)
        if found is None:
            return None
        counts.append(found)
    if uniform:
        counts = [max(counts)] * layout.pp
    again = np.zeros(len(layers), dtype=np.int64)
    for rank, count in enumerate(counts):  # no two ranks recompute the same stage
        again += np.array(_with(layers, base, rank, count, uniform).recomputed)
    return Split(layers, tuple(again.tolist()))
