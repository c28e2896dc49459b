"""From every legal layout to the best plans: filter by memory, bound, simulate best-first.

The answer is proved within the model: simulation stops when the lower bound of every layout left
exceeds the best step time found, or the budget ends and the gap is stated.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.space import layouts as legal_layouts
from planner.memory.estimate import peak_memory
from planner.search.bound import lower_bounds_s
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

Problems = Callable[[ModelSpec, JobSpec, Layout], list[str]]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found: ``best`` in rising step time, and what it covered and proved."""

    best: tuple[StepEstimate, ...]
    layouts: tuple[Layout, ...]
    fitting: tuple[Layout, ...]
    least_bytes: float
    least_layout: Layout | None
    simulated: int
    gap: float
    seconds: float


def capacity_bytes(cluster: ClusterSpec, keep_free: float) -> float:
    """Return the device memory a plan may use: ``keep_free`` of it stays empty."""
    return cluster.gpu.memory_bytes * (1 - keep_free)


def search(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target_problems: Problems | None = None,
    keep: int = 5,
    keep_free: float = 0.0,
    budget_s: float = 60.0,
) -> Search:
    """Return the ``keep`` fastest layouts that fit, with what was proved of the first."""
    started = time.monotonic()
    found = legal_layouts(model, cluster, job, target_problems)
    needed = [peak_memory(model, job, layout).device for layout in found]
    limit = capacity_bytes(cluster, keep_free)
    fitting = [layout for layout, size in zip(found, needed, strict=True) if size <= limit]
    least = min(range(len(found)), key=needed.__getitem__, default=None)
    prices = Prices(model, cluster, job)
    best, simulated, gap = _best_first(prices, fitting, keep, started + budget_s)
    return Search(
        tuple(best),
        tuple(found),
        tuple(fitting),
        needed[least] if least is not None else 0.0,
        found[least] if least is not None else None,
        simulated,
        gap,
        time.monotonic() - started,
    )


def _best_first(
    prices: Prices, fitting: list[Layout], keep: int, deadline: float
) -> tuple[list[StepEstimate], int, float]:
    """Simulate in rising order of the bound; return (best, simulated, proved gap of the first)."""
    bounds = lower_bounds_s(prices, fitting)
    best: list[StepEstimate] = []
    simulated = 0
    for index in bounds.argsort(kind="stable"):
        bound = float(bounds[index])
        if len(best) >= keep and bound > best[keep - 1].step_time_s:
            break
        if best and time.monotonic() > deadline:
            return best, simulated, max(0.0, 1 - bound / best[0].step_time_s)
        best.append(estimate_step(prices, fitting[index]))
        best.sort(key=lambda step: step.step_time_s)
        del best[keep:]
        simulated += 1
    return best, simulated, 0.0
