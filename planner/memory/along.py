"""What one rank holds along the passes of its schedule: bytes by pass, no times.

The same moments as ``estimate``, each with the passes that are in flight when it comes: that many
for every pass of an order, where the estimate takes the most there are.
"""

from dataclasses import dataclass

import numpy as np

from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.estimate import RankMemory, held_layers, rank_timeline
from planner.memory.moments import IN_FLIGHT, LOADED, Moment, kept_bytes, moments_of
from planner.schedule.passes import Order, kept_change
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Along:
    """Memory of one rank through a step.

    ``during`` and ``after`` have one entry for each pass in the order of the rank: at the pass's
    fullest moment, and when it has ended; ``loaded`` is before the first, ``step`` the optimizer's.
    """

    loaded: RankMemory
    during: tuple[RankMemory, ...]
    after: tuple[RankMemory, ...]
    step: RankMemory


def memory_along(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    rank: int,
    order: Order,
    split: Split | None = None,
) -> Along:
    """Return what pipeline rank ``rank`` holds along ``order``.

    A backward pass counts as its fullest layer. Gradients that a backward pass makes itself are
    there when the first one has ended.
    """
    mine, lazy = held_layers(model, layout, rank, split), job.software.lazy_gradients
    resident = kept_bytes(model, job, layout, mine).resident
    backward, change = order.backward[rank], kept_change(order)[rank]
    left = np.cumsum(change)
    running = left - np.minimum(change, 0)  # what a pass frees it holds until its end
    later = np.cumsum(backward)
    ready = [(later - backward > 0) | (not lazy), (later > 0) | (not lazy)]

    cases: dict[tuple[str, bool, int], list[Moment]] = {}
    names = np.where(backward, "backward", "forward").tolist()
    keys = list(zip(names, ready[0].tolist(), running.tolist(), strict=True))
    keys_after = [("", *rest) for rest in zip(ready[1].tolist(), left.tolist(), strict=True)]
    for key in {*keys, *keys_after}:
        kind, gradients, passes = key
        if kind:
            first, *others = moments_of(model, job, layout, mine, gradients, passes)
            cases[key] = others if kind == "backward" else [first]
        else:
            cases[key] = [Moment(IN_FLIGHT, gradients, passes * resident, 0.0)]
    flat = [moment for some in cases.values() for moment in some]
    flat.append(Moment(LOADED, not lazy, 0.0, 0.0))
    *found, loaded, step = rank_timeline(model, job, layout, rank, split, flat)
    fullest, rest = {}, iter(found)
    for key, some in cases.items():
        fullest[key] = max((next(rest) for _ in some), key=lambda memory: memory.allocated)
    during, after = (tuple(fullest[key] for key in some) for some in (keys, keys_after))
    return Along(loaded, during, after, step)
