"""One training step: stage times through the schedule, then gradients, optimizer and weights."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.compute import mean_peak
from planner.cost.imbalance import slow_node_stall_s
from planner.cost.layer import PassCost, Prices, Seconds
from planner.cost.offload import link_bytes_per_s
from planner.cost.overlap import beside_s
from planner.cost.sharded import (
    copied_bytes,
    layer_exchanges,
)
from planner.errors import LayoutError
from planner.layout.layout import Layout, Recompute
from planner.layout.local import (
    layer_local,
    sharded_parameters,
    stage_local,
)
from planner.layout.stages import Split, StageLayers, stage_layers, together
from planner.memory.estimate import RankMemory, peak_memory
from planner.model.flops import model_flops_per_token
from planner.schedule.kinds import Kind, chunks_of, kind_of, schedule_name, stage_of
from planner.schedule.passes import Order
from planner.simulate.cores import on_shared_cores_s, summing_to
from planner.simulate.held_back import weight_delay
from planner.simulate.hops import hops_s
from planner.simulate.offload import exposed_s
from planner.simulate.pipeline import PipelineResult, pipeline_time
from planner.simulate.tails import RankTail, rank_tail
from planner.spec.cluster import ClusterSpec
from planner.spec.job import SoftwareSpec

FloatArray = NDArray[np.float64]
NOTHING = Seconds()
# measured ÷ estimated; of each kind the replayed runs (their sources): share inside
USUAL = (0.90, 1.20)  # 1,161 (15): 82 %
PIPELINE_OVER_NODES = (0.92, 1.27)  # 458 (14): 83 %
EXPERTS = (0.72, 1.6)  # 89 (2): 79 %
TENSOR_OVER_NODES = (0.65, 1.9)  # 209 (2): 81 %
UNEXPLAINED = (0.67, 3.9)  # 413 (1): 80 %


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
    software: SoftwareSpec


@dataclass(frozen=True, slots=True)
class StageCost:
    """One (virtual) stage, one micro-batch. ``recompute`` is part of the backward pass.

    ``weight`` is what a schedule with W passes takes out of the backward pass.
    """

    forward: Seconds
    backward: Seconds
    recompute: Seconds
    weight: Seconds = NOTHING

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Seconds of the forward, backward and weight-gradient pass."""
        return self.forward.total, self.backward.total, self.weight.total

    @property
    def forward_s(self) -> float:
        """Seconds of the forward pass."""
        return self.forward.total

    @property
    def backward_s(self) -> float:
        """Seconds of the backward pass."""
        return self.backward.total


@dataclass(frozen=True, slots=True, eq=False)
class StepCosts:
    """All seconds of one step before they are put in order.

    ``schedule`` is a name or an order, ``kind`` what it is apart from the order of passes.
    ``micro_batches`` run through each chunk; ``stages``, ``costs`` are by virtual stage; ``held``
    lists those of each rank; ``hops_s`` are the transfers behind all stages but the last; ``tails``
    by rank; ``stall_s`` once per step.
    """

    schedule: str | Order
    kind: Kind
    micro_batches: int
    stages: tuple[StageLayers, ...]
    costs: tuple[StageCost, ...]
    held: list[list[int]]
    hops_s: FloatArray
    delay: int | None
    tails: tuple[RankTail, ...]
    stall_s: float

    def of_rank(self, rank: int) -> list[StageCost]:
        """Return the costs of the stages that ``rank`` holds."""
        return [self.costs[stage] for stage in self.held[rank]]


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
    exchanges = layer_exchanges(local, layout, cluster, software)
    if prices.job.lora_rank:  # adapters' gradients are few
        exchanges = tuple(one for one in exchanges if one.tensor == "weights")
    gpu, added = cluster.gpu, []
    copied = copied_bytes(local, layout, software)
    passes = (("forward", cost.forward), ("backward", cost.backward))
    for (phase, own), bytes_copied in zip(passes, copied, strict=True):
        some = [one for one in exchanges if one.phase == phase]
        seconds = sum(one.seconds(cluster) for one in some)
        if software.overlap_param_gather and seconds:
            lost_s = sum(one.seconds(cluster) * one.lost(cluster) for one in some)
            seconds = beside_s(seconds, own.total, lost_s / seconds)
        added.append(seconds + bytes_copied / (gpu.memory_bound_fraction * gpu.hbm_bytes_per_s))
    return added[0], added[1]


