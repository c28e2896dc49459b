"""From every legal layout to the best ones: filter by memory, bound, simulate best-first.

The answer is proved within the model: simulation stops when the lower bound of every layout left
exceeds the best step time found, or the budget ends and the gap is stated.
"""

import time
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.limits import Limits
from planner.layout.space import layouts as legal_layouts
from planner.layout.stages import Split
from planner.memory.estimate import peak_memory
from planner.memory.fit import least_recompute
from planner.progress import counted, tell
from planner.search.bound import lower_bounds_s
from planner.search.hosted import hosted_layouts
from planner.search.offload import best_offload, frugal_offload
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asks of a search.

    ``keep_free`` is the share of memory that stays empty. With ``offload`` activations leave the
    GPU wherever that pays, and the host holds the optimizer where nothing else fits; with False
    neither; None is for where nothing fits without.
    """

    keep: int = 5
    keep_free: float = 0.05
    budget_s: float = 60.0
    offload: bool | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found, covered and proved.

    ``best`` is in rising step time, ``steps`` all that was simulated, ``bounds_s`` the lower bound
    of each of ``fitting``. ``needed_bytes`` is the
    least device memory of each of ``layouts``; ``least`` is the layout that needs the least, its
    bytes in ``least_bytes``; ``gap`` is the proved distance of the first to the optimum over all
    fitting layouts with equal stages.
    """

    best: tuple[StepEstimate, ...]
    steps: dict[Layout, StepEstimate]
    layouts: tuple[Layout, ...]
    needed_bytes: tuple[float, ...]
    fitting: tuple[Layout, ...]
    bounds_s: dict[Layout, float]
    least: Layout | None
    least_bytes: float
    limit_bytes: float
    simulated: int
    gap: float
    seconds: float


def _least_bytes(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    limit: float,
    offloads: bool,
) -> float:
    """Return what the most frugal form of ``layout`` needs; offload only where it must."""
    needed = peak_memory(model, job, replace(layout, recompute=Recompute.FULL)).device
    away = frugal_offload(layout, cluster) if offloads and needed > limit else None
    return needed if away is None else min(needed, peak_memory(model, job, away).device)


def _settable_fit(prices: Prices, layout: Layout, limit: float, target: Target) -> Split | None:
    """Return equal stages with the least recompute that fits and that the target can set."""
    model, job = prices.model, prices.job
    least = least_recompute(model, job, layout, limit, target.uniform_recompute)
    split = least and target.settable(least)
    if split is None or split == least:
        return split
    return split if peak_memory(model, job, layout, split).device <= limit else None


def fastest_fit(
    prices: Prices, layout: Layout, limit: float, target: Target, offloads: bool
) -> StepEstimate | None:
    """Return ``layout`` with the recompute or, where that pays, the offload that makes it fit."""
    split = _settable_fit(prices, layout, limit, target)
    step = None if split is None else estimate_step(prices, layout, split)
    if not offloads or (step is not None and not any(step.split.recomputed or ())):
        return step
    away = best_offload(prices, layout, target, limit)
    if step is None or (away is not None and away.step_time_s < step.step_time_s):
        return away
    return step


def search(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    options: Options = Options(),
) -> Search:
    """Return the fastest layouts that fit. Each recomputes only as many layers as it must."""
    started = time.monotonic()
    limit = cluster.gpu.memory_bytes * (1 - options.keep_free)
    found = legal_layouts(model, cluster, job, target.problems, options.limits, target.schedules)
    offloads = bool(options.offload) and target.offloads
    needed = [
        _least_bytes(model, cluster, job, layout, limit, offloads)
        for layout in counted(found, "layouts, does each fit")
    ]
    if options.offload and (not needed or min(needed) > limit):
        hosted = hosted_layouts(model, cluster, job, target, found, limit)
        found += [layout for layout, _ in hosted]
        needed += [size for _, size in hosted]
    fitting = [layout for layout, size in zip(found, needed, strict=True) if size <= limit]
    least = min(range(len(found)), key=needed.__getitem__, default=None)
    prices = Prices(model, cluster, job)
    best: list[StepEstimate] = []
    steps: dict[Layout, StepEstimate] = {}
    gap, bounds_s = 0.0, {}
    if options.keep:
        bounds_s = dict(zip(fitting, lower_bounds_s(prices, fitting).tolist(), strict=True))
        left_s = options.budget_s - (time.monotonic() - started)
        best, gap = best_first(
            prices, bounds_s, limit, target, options.keep, left_s, steps, offloads
        )
    return Search(
        tuple(best),
        steps,
        tuple(found),
        tuple(needed),
        tuple(fitting),
        bounds_s,
        None if least is None else found[least],
        0.0 if least is None else needed[least],
        limit,
        len(steps),
        gap,
        time.monotonic() - started,
    )


def best_first(
    prices: Prices,
    bounds_s: dict[Layout, float],
    limit: float,
    target: Target,
    keep: int,
    budget_s: float,
    steps: dict[Layout, StepEstimate],
    offloads: bool = False,
) -> tuple[list[StepEstimate], float]:
    """Simulate the layouts of ``bounds_s`` in its rising order; return (best, proved gap).

    ``steps`` holds what was simulated already and receives what is simulated here.
    """
    deadline = time.monotonic() + budget_s
    best: list[StepEstimate] = []
    rising = sorted(bounds_s.items(), key=lambda item: item[1])
    for done, (layout, bound) in enumerate(rising):
        most_s = best[keep - 1].step_time_s if len(best) >= keep else float("inf")
        if bound > most_s:
            break
        left = bisect_right(rising, most_s, lo=done, key=lambda item: item[1])
        tell("layouts simulated, at most", done, left)
        if best and time.monotonic() > deadline:
            return best, max(0.0, 1 - bound / best[0].step_time_s)
        if layout not in steps:
            step = fastest_fit(prices, layout, limit, target, offloads)
            if step is None:
                continue
            steps[layout] = step
        best.append(steps[layout])
        best.sort(key=lambda step: step.step_time_s)
        del best[keep:]
    return best, 0.0
