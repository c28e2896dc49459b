"""One training step: stage times through the schedule, then gradients, optimizer and weights."""

from dataclasses import dataclass

import numpy as np

from planner.cost.collectives import send_recv_s
from planner.cost.data_parallel import ParameterShares, optimizer_s, shares, sync_s
from planner.cost.imbalance import slow_node_stall_s
from planner.cost.layer import INTERFERENCE, PassCost, Prices, Seconds
from planner.layout.layout import Layout
from planner.memory.estimate import (
    RankMemory,
    StageLayers,
    peak_memory,
    stage_layers,
)
from planner.memory.states import WEIGHT_BYTES, stage_local
from planner.model.flops import model_flops_per_token
from planner.simulate.pipeline import pipeline_time


LAYER_BUCKET = float("inf")  # fully sharded layers travel whole


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What one layout is expected to do. ``parts_s`` adds up to ``step_time_s``."""

    layout: Layout
    step_time_s: float
    parts_s: dict[str, float]
    memory: RankMemory
    mfu: float
    tokens_per_s_per_gpu: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """One (virtual) stage, one micro-batch."""

    forward: Seconds
    backward: Seconds
    recompute_s: float
    gather_s: float  # of the totals, weight gathering and gradient scattering not hidden

    @property
    def forward_s(self) -> float:
        """Seconds of the forward pass."""
        return self.forward.total

    @property
    def backward_s(self) -> float:
        """Seconds of the backward pass."""
        return self.backward.total


def _sharded_weights(
    cost: PassCost, prices: Prices, layout: Layout, moe_layer: bool
) -> tuple[float, float]:
    """Exposed seconds of gathering a layer's weights in (forward, backward) under ZeRO-3.

    The next layer's weights travel while this one computes: a layer costs the longer of the two.
    """
    if layout.shard.weights == 1 or layout.pp > 1:
        return 0.0, 0.0
    model, cluster, software = prices.model, prices.cluster, prices.job.software
    local = stage_local(model, layout, int(not moe_layer), int(moe_layer), False, False)
    parts = shares(local.dense, local.expert, layout, cluster)
    gather, _ = sync_s("all_gather", parts, WEIGHT_BYTES, LAYER_BUCKET, cluster)
    scatter, _ = sync_s("reduce_scatter", parts, software.reduce_bytes, LAYER_BUCKET, cluster)
    forward, backward = gather, gather + scatter

    def exposed(communication: float, compute: float) -> float:
        covered = min(communication, compute)
        return communication - covered + INTERFERENCE * covered

    if not software.overlap_param_gather:
        return forward, backward
    return exposed(forward, cost.forward.total), exposed(backward, cost.backward.total)


def stage_cost(prices: Prices, layout: Layout, stage: StageLayers) -> StageCost:
    """Add up the layers of one stage."""
    forward, backward, recompute, gather = Seconds(), Seconds(), 0.0, 0.0
    for count, moe_layer in ((stage.dense, False), (stage.moe, True)):
        if count:
            cost = prices.layer(layout, moe_layer)
            extra_forward, extra_backward = _sharded_weights(cost, prices, layout, moe_layer)
            forward = forward.plus(cost.forward, count)
            backward = backward.plus(cost.backward, count)
            recompute += count * cost.recompute_s
            gather += count * (extra_forward + extra_backward)
            forward = forward._replace(dp=forward.dp + count * extra_forward)
            backward = backward._replace(dp=backward.dp + count * extra_backward)
    for present, cost in (
        (stage.embedding, prices.embedding),
        (stage.head, prices.head),
    ):
        if present:
            forward = forward.plus(cost(layout).forward)
            backward = backward.plus(cost(layout).backward)
    return StageCost(forward, backward, recompute, gather)


def _hop_s(prices: Prices, layout: Layout) -> float:
    """Seconds to hand one micro-batch to the next stage."""
    if layout.pp == 1:
        return 0.0
    model, job = prices.model, prices.job
    tokens = layout.micro_batch * job.seq_len / layout.cp
    if layout.sequence_parallel:
        tokens /= layout.tp
    message = 2 * tokens * model.hidden
    return send_recv_s(message, layout.tp * layout.cp * layout.dp, prices.cluster)


def _rank_parameters(
    prices: Prices, layout: Layout, stages: tuple[StageLayers, ...], rank: int
) -> ParameterShares:
    dense = expert = 0.0
    for stage in stages[rank :: layout.pp]:
        local = stage_local(
            prices.model, layout, stage.dense, stage.moe, stage.embedding, stage.head
        )
        dense += local.dense
        expert += local.expert
    return shares(dense, expert, layout, prices.cluster)


def _gradient_tail_s(prices: Prices, layout: Layout, parts: ParameterShares, last_s: float) -> float:
    """Seconds of gradient reduction after the last backward pass, which took ``last_s``."""
    software = prices.job.software
    if layout.shard.weights > 1 and layout.pp == 1:
        return 0.0  # paid layer by layer
    kind = "reduce_scatter" if layout.shard.optimizer > 1 else "all_reduce"
    if layout.shard.optimizer > 1 and not software.reduce_scatter_gradients:
        kind = "all_reduce"
    total, last = sync_s(
        kind, parts, software.reduce_bytes, software.bucket_bytes, prices.cluster
    )
    if not software.overlap_grad_reduce:
        return total
    covered = min(total - last, last_s)
    return total - covered + INTERFERENCE * covered


def _weight_gather_s(
    prices: Prices, layout: Layout, parts: ParameterShares, first_s: float
) -> float:
    """Seconds of gathering updated weights that the first forward pass does not hide."""
    if layout.shard.optimizer == 1 or (layout.shard.weights > 1 and layout.pp == 1):
        return 0.0
    total, one = sync_s(
        "all_gather",
        parts,
        WEIGHT_BYTES,
        prices.job.software.gather_bucket_bytes,
        prices.cluster,
    )
    if not prices.job.software.overlap_param_gather:
        return total
    covered = min(total - one, first_s)
    return total - covered + INTERFERENCE * covered


def estimate_step(
    prices: Prices, layout: Layout, split: tuple[int, ...] | None = None
) -> StepEstimate:
    """Estimate one optimizer step of ``layout``; ``split`` overrides the layers of each stage."""
    job, cluster, model = prices.job, prices.cluster, prices.model
    micro_batches = layout.micro_batches(job.global_batch)
    stages = stage_layers(model, layout, split)
    costs = [stage_cost(prices, layout, stage) for stage in stages]
    hop = _hop_s(prices, layout)
    pipeline = pipeline_time(
        "1f1b" if layout.vpp == 1 else "interleaved_1f1b",
        layout.pp,
        layout.vpp,
        micro_batches,
        np.array([cost.forward_s for cost in costs]),
        np.array([cost.backward_s for cost in costs]),
        np.full(max(0, len(costs) - 1), hop),
        job.software.overlap_pipeline,
    )
    stall = slow_node_stall_s(job.software, layout, cluster, micro_batches)
    tails = []
    for rank in range(layout.pp):
        parts = _rank_parameters(prices, layout, stages, rank)
        mine = costs[rank :: layout.pp]
        gradient = _gradient_tail_s(prices, layout, parts, sum(c.backward_s for c in mine))
        weights = _weight_gather_s(prices, layout, parts, sum(c.forward_s for c in mine))
        update = optimizer_s(parts, layout, job.software, cluster)
        end = float(pipeline.last_backward_end_s[rank]) + stall
        tails.append((end + gradient + weights + update, gradient + weights, update, rank))
    total, data_parallel, update, slowest = max(tails)
    parts_s = _attribute(costs[slowest :: layout.pp], micro_batches, total, data_parallel, update)
    flops = model_flops_per_token(model, job.seq_len) * job.global_batch * job.seq_len
    peak = cluster.gpu.peak_flops.get("bf16") or cluster.gpu.peak_flops["fp16"]
    return StepEstimate(
        layout,
        total,
        parts_s,
        peak_memory(model, cluster, job, layout, split),
        flops / (total * layout.gpus * peak),
        job.global_batch * job.seq_len / (total * layout.gpus),
    )


def _attribute(
    costs: list[StageCost], micro_batches: int, total: float, data_parallel: float, update: float
) -> dict[str, float]:
    """Split the step on the rank that ends last; what is left is waiting for other stages."""
    busy = Seconds()
    recompute = 0.0
    for cost in costs:
        busy = busy.plus(cost.forward, micro_batches).plus(cost.backward, micro_batches)
        recompute += micro_batches * cost.recompute_s
    parts = {
        "compute": busy.compute - min(recompute, busy.compute),
        "recompute": min(recompute, busy.compute),
        "tensor_parallel": busy.tp,
        "context_parallel": busy.cp,
        "expert_parallel": busy.ep,
        "host": busy.host,
        "data_parallel": busy.dp + data_parallel,
        "optimizer": update,
    }
    parts["pipeline"] = total - sum(parts.values())
    return parts