def _fetched_layer_s(
    cost: PassCost, prices: Prices, layout: Layout, moe_layer: bool
) -> tuple[float, float]:
    """Seconds that weights on the host add to one layer in (forward, backward).

    Each rank fetches its share of a layer before each pass, while the layer before computes.
    """
    if not layout.offload_weights:
        return 0.0, 0.0
    local = layer_local(prices.model, moe_layer, layout.tp, layout.ep, layout.etp)
    moved = prices.job.software.host_weight_bytes * sharded_parameters(local, layout)
    seconds = moved / link_bytes_per_s(layout, prices.cluster)
    return (
        max(0.0, seconds - cost.forward.total),
        max(0.0, seconds - cost.backward.total),
    )


def stage_cost(
    prices: Prices, layout: Layout, stage: StageLayers, splits: bool = False
) -> StageCost:
    """Add up the layers of one stage; ``splits`` the backward pass, where the schedule does."""
    forward, backward, recompute, weight = Seconds(), Seconds(), Seconds(), Seconds()
    for count, moe_layer, kind in stage.kinds(layout.recompute):
        cost = prices.layer(layout, moe_layer, kind)
        if splits:
            cost = prices.split_backward("moe" if moe_layer else "dense", layout, kind)
        more_forward, more_backward = _sharded_layer_s(cost, prices, layout, moe_layer)
        fetched = _fetched_layer_s(cost, prices, layout, moe_layer)
        more = (Seconds(dp=more_forward, offload=fetched[0]),
                Seconds(dp=more_backward, offload=fetched[1]))  # fmt: skip
        forward = forward.plus(cost.forward, count).plus(more[0], count)
        backward = backward.plus(cost.backward, count).plus(more[1], count)
        recompute = recompute.plus(cost.recompute, count)
        weight = weight.plus(cost.weight, count)
    ends = (("embedding", stage.embedding, prices.embedding), ("head", stage.head, prices.head))
    for block, present, price in ends:
        if present:
            cost = prices.split_backward(block, layout, Recompute.NONE) if splits else price(layout)
            forward = forward.plus(cost.forward)
            backward = backward.plus(cost.backward)
            weight = weight.plus(cost.weight)
    if layout.offload.fraction:
        store_s, load_s = exposed_s(prices, layout, stage)
        forward = forward.plus(Seconds(offload=store_s))
        backward = backward.plus(Seconds(offload=load_s))
    return StageCost(forward, backward, recompute, weight)


def run_kind(layout: Layout, software: SoftwareSpec) -> Kind:
    """Return what the schedule of a layout is as the software runs it."""
    kind = kind_of(schedule_name(layout))
    return replace(kind, own_pace=False) if software.waits_for_all else kind


def step_costs(
    prices: Prices, layout: Layout, split: Split | None = None, custom: Order | None = None
) -> StepCosts:
    """Return the seconds of every stage, hop and rank that a step is put together from.

    ``custom`` replaces the order of the layout's schedule.
    """
    job, model = prices.job, prices.model
    micro_batches, name = layout.micro_batches(job.global_batch), schedule_name(layout)
    kind, table = run_kind(layout, job.software), stage_of(name, layout.pp, chunks_of(layout))
    if custom is not None:
        kind, table = Kind(custom.chunks, splits=custom.splits_backward), custom.stage
    pipelines = kind.pipelines
    stages = stage_layers(model, layout.pp * layout.vpp, split) * pipelines
    if table.size != len(stages):
        raise LayoutError(
            f"the order is for {table.size} stages; the layout has pp*vpp={len(stages)}"
        )
    held, size = table.T.tolist(), layout.gpus // layout.pp
    on = [prices.on(rank * size, size) for rank in range(layout.pp)]
    rank_of_stage = np.argsort(table, axis=None) % layout.pp
    costs = tuple(
        stage_cost(on[rank], layout, stage, kind.splits)
        for rank, stage in zip(rank_of_stage, stages, strict=True)
    )
    tails = tuple(
        rank_tail(
            own,
            layout,
            kind,
            together([stages[stage] for stage in mine]),
            sum(costs[stage].forward_s for stage in mine),
            sum(costs[stage].backward_s + costs[stage].weight.total for stage in mine),
        )
        for own, mine in zip(on, held, strict=True)
    )
    sends_s, delay = hops_s(prices, layout, table, kind.splits), None
    if name == "zb_2p" and custom is None:
        forward, backward, weight = np.array([cost.seconds for cost in costs]).T
        delay = weight_delay(prices, layout, forward, backward, weight, sends_s)
    stall_s = slow_node_stall_s(job.software, layout, prices.cluster, micro_batches)
    return StepCosts(
        custom or name, kind, micro_batches // pipelines, stages, costs, held, sends_s, delay,
        tails, stall_s,
    )  # fmt: skip


