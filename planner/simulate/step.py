"""One training step: stage times through the schedule, then gradients, optimizer and weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.collectives import Group, collective_s, send_recv_s
from planner.cost.compute import half_precision_peak
from planner.cost.data_parallel import optimizer_s, replicas, shares, sync_s
from planner.cost.imbalance import slow_node_stall_s
from planner.cost.layer import INTERFERENCE, PassCost, Prices, Seconds
from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, stage_local
from planner.layout.stages import Split, StageLayers, rank_layers, stage_layers
from planner.memory.estimate import RankMemory, peak_memory
from planner.memory.states import WEIGHT_BYTES
from planner.model.flops import model_flops_per_token
from planner.simulate.pipeline import pipeline_time
from planner.spec.cluster import ClusterSpec

FloatArray = NDArray[np.float64]
LAYER_BUCKET = float("inf")  # fully sharded layers travel whole


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What one layout is expected to do. ``parts_s`` adds up to ``step_time_s``."""

    layout: Layout
    split: Split
    step_time_s: float
    parts_s: dict[str, float]
    memory: RankMemory
    mfu: float
    peak_flops: float
    tokens_per_s_per_gpu: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """One (virtual) stage, one micro-batch. ``recompute`` is part of the backward pass."""

    forward: Seconds
    backward: Seconds
    recompute: Seconds

    @property
    def forward_s(self) -> float:
        """Seconds of the forward pass."""
        return self.forward.total

    @property
    def backward_s(self) -> float:
        """Seconds of the backward pass."""
        return self.backward.total


def _left_exposed(communication_s: float, compute_s: float) -> float:
    """Seconds that communication adds to compute it runs beside: the rest, and the slowdown."""
    covered = min(communication_s, compute_s)
    return communication_s - covered + INTERFERENCE * covered


def _sharded_layer_s(
    cost: PassCost, prices: Prices, layout: Layout, moe_layer: bool
) -> tuple[float, float]:
    """Seconds that sharded weights and gradients add to one layer in (forward, backward).

    Without a pipeline, ZeRO-3 gathers a layer's weights before each pass while the layer before
    computes, and ZeRO-2 and 3 scatter its gradients after each backward pass, every micro-batch.
    """
    shard = layout.shard
    if shard.gradients == 1 or layout.pp > 1:
        return 0.0, 0.0
    model, cluster, software = prices.model, prices.cluster, prices.job.software
    one = StageLayers(int(not moe_layer), int(moe_layer))
    local = stage_local(model, one, layout.tp, layout.ep, layout.etp)
    parts = shares(local, layout, cluster, shard.gradients)
    backward, _ = sync_s("reduce_scatter", parts, software.reduce_bytes, LAYER_BUCKET, cluster)
    forward = 0.0
    if shard.weights > 1:
        parts = shares(local, layout, cluster, shard.weights)
        forward, _ = sync_s("all_gather", parts, WEIGHT_BYTES, LAYER_BUCKET, cluster)
        backward += forward
    if not software.overlap_param_gather:
        return forward, backward
    return (
        _left_exposed(forward, cost.forward.total),
        _left_exposed(backward, cost.backward.total),
    )


def stage_cost(prices: Prices, layout: Layout, stage: StageLayers) -> StageCost:
    """Add up the layers of one stage."""
    forward, backward, recompute = Seconds(), Seconds(), Seconds()
    for count, moe_layer, kind in stage.kinds(layout.recompute):
        cost = prices.layer(layout, moe_layer, kind)
        more_forward, more_backward = _sharded_layer_s(cost, prices, layout, moe_layer)
        forward = forward.plus(cost.forward, count).plus(Seconds(dp=more_forward), count)
        backward = backward.plus(cost.backward, count).plus(Seconds(dp=more_backward), count)
        recompute = recompute.plus(cost.recompute, count)
    ends = ((stage.embedding, prices.embedding), (stage.head, prices.head))
    for present, price in ends:
        if present:
            forward = forward.plus(price(layout).forward)
            backward = backward.plus(price(layout).backward)
    return StageCost(forward, backward, recompute)


