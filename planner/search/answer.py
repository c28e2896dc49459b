"""The answer to "which layout": a plan, or what is missing and the cheapest ways to get it."""

from dataclasses import dataclass

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.memory.estimate import rank_memory
from planner.plan import (
    CandidateRecord,
    EstimateRecord,
    LayoutRecord,
    Plan,
    SearchRecord,
    StageRecord,
)
from planner.search.families import lost_families
from planner.search.recommend import Options, Search, search
from planner.search.stages import improved
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, schedule_name, step_interval
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import gpu_names, load_gpu
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import format_bytes

MOST_NODES_TRIED = 64  # times the nodes asked for
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
    job = job.model_copy(update={"software": target.software})
    found = search(model, cluster, job, target, options)
    if not found.best:
        return _no_fit(model, cluster, job, target, options, found)
    prices = Prices(model, cluster, job)
    steps = [
        improved(prices, step, found.limit_bytes, target, ILP_SECONDS)[0] for step in found.best
    ]
    steps.sort(key=lambda step: step.step_time_s)
    lost = lost_families(prices, found, steps[0], target, options)
    return build_plan(prices, steps, found, lost)


def build_plan(
    prices: Prices, steps: list[StepEstimate], found: Search, lost: list[CandidateRecord]
) -> Plan:
    """Write the first of ``steps`` out as a plan; the others become its alternatives."""
    best = steps[0]
    layout, job = best.layout, prices.job
    return Plan(
        model=prices.model,
        cluster=prices.cluster,
        job=job,
        layout=layout_record(layout, best),
        schedule=schedule_name(layout),
        stages=_stage_records(prices, best),
        rank_map=tuple(range(layout.gpus)),
        estimate=estimate_record(prices, best),
        search=SearchRecord(
            layouts=len(found.layouts),
            fitting=len(found.fitting),
            simulated=found.simulated,
            gap=found.gap,
            seconds=found.seconds,
        ),
        alternatives=tuple(_candidate(step, best) for step in steps[1:]),
        lost=tuple(lost),
    )


def layout_record(layout: Layout, step: StepEstimate) -> LayoutRecord:
    """Return the layout as a plan writes it; ``full`` only where every layer is recomputed."""
    again = step.split.recomputed
    recompute = str(layout.recompute)
    if again is not None and again == step.split.layers:
        recompute = str(Recompute.FULL)
    degrees = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch", "sequence_parallel")
    return LayoutRecord(
        **{name: getattr(layout, name) for name in degrees},
        shard_weights=layout.shard.weights,
        shard_gradients=layout.shard.gradients,
        shard_optimizer=layout.shard.optimizer,
        recompute=recompute,
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
                memory_bytes=sizes[stage % layout.pp],
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
    return CandidateRecord(
        label=step.layout.label(),
        step_time_s=step.step_time_s,
        memory_bytes=step.memory.device,
        reason=f"{slower:.1f}% slower{recomputes}",
    )


def _least_bytes(model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target) -> float:
    """Return the device memory that the most frugal layout needs."""
    return search(model, cluster, job, target, Options(keep=0)).least_bytes


def _no_fit(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    options: Options,
    found: Search,
) -> NoFit:
    """Try more nodes, shorter sequences and larger GPUs; keep the three that ask for least."""
    changes = []
    factor = 2
    while factor <= MOST_NODES_TRIED:
        more = cluster.model_copy(update={"nodes": cluster.nodes * factor})
        needed = _least_bytes(model, more, job, target)
        if 0 < needed <= found.limit_bytes:
            changes.append(Change(f"use {more.nodes} nodes ({more.gpus} GPUs)", factor))
            break
        factor *= 2
    seq_len, factor = job.seq_len // 2, 2
    while seq_len >= 256:
        shorter = job.model_copy(update={"seq_len": seq_len})
        needed = _least_bytes(model, cluster, shorter, target)
        if 0 < needed <= found.limit_bytes:
            changes.append(Change(f"train on sequences of {seq_len} tokens", factor))
            break
        seq_len, factor = seq_len // 2, factor * 2
    if found.least is not None:
        changes += _larger_gpus(cluster, found, options)
    changes.sort(key=lambda change: change.factor)
    label = found.least.label() if found.least else "no legal layout"
    return NoFit(label, found.least_bytes, found.limit_bytes, tuple(changes[:3]))


def _larger_gpus(cluster: ClusterSpec, found: Search, options: Options) -> list[Change]:
    """Return the smallest shipped GPU on which the most frugal layout fits."""
    needed = found.least_bytes / (1 - options.keep_free)
    larger = [gpu for name in gpu_names() if (gpu := load_gpu(name)).memory_bytes >= needed]
    if not larger:
        return []
    gpu = min(larger, key=lambda gpu: gpu.memory_bytes)
    text = f"use GPUs of {format_bytes(needed)} or more, such as {gpu.name}"
    return [Change(text, gpu.memory_bytes / cluster.gpu.memory_bytes)]