def pipeline_arguments(prices: Prices, layout: Layout, step: StepCosts) -> dict[str, Any]:
    """Return what ``pipeline_time`` and ``pipeline_trace`` take for this step."""
    forward, backward, weight = np.array([cost.seconds for cost in step.costs]).T
    return {
        "kind": step.schedule,
        "stages": layout.pp,
        "chunks": len(step.held[0]),
        "micro_batches": layout.micro_batches(prices.job.global_batch),
        "forward_s": forward,
        "backward_s": backward,
        "send_s": step.hops_s,
        "overlap_p2p": prices.job.software.overlap_pipeline,
        "weight_s": weight if step.kind.splits else None,
        "delay": step.delay,
    }


def estimate_step(prices: Prices, layout: Layout, split: Split | None = None) -> StepEstimate:
    """Estimate one optimizer step of ``layout``; ``split`` overrides the layers of each stage."""
    job, model = prices.job, prices.model
    step = step_costs(prices, layout, split)
    pipeline = pipeline_time(**pipeline_arguments(prices, layout, step))
    ends = ends_s(step, pipeline) + step.stall_s
    total = max(float(end) + tail.total for end, tail in zip(ends, step.tails, strict=True))
    if (crowd := prices.cluster.gpu.ranks_per_core) > 1:
        work = pipeline.per_rank_busy_s + [tail.total for tail in step.tails] + step.stall_s
        total = on_shared_cores_s(work, total, crowd)
    busiest = int(np.argmax(pipeline.per_rank_busy_s))
    each = model_flops_per_token(model, job.seq_len, job.lora_rank > 0)
    flops = each * job.global_batch * job.seq_len
    peak = mean_peak(prices.cluster)
    return StepEstimate(
        layout,
        split or Split(tuple(s.layers for s in step.stages[: layout.pp * layout.vpp])),
        total,
        _attribute(step, busiest, total),
        peak_memory(model, job, layout, split),
        flops / (total * layout.gpus * peak),
        peak,
        job.global_batch * job.seq_len / (total * layout.gpus),
        job.software,
    )


def ends_s(step: StepCosts, pipeline: PipelineResult) -> FloatArray:
    """Return when each rank has ended its passes, ``[pp]``.

    In zero-bubble schedules a rank waits for no other before its optimizer step (post-validation,
    Qi et al. 2024, section 4), so it begins the next step as much later than rank 0 as it began
    this one.
    """
    if step.kind.own_pace:
        return pipeline.last_backward_end_s - pipeline.first_forward_start_s
    return pipeline.last_backward_end_s


def step_interval(step: StepEstimate, cluster: ClusterSpec) -> tuple[float, float]:
    """Return (low, high) seconds between which about four of five measured runs lie.

    Shares are about the 10th and 90th percentile of measured ÷ estimated over the replayed runs
    (``planner validate``). Where a software's record has losses whose cause is not known, a
    pipeline over nodes may meet them or not.
    """
    low, high = USUAL
    if step.layout.tp > cluster.domain_gpus:
        low, high = TENSOR_OVER_NODES
    elif step.layout.ep > 1:
        low, high = EXPERTS
    elif step.layout.pp > 1 and cluster.nodes > 1:
        low, high = UNEXPLAINED if step.software.slow_node_share else PIPELINE_OVER_NODES
    # no run here measured the host's part: CPU-Adam of Llama-2-7B took 4 s on a node of 4 A100
    # (DeepSpeed's ZenFlow page), more than twice what its bytes take at the rate of a DGX-2
    unsure_s = step.parts_s["offload"] if step.layout.offload_optimizer else 0.0
    return low * step.step_time_s, high * step.step_time_s + unsure_s


def _attribute(step: StepCosts, rank: int, total: float) -> dict[str, float]:
    """Split the step on one rank; what is left is waiting for other stages."""
    busy = Seconds()
    recompute = 0.0
    for cost in step.of_rank(rank):
        for passes in (cost.forward, cost.backward, cost.weight):
            busy = busy.plus(passes, step.micro_batches)
        recompute += step.micro_batches * cost.recompute.compute
    tail = step.tails[rank]
    parts = {
        "compute": busy.compute - recompute,
        "recompute": recompute,
        "tensor_parallel": busy.tp,
        "context_parallel": busy.cp,
        "expert_parallel": busy.ep,
        "host": busy.host,
        "data_parallel": busy.dp + tail.gradients_s + tail.weights_s,
        "offload": busy.offload + tail.offload_s,
        "optimizer": tail.update_s,
    }
    return summing_to(total, parts)
