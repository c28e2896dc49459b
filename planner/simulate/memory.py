"""Memory over time: what each rank holds along its passes, at the times of the simulated step."""

from dataclasses import dataclass

import numpy as np

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.along import memory_along
from planner.memory.estimate import RankMemory
from planner.schedule.passes import FloatArray
from planner.simulate.pipeline import PassTimes
from planner.simulate.step import StepCosts


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTrack:
    """What one pipeline rank has allocated, ``allocated_bytes[i]`` from ``at_s[i]`` to the next.

    A pass counts as its fullest moment all along. ``peak`` is first reached at ``peak_s``.
    """

    at_s: FloatArray
    allocated_bytes: FloatArray
    peak_s: float
    peak: RankMemory


def memory_tracks(
    prices: Prices, layout: Layout, split: Split | None, step: StepCosts, times: PassTimes
) -> tuple[MemoryTrack, ...]:
    """Return the memory of every pipeline rank through one step."""
    found = []
    for rank, tail in enumerate(step.tails):
        along = memory_along(prices.model, prices.job, layout, rank, times.order, split)
        held = [along.loaded]
        for during, after in zip(along.during, along.after, strict=True):
            held += [during, after]
        held += [along.step, along.loaded]
        passes_s = np.stack([times.start_s[rank], times.end_s[rank]], axis=1).ravel()
        update_s = passes_s[-1] + step.stall_s + tail.gradients_s + tail.offload_s
        at_s = np.concatenate([[0.0], passes_s, [update_s, update_s + tail.update_s]])
        allocated = np.array([memory.allocated for memory in held])
        peak = int(allocated.argmax())
        last = np.append(np.diff(at_s) > 0, True)  # of equal times the last counts
        levels = allocated[last]
        new = np.append(True, np.diff(levels) != 0)
        track = MemoryTrack(at_s[last][new], levels[new], float(at_s[peak]), held[peak])
        found.append(track)
    return tuple(found)