def _hop_s(prices: Prices, layout: Layout, stride: int) -> float:
    """Seconds to hand one micro-batch to the stage ``stride`` slots away.

    Sequence parallelism sends shards as they are; Megatron's scatter/gather sends a share from each
    tensor-parallel rank and gathers it inside the node (PTD-P, section 4.1).
    """
    model, job, cluster = prices.model, prices.job, prices.cluster
    whole = 2 * layout.micro_batch * job.seq_len / layout.cp * model.hidden
    if layout.sequence_parallel:
        return send_recv_s(whole / layout.tp, stride, cluster)
    if layout.tp == 1 or not job.software.scatter_gather_pipeline:
        return send_recv_s(whole, stride, cluster)
    group = Group.place(layout.tp, 1, cluster)
    gather = collective_s("all_gather", whole, group, cluster)
    return send_recv_s(whole / layout.tp, stride, cluster) + gather


def _hops_s(prices: Prices, layout: Layout) -> FloatArray:
    """Seconds of the hop behind each (virtual) stage but the last, ``[stages - 1]``.

    A stage of fewer GPUs than a scale-up domain has neighbours inside it and beyond.
    """
    size, domain = layout.tp * layout.cp * layout.dp, prices.cluster.domain_gpus
    hops = {crosses: _hop_s(prices, layout, domain if crosses else 1) for crosses in (False, True)}
    slots = size * (np.arange(layout.pp * layout.vpp) % layout.pp)
    first = slots // domain
    last = (slots + size - 1) // domain
    crosses = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
    return np.where(crosses, hops[True], hops[False])


def _gradient_tail_s(
    prices: Prices, layout: Layout, local: LocalParameters, last_s: float
) -> float:
    """Seconds of gradient reduction after the last backward pass, which took ``last_s``."""
    software, shard = prices.job.software, layout.shard
    kind = "all_reduce"
    if shard.gradients > 1 and layout.pp == 1:  # scattered layer by layer; copies remain
        parts = replicas(local, layout, prices.cluster, shard.gradients)
    else:
        parts = shares(local, layout, prices.cluster)
        if shard.optimizer > 1 and software.reduce_scatter_gradients:
            kind = "reduce_scatter"
    total, last = sync_s(kind, parts, software.reduce_bytes, software.bucket_bytes, prices.cluster)
    late = software.reduces_after_pipeline and layout.pp > 1
    if late or not software.overlap_grad_reduce:
        return total
    return last + _left_exposed(total - last, last_s)


def _weight_gather_s(
    prices: Prices, layout: Layout, local: LocalParameters, first_s: float
) -> float:
    """Seconds of gathering updated weights that the first forward pass does not hide."""
    software, shard = prices.job.software, layout.shard
    if shard.optimizer == 1 or (shard.weights > 1 and layout.pp == 1):
        return 0.0
    parts = shares(local, layout, prices.cluster, shard.optimizer)
    bucket = software.gather_bucket_bytes
    total, one = sync_s("all_gather", parts, WEIGHT_BYTES, bucket, prices.cluster)
    if not software.overlap_param_gather:
        return total
    return one + _left_exposed(total - one, first_s)


def schedule_name(layout: Layout) -> str:
    """Return the pipeline schedule of a layout."""
    return "1f1b" if layout.vpp == 1 else "interleaved_1f1b"


@dataclass(frozen=True, slots=True)
class Tail:
    """What one pipeline rank does after its last pass, in seconds.

    ``stall_s`` waits for a slow node; ``data_parallel_s`` reduces gradients and gathers weights.
    """

    stall_s: float
    data_parallel_s: float
    optimizer_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.stall_s + self.data_parallel_s + self.optimizer_s


def stage_costs(prices: Prices, layout: Layout, split: Split | None) -> list[StageCost]:
    """Return the cost of one micro-batch on each (virtual) stage."""
    stages = stage_layers(prices.model, layout.pp * layout.vpp, split)
    return [stage_cost(prices, layout, stage) for stage in stages]


