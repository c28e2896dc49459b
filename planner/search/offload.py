"""Activation offload in the search: tried where a layout would have to recompute, or does not fit.

A layout that fits as it is can only lose by it: copies add to a step and never shorten it. Host
memory is tried before drives, which are never faster.
"""

from dataclasses import replace

from planner.cost.layer import Prices
from planner.layout.layout import OFFLOAD_TARGETS, Layout, Offload, Recompute
from planner.layout.stages import Split, stage_layers
from planner.memory.estimate import peak_memory
from planner.memory.fit import least_recompute
from planner.memory.offload import offload_problems
from planner.memory.room import offload_refusals
from planner.search.targets import Target
from planner.simulate.offload import free_fraction, offload_facts
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec

STEPS = 20  # fractions are multiples of one over this
LEAST_LIFE_YEARS = 1.0


def frugal_offload(layout: Layout, cluster: ClusterSpec) -> Layout | None:
    """Return the layout that keeps least on the GPU: inputs of layers only, and those away."""
    for target in OFFLOAD_TARGETS:
        away = replace(layout, recompute=Recompute.FULL, offload=Offload(1.0, target))
        if not offload_problems(away, cluster):
            return away
    return None


def _least_fraction(prices: Prices, layout: Layout, target: str, limit: float) -> Layout | None:
    """Return ``layout`` with the least offload that makes it fit; None where none does."""
    tried = [replace(layout, offload=Offload(i / STEPS, target)) for i in range(1, STEPS + 1)]

    def fits(one: Layout) -> bool:
        return peak_memory(prices.model, prices.job, one).device <= limit

    if not fits(tried[-1]):
        return None
    low, high = 0, STEPS - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(tried[middle]) else (middle + 1, high)
    return tried[low]


def _free_part(prices: Prices, layout: Layout, target: str) -> Layout | None:
    """Return ``layout`` with as much offload as its layers cover; None where that is nothing."""
    away = replace(layout, offload=Offload(1.0, target))
    stages = set(stage_layers(prices.model, layout.pp * layout.vpp))
    fraction = min(free_fraction(prices, away, stage) for stage in stages)
    steps = int(fraction * STEPS)
    return replace(layout, offload=Offload(steps / STEPS, target)) if steps else None


def _ways(
    prices: Prices, layout: Layout, target: Target, place: str, limit: float
) -> list[tuple[Layout, Split | None]]:
    """Return the ways to make ``layout`` fit with its activations in ``place``.

    The least offload alone; the offload that is free beside the least recompute; the least offload
    of what full recompute keeps.
    """
    ways: list[tuple[Layout, Split | None]] = []
    alone = _least_fraction(prices, layout, place, limit)
    if alone is not None:
        ways.append((alone, None))
    free = _free_part(prices, layout, place)
    if free is not None and (alone is None or free.offload.fraction < alone.offload.fraction):
        split = least_recompute(prices.model, prices.job, free, limit, target.uniform_recompute)
        if split is not None:
            ways.append((free, split))
    if not ways:
        full = replace(layout, recompute=Recompute.FULL)
        least = _least_fraction(prices, full, place, limit)
        if least is not None:
            ways.append((least, None))
    return ways


def best_offload(
    prices: Prices, layout: Layout, target: Target, limit: float
) -> StepEstimate | None:
    """Return the fastest step of ``layout`` that fits with offload; None where none does.

    Left out are plans that the host has no room for, and those that wear drives out in a year.
    """
    base = replace(layout, recompute=Recompute.NONE) if layout.recompute == "full" else layout
    for place in OFFLOAD_TARGETS:
        if offload_problems(replace(base, offload=Offload(1.0, place)), prices.cluster):
            continue
        steps = [
            estimate_step(prices, one, split)
            for one, split in _ways(prices, base, target, place, limit)
            if not offload_refusals(prices.model, prices.cluster, prices.job, one, split)
        ]
        steps = [step for step in steps if _endures(prices, step)]
        if steps:
            return min(steps, key=lambda step: step.step_time_s)
    return None


def _endures(prices: Prices, step: StepEstimate) -> bool:
    facts = offload_facts(prices, step.layout, step.split, step.step_time_s)
    return facts is None or facts.life_years is None or facts.life_years >= LEAST_LIFE_YEARS
