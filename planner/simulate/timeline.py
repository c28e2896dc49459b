"""One step as a timeline: every pass of every pipeline rank, then what follows the last one."""

from dataclasses import dataclass

import numpy as np

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.simulate.pipeline import PassTimes, pass_times
from planner.simulate.step import StageCost, Tail, pipeline_inputs, stage_costs, tails


@dataclass(frozen=True, slots=True)
class Timeline:
    """The passes of one step, and the tail of each pipeline rank behind its last pass.

    ``costs`` has one entry for each (virtual) stage, ``tails`` one for each rank.
    """

    passes: PassTimes
    costs: tuple[StageCost, ...]
    tails: tuple[Tail, ...]

    @property
    def step_time_s(self) -> float:
        """Seconds until the last rank is done."""
        ends = zip(self.passes.end_s[:, -1], self.tails, strict=True)
        return max(float(end) + tail.total_s for end, tail in ends)


def timeline(prices: Prices, layout: Layout, split: Split | None = None) -> Timeline:
    """Return the step of ``layout``, pass by pass; it takes as long as ``estimate_step`` says."""
    costs = stage_costs(prices, layout, split)
    after = tails(prices, layout, split, costs)
    inputs = pipeline_inputs(prices, layout, costs)
    passes = pass_times(*inputs, tail_s=np.array([tail.total_s for tail in after]))
    return Timeline(passes, tuple(costs), tuple(after))