def tails(
    prices: Prices, layout: Layout, split: Split | None, costs: list[StageCost]
) -> list[Tail]:
    """Return what each pipeline rank does after its last pass."""
    job, cluster, model = prices.job, prices.cluster, prices.model
    micro_batches = layout.micro_batches(job.global_batch)
    stall = slow_node_stall_s(job.software, layout, cluster, micro_batches)
    found = []
    for rank in range(layout.pp):
        held = rank_layers(model, layout.pp, layout.vpp, rank, split)
        local = stage_local(model, held, layout.tp, layout.ep, layout.etp, job.software)
        mine = costs[rank :: layout.pp]
        gradient = _gradient_tail_s(prices, layout, local, sum(c.backward_s for c in mine))
        weights = _weight_gather_s(prices, layout, local, sum(c.forward_s for c in mine))
        update = optimizer_s(local, layout, job.software, cluster)
        found.append(Tail(stall, gradient + weights, update))
    return found


def estimate_step(prices: Prices, layout: Layout, split: Split | None = None) -> StepEstimate:
    """Estimate one optimizer step of ``layout``; ``split`` overrides the layers of each stage."""
    job, cluster, model = prices.job, prices.cluster, prices.model
    micro_batches = layout.micro_batches(job.global_batch)
    costs = stage_costs(prices, layout, split)
    pipeline = pipeline_time(*pipeline_inputs(prices, layout, costs))
    after = tails(prices, layout, split, costs)
    ends = zip(pipeline.last_backward_end_s, after, strict=True)
    total = max(float(end) + tail.total_s for end, tail in ends)
    busiest = int(np.argmax(pipeline.per_rank_busy_s))
    parts_s = _attribute(costs[busiest :: layout.pp], micro_batches, total, after[busiest])
    flops = model_flops_per_token(model, job.seq_len) * job.global_batch * job.seq_len
    peak = half_precision_peak(cluster.gpu)
    return StepEstimate(
        layout,
        split or Split(tuple(s.layers for s in stage_layers(model, layout.pp * layout.vpp))),
        total,
        parts_s,
        peak_memory(model, job, layout, split),
        flops / (total * layout.gpus * peak),
        peak,
        job.global_batch * job.seq_len / (total * layout.gpus),
    )


def pipeline_inputs(
    prices: Prices, layout: Layout, costs: list[StageCost]
) -> tuple[str, int, int, int, FloatArray, FloatArray, FloatArray, bool]:
    """Return the arguments of ``pipeline_time`` and ``pass_times`` for one layout."""
    return (
        schedule_name(layout),
        layout.pp,
        layout.vpp,
        layout.micro_batches(prices.job.global_batch),
        np.array([cost.forward_s for cost in costs]),
        np.array([cost.backward_s for cost in costs]),
        _hops_s(prices, layout),
        prices.job.software.overlap_pipeline,
    )


def step_interval(step: StepEstimate, cluster: ClusterSpec) -> tuple[float, float]:
    """Return (low, high) seconds between which about four of five measured runs lie.

    Shares are the 10th and 90th percentile of measured ÷ estimated over the replayed runs
    (``planner validate``): tighter for dense models without a pipeline over nodes, wider where
    tensor parallelism or a pipeline crosses nodes or experts are exchanged.
    """
    low, high = 0.9, 1.25
    if step.layout.tp > cluster.domain_gpus:
        low, high = 0.7, 1.6
    elif step.layout.ep > 1:
        low, high = 0.75, 1.5
    elif step.layout.pp > 1 and cluster.nodes > 1:
        low, high = 0.8, 1.5
    return low * step.step_time_s, high * step.step_time_s


def _attribute(
    costs: list[StageCost], micro_batches: int, total: float, tail: Tail
) -> dict[str, float]:
    """Split the step on the busiest rank; what is left is waiting for other stages."""
    busy = Seconds()
    recompute = 0.0
    for cost in costs:
        busy = busy.plus(cost.forward, micro_batches).plus(cost.backward, micro_batches)
        recompute += micro_batches * cost.recompute.compute
    parts = {
        "compute": busy.compute - recompute,
        "recompute": recompute,
        "tensor_parallel": busy.tp,
        "context_parallel": busy.cp,
        "expert_parallel": busy.ep,
        "host": busy.host,
        "data_parallel": busy.dp + tail.data_parallel_s,
        "optimizer": tail.optimizer_s,
    }
    parts["pipeline"] = total - sum(parts.values())
    return parts
