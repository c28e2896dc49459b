"""Kinds of layout, and why each kind lost."""

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.plan import CandidateRecord
from planner.search.recommend import Search, best_first
from planner.search.targets import Target
from planner.simulate.step import StepEstimate
from planner.spec.cluster import ClusterSpec
from planner.units import format_bytes, format_s

_CAUSES = {
    "recompute": "recompute",
    "tensor_parallel": "exposed tensor-parallel communication",
    "context_parallel": "exposed context-parallel communication",
    "expert_parallel": "exposed expert-parallel communication",
    "data_parallel": "exposed data-parallel communication",
    "pipeline": "pipeline bubble and transfers",
    "host": "kernel launches",
    "offload": "offload",
    "optimizer": "the optimizer",
    "compute": "slower kernels (smaller shapes)",
}


def family(layout: Layout, cluster: ClusterSpec) -> str:
    """Return the kind of a layout in the field's words."""
    parts = []
    if layout.tp > cluster.domain_gpus:
        parts.append("tensor parallel across nodes")
    elif layout.tp > 1:
        parts.append("tensor parallel")
    if layout.cp > 1:
        parts.append("context parallel")
    if layout.ep > 1:
        parts.append("expert parallel")
    if layout.schedule:
        parts.append("zero-bubble pipeline")
    elif layout.vpp > 1:
        parts.append("interleaved pipeline")
    elif layout.pp > 1:
        parts.append("pipeline")
    if layout.shard.weights > 1:
        sharded = layout.shard.weights < layout.dp * layout.cp
        parts.append("hybrid sharded data parallel" if sharded else "fully sharded data parallel")
    if layout.offload_optimizer:
        parts.append("weights on the host" if layout.offload_weights else "optimizer on the host")
    return " + ".join(parts) or "data parallel"


def _slower_because(loser: StepEstimate, winner: StepEstimate) -> str:
    """Name the part of the step in which the loser loses most."""
    gap = loser.step_time_s - winner.step_time_s
    worse = {part: loser.parts_s[part] - winner.parts_s.get(part, 0.0) for part in loser.parts_s}
    part = max(worse, key=worse.__getitem__)
    percent = 100 * gap / winner.step_time_s
    return f"{percent:.0f}% slower: {format_s(worse[part])} more for {_CAUSES[part]}"


def family_bests(
    prices: Prices, found: Search, target: Target, budget_s: float, offload: bool = True
) -> dict[str, StepEstimate]:
    """Return the fastest fitting layout of every family; all of them share ``budget_s``."""
    fitting: dict[str, dict[Layout, float]] = {}
    for layout, bound_s in found.bounds_s.items():
        fitting.setdefault(family(layout, prices.cluster), {})[layout] = bound_s
    bests, steps = {}, dict(found.steps)
    share = budget_s / max(1, len(fitting))
    for kind, members in fitting.items():
        best, _ = best_first(
            prices, members, found.limit_bytes, target, 1, share, steps,
            offload and target.offloads,
        )  # fmt: skip
        if best:
            bests[kind] = best[0]
    return bests


def lost_families(
    prices: Prices, found: Search, winner: StepEstimate, bests: dict[str, StepEstimate]
) -> list[CandidateRecord]:
    """Return the best layout of every other family with the reason it lost, fastest first."""
    cluster = prices.cluster
    own = family(winner.layout, cluster)
    records = [
        CandidateRecord(
            label=kind,
            step_time_s=best.step_time_s,
            memory_bytes=best.memory.device,
            reason=f"{best.layout.label()}: {_slower_because(best, winner)}",
        )
        for kind, best in sorted(bests.items(), key=lambda item: item[1].step_time_s)
        if kind != own
    ]
    return records + _too_large(found, cluster, {own, *bests})


def _too_large(found: Search, cluster: ClusterSpec, known: set[str]) -> list[CandidateRecord]:
    """Return the families of which no layout fits, with the least that one of them needs."""
    least: dict[str, tuple[float, Layout]] = {}
    for layout, size in zip(found.layouts, found.needed_bytes, strict=True):
        kind = family(layout, cluster)
        if kind not in known and size < least.get(kind, (float("inf"), layout))[0]:
            least[kind] = (size, layout)
    return [
        CandidateRecord(
            label=kind,
            memory_bytes=size,
            reason=f"does not fit: {layout.label()} needs at least {format_bytes(size)} of "
            f"{format_bytes(found.limit_bytes)}",
        )
        for kind, (size, layout) in sorted(least.items(), key=lambda item: item[1][0])
    ]
