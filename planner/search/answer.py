"""The answer to "which layout": a plan, or what is missing and the cheapest ways to get it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, offload_words
from planner.memory.estimate import rank_memory
from planner.plan import (
    PLAIN_FIELDS,
    CandidateRecord,
    EstimateRecord,
    LayoutRecord,
    PartitionRecord,
    PlacementRecord,
    Plan,
    SearchRecord,
    SimulatedRecord,
    SlowLinkRecord,
    StageRecord,
)
from planner.progress import counted
from planner.schedule.kinds import rank_of, schedule_name
from planner.search.families import family_bests, lost_families
from planner.search.placed import placed, proved_gap
from planner.search.proof import any_stages_bounds_s
from planner.search.recommend import Options, Search, fastest_fit, search
from planner.search.stability import pareto_front, stability
from planner.search.stages import Staged, improved
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, step_interval
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec, gpu_names, load_gpu
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.parts import healthy

MOST_NODES_TRIED = 64  # times the nodes asked for
SHORTEST_SEQUENCE = 256
MOST_SIMULATED = 200  # layouts listed with time and memory only
MOST_STAGED = 3  # more layouts given better stages, those with the least bounds
CLOSE = 0.01  # gaps over any stages that are not looked into
ILP_SECONDS = 0.5  # per layout; the integer programmes of 80 layers on 8 stages take 0.1-0.9 s


@dataclass(frozen=True, slots=True)
class Change:
    """One change that would make the job fit, and how much more of something it takes."""

    text: str
    factor: float


@dataclass(frozen=True, slots=True)
class NoFit:
    """Nothing fits: the layout that comes nearest, what it lacks, and what would help."""

    label: str
    needed_bytes: float
    limit_bytes: float
    changes: tuple[Change, ...]

    @property
    def shortfall_bytes(self) -> float:
        """Bytes that the nearest layout lacks on its fullest GPU."""
        return self.needed_bytes - self.limit_bytes


def recommend(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    options: Options = Options(),
) -> Plan | NoFit:
    """Return the fastest plan that fits and the target can run, or what it would take."""
    if options.offload is None and target.offloads:
        plain = recommend(model, cluster, job, target, replace(options, offload=False))
        if isinstance(plain, Plan):
            return plain
        needed = recommend(model, cluster, job, target, replace(options, offload=True))
        return needed if isinstance(needed, Plan) else plain
    if cluster.node_groups:
        from planner.search.mixed import recommend_mixed  # which asks this for each kind of node

        return recommend_mixed(model, cluster, job, target, options)
    deadline = time.monotonic() + options.budget_s
    job = job.model_copy(update={"software": target.software})
    even = healthy(cluster)
    found = search(model, even, job, target, options)
    if not found.best:
        return _no_fit(model, even, job, target, options, found)
    prices = Prices(model, even, job)
    bests = family_bests(
        prices, found, target, max(0.0, deadline - time.monotonic()), bool(options.offload)
    )
    candidates = {step.layout: step for step in (*found.best, *bests.values())}  # budget cut short
    chosen = sorted(candidates.values(), key=lambda step: step.step_time_s)[: options.keep]
    staged: list[Staged] = []
    for step in counted(chosen, "layouts given their best stages"):
        rest = len(chosen) - len(staged)
        share_s = min(ILP_SECONDS, max(0.0, deadline - time.monotonic()) / rest)
        staged.append(improved(prices, step, found.limit_bytes, target, share_s))
    staged.sort(key=lambda one: one.step.step_time_s)
    found = _proved(prices, found, staged, target, deadline)
    del staged[options.keep :]
    lost = lost_families(prices, found, staged[0].step, bests)
    if cluster.node_links is not None:
        return _placed_plan(Prices(model, cluster, job), staged, found, lost)
    return build_plan(prices, staged, found, lost)


def _proved(
    prices: Prices, found: Search, staged: list[Staged], target: Target, deadline: float
) -> Search:
    """Return ``found`` with bounds over any stages; what these leave open joins ``staged``."""
    until_s = (1 - CLOSE) * staged[0].step.step_time_s
    bounds = any_stages_bounds_s(prices, found, until_s, target.uniform_recompute, deadline)
    known = {one.step.layout for one in staged}
    for layout in sorted(bounds, key=bounds.__getitem__)[:MOST_STAGED]:
        left_s = deadline - time.monotonic()
        if bounds[layout] >= until_s or layout in known or left_s <= 0:
            continue
        step = found.steps.get(layout) or fastest_fit(
            prices, layout, found.limit_bytes, target, False
        )
        if step is not None:
            share_s = min(ILP_SECONDS, left_s)
            staged.append(improved(prices, step, found.limit_bytes, target, share_s))
    staged.sort(key=lambda one: one.step.step_time_s)
    return replace(found, bounds_s=found.bounds_s | bounds)


def _placed_plan(
    prices: Prices, staged: list[Staged], found: Search, lost: list[CandidateRecord]
) -> Plan:
    """Place each of ``staged`` on the measured links; the fastest there is the plan."""
    on_links = [(placed(prices, one.step), one) for one in staged]
    on_links.sort(key=lambda pair: pair[0].step.step_time_s)
    best = on_links[0][0]
    gap = proved_gap(found.gap, found.best[0].step_time_s, best.step.step_time_s)
    record = PlacementRecord(
        communication_s=best.communication_s,
        listed_communication_s=best.listed_communication_s,
        listed_step_time_s=best.listed_step_time_s,
        healthy_step_time_s=best.healthy_s,
        exact=best.exact,
        unused=best.unused,
        slow_links=tuple(SlowLinkRecord(**link._asdict()) for link in best.avoided),
    )
    there = [replace(one, step=on.step) for on, one in on_links]
    plan = build_plan(best.prices, there, replace(found, gap=gap), lost)
    return plan.model_copy(update={"placement": record})


def build_plan(
    prices: Prices, staged: list[Staged], found: Search, lost: list[CandidateRecord]
) -> Plan:
    """Write the first of ``staged`` out as a plan; the others become its alternatives."""
    steps = [one.step for one in staged]
    best = steps[0]
    layout, job = best.layout, prices.job
    every = (found.steps | {one.layout: one for one in steps}).values()
    return Plan(
        model=prices.model,
        cluster=prices.cluster,
        job=job,
        layout=layout_record(layout, best),
        schedule=schedule_name(layout),
        stages=_stage_records(prices, best),
        rank_map=tuple(range(layout.gpus)),
        hosts=prices.cluster.hosts,
        estimate=estimate_record(prices, best),
        search=SearchRecord(
            layouts=len(found.layouts),
            fitting=len(found.fitting),
            simulated=found.simulated,
            gap=found.gap,
            gap_any_stages=gap_any_stages(found, best.step_time_s),
            seconds=found.seconds,
        ),
        partition=_partition_record(staged[0]),
        alternatives=tuple(_candidate(step, best) for step in steps[1:]),
        lost=tuple(lost),
        simulated=_simulated(found, steps),
        stability=stability(best, every),
        pareto=tuple(pareto_front(every, prices.cluster.gpu.memory_bytes)),
    )


def gap_any_stages(found: Search, step_time_s: float) -> float:
    """Return how far below ``step_time_s`` any stages of any layout may be, as a fraction of it.

    A layout without a pipeline has no stages to choose: its simulated time is the least.
    """
    bounds = (
        bound_s for one, bound_s in found.bounds_s.items() if one.pp > 1 or one not in found.steps
    )
    return max(0.0, 1 - min(bounds, default=step_time_s) / step_time_s)


def _partition_record(staged: Staged) -> PartitionRecord | None:
    if staged.step.layout.pp == 1:
        return None
    found, step_time_s = staged.found, staged.equal.step_time_s
    if found is None or not found.layers:
        return PartitionRecord(
            solver=staged.solver, status="not solved", objective_s=step_time_s, bound_s=0.0,
            equal_step_time_s=step_time_s,
        )  # fmt: skip
    return PartitionRecord(
        solver=staged.solver,
        status=found.status,
        objective_s=found.objective_s,
        bound_s=found.objective_s * (1 - found.gap),
        equal_step_time_s=step_time_s,
    )


def _simulated(found: Search, shown: list[StepEstimate]) -> tuple[SimulatedRecord, ...]:
    """Return time and memory of the fastest layouts that are not in ``shown``."""
    known = {step.layout for step in shown}
    others = (step for step in found.steps.values() if step.layout not in known)
    fastest = sorted(others, key=lambda step: step.step_time_s)[:MOST_SIMULATED]
    return tuple(
        SimulatedRecord(
            label=step.layout.label(),
            step_time_s=step.step_time_s,
            memory_bytes=step.memory.device,
        )
        for step in fastest
    )


def layout_record(layout: Layout, step: StepEstimate) -> LayoutRecord:
    """Return the layout as a plan writes it; ``full`` only where every layer is recomputed."""
    again = step.split.recomputed
    recompute = str(layout.recompute)
    if again is not None and again == step.split.layers:
        recompute = str(Recompute.FULL)
    return LayoutRecord(
        **{name: getattr(layout, name) for name in PLAIN_FIELDS},
        shard_weights=layout.shard.weights,
        shard_gradients=layout.shard.gradients,
        shard_optimizer=layout.shard.optimizer,
        shard_secondary=layout.shard.secondary,
        recompute=recompute,
        offload_fraction=layout.offload.fraction,
        offload_target=layout.offload.target,
    )


def _stage_records(prices: Prices, step: StepEstimate) -> tuple[StageRecord, ...]:
    layout, split = step.layout, step.split
    sizes = [
        rank_memory(prices.model, prices.job, layout, rank, split).device
        for rank in range(layout.pp)
    ]
    again = split.recomputed or tuple(
        count if layout.recompute is Recompute.FULL else 0 for count in split.layers
    )
    ranks = rank_of(schedule_name(layout), layout.pp, layout.vpp)
    records, first = [], 0
    last = len(split.layers) - 1
    for stage, (count, recomputed) in enumerate(zip(split.layers, again, strict=True)):
        records.append(
            StageRecord(
                stage=stage,
                first_layer=first,
                layers=count,
                recompute_layers=recomputed,
                embedding=stage == 0,
                head=stage == last,
                memory_bytes=sizes[ranks[stage]],
            )
        )
        first += count
    return tuple(records)


def estimate_record(prices: Prices, step: StepEstimate) -> EstimateRecord:
    """Return the numbers of a step as a plan writes them."""
    gpu = prices.cluster.gpu
    low, high = step_interval(step, prices.cluster)
    return EstimateRecord(
        step_time_s=step.step_time_s,
        step_time_low_s=low,
        step_time_high_s=high,
        tokens_per_s_per_gpu=step.tokens_per_s_per_gpu,
        mfu=step.mfu,
        peak_flops=step.peak_flops,
        memory_bytes=step.memory.device,
        capacity_bytes=gpu.memory_bytes,
        parts_s=step.parts_s,
    )


def _candidate(step: StepEstimate, best: StepEstimate) -> CandidateRecord:
    slower = 100 * (step.step_time_s / best.step_time_s - 1)
    again = sum(step.split.recomputed or ())
    recomputes = f", recomputes {again} of {sum(step.split.layers)} layers" if again else ""
    if step.layout.offload.fraction:
        recomputes += f", {offload_words(step.layout.offload)}"
    return CandidateRecord(
        label=step.layout.label(),
        step_time_s=step.step_time_s,
        memory_bytes=step.memory.device,
        reason=f"{slower:.1f}% slower{recomputes}",
    )


def _least_bytes(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target, options: Options
) -> float:
    """Return the device memory that the most frugal layout needs."""
    return search(model, cluster, job, target, replace(options, keep=0)).least_bytes


def _no_fit(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    options: Options,
    found: Search,
) -> NoFit:
    """Try more nodes, larger GPUs and shorter sequences; keep the three that ask for least."""

    def fits(cluster: ClusterSpec, job: JobSpec) -> bool:
        limit = cluster.gpu.memory_bytes * (1 - options.keep_free)
        return 0 < _least_bytes(model, cluster, job, target, options) <= limit

    own, *larger = (_more_memory(cluster, gpu, job, fits) for gpu in _gpus_to_try(cluster))
    others = [change for change in (*larger, *_shorter_sequences(cluster, job, fits)) if change]
    others.sort(key=lambda change: change.factor)
    changes = [own, *others][:3] if own else others[:3]
    label = found.least.label() if found.least else "no legal layout"
    return NoFit(label, found.least_bytes, found.limit_bytes, tuple(changes))


def _gpus_to_try(cluster: ClusterSpec) -> list[GpuSpec]:
    """Return the GPU of the cluster, and a shipped one of its make for each larger memory."""
    make = cluster.gpu.name[:2] == "MI"
    larger: dict[int, GpuSpec] = {}
    for name in gpu_names():
        gpu = load_gpu(name)
        if gpu.memory_bytes > 1.2 * cluster.gpu.memory_bytes and (name[:2] == "MI") == make:
            larger.setdefault(gpu.memory_bytes, gpu)
    return [cluster.gpu, *(larger[size] for size in sorted(larger))]


def _more_memory(
    cluster: ClusterSpec, gpu: GpuSpec, job: JobSpec, fits: Callable[[ClusterSpec, JobSpec], bool]
) -> Change | None:
    """Double the nodes until the job fits on GPUs of this kind."""
    factor = 1
    while factor <= MOST_NODES_TRIED:
        nodes = cluster.nodes * factor
        if nodes == 1 or cluster.scale_out is not None:
            more = cluster.model_copy(update={"gpu": gpu, "nodes": nodes})
            if fits(more, job):
                kind = "" if gpu == cluster.gpu else f" with {gpu.name} GPUs"
                count = "1 node" if nodes == 1 else f"{nodes} nodes"
                text = f"use {count} ({more.gpus} GPUs){kind}"
                return Change(text, factor * gpu.memory_bytes / cluster.gpu.memory_bytes)
        factor *= 2
    return None


def _shorter_sequences(
    cluster: ClusterSpec, job: JobSpec, fits: Callable[[ClusterSpec, JobSpec], bool]
) -> list[Change]:
    """Halve the sequence until the job fits."""
    seq_len, factor = job.seq_len // 2, 2
    while seq_len >= SHORTEST_SEQUENCE:
        if fits(cluster, job.model_copy(update={"seq_len": seq_len})):
            return [Change(f"train on sequences of {seq_len} tokens", factor)]
        seq_len, factor = seq_len // 2, factor * 2
    return []
