"""Layouts that fit with the optimizer, and where needed the weights, in the memory of the nodes."""

from dataclasses import replace
from math import ceil

from planner.layout.layout import Layout, Recompute
from planner.layout.rules import layout_problems
from planner.memory.estimate import peak_memory
from planner.memory.host import host_problems
from planner.search.targets import Target
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

PERCENT = 100  # shares are tried in whole percents


def _least_share(none_bytes: float, all_bytes: float, limit_bytes: float) -> float:
    """Return the smallest share on the host that fits, given what fits none and all of it.

    Bytes at every moment are linear in the share, so their maximum is below the line between.
    """
    share = (none_bytes - limit_bytes) / (none_bytes - all_bytes)
    return min(1.0, ceil(PERCENT * share) / PERCENT)


def _variants(layout: Layout, job: JobSpec) -> list[Layout]:
    """Return ``layout`` with all of the optimizer on the host, then with the weights there too."""
    software = job.software
    sharded = layout.shard.weights > 1
    whole = replace(layout, offload_optimizer=1.0)
    fetched = replace(whole, offload_weights=True)
    if not software.streams_gradients:  # nothing of it can fetch weights
        return [whole]
    return [fetched] if sharded and software.sharded_master else [whole, fetched]


def hosted_layouts(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    layouts: list[Layout],
    limit_bytes: float,
) -> list[tuple[Layout, float]]:
    """Return (layout, least device bytes) of those of ``layouts`` that the host makes fit.

    Each of them with all of the optimizer on the host, and with the least share that fits, where
    the target can split it.
    """

    def runs(layout: Layout) -> bool:
        problems = layout_problems(model, cluster, job, layout)
        problems += target.problems(model, job, layout) if target.problems else []
        return not problems and not host_problems(model, cluster, job, layout)

    def needs(layout: Layout) -> float:
        return peak_memory(model, job, replace(layout, recompute=Recompute.FULL)).device

    if cluster.host is None:
        return []
    found = []
    for layout in layouts:
        before = needs(layout)
        for whole in _variants(layout, job):
            after = needs(whole)
            if after > limit_bytes or after >= before:
                continue
            share = _least_share(before, after, limit_bytes)
            part = replace(layout, offload_optimizer=share)
            if share < 1 and not whole.offload_weights and runs(part):
                found.append((part, needs(part)))
            if runs(whole):
                found.append((whole, after))
            break
    return found
