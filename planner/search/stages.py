"""Layers to stages and recompute to layers for one layout: the partition problem, and its use."""

from dataclasses import replace

import numpy as np

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.local import LocalParameters, layer_local, layer_trained, stage_local
from planner.layout.stages import Split, StageLayers, stage_layers
from planner.memory.activations import layer_bytes
from planner.memory.estimate import (
    allocated_limit,
    peak_memory,
    table_gradient_bytes,
)
from planner.memory.moments import job_shape, moments
from planner.memory.states import state_bytes
from planner.memory.working import buffer_bytes, receive_bytes
from planner.schedule.kinds import schedule_name
from planner.schedule.orders import order
from planner.schedule.passes import kept_moments
from planner.search.partition import FloatArray, Partition, PartitionProblem, partition
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, estimate_step


def partition_problem(prices: Prices, layout: Layout, limit_bytes: float) -> PartitionProblem:
    """Return the prices of all layers and stages of ``layout`` under ``limit_bytes`` of device."""
    model, job = prices.model, prices.job
    kinds = [model.is_moe_layer(layer) for layer in range(model.layers)]
    other = Recompute.NONE if layout.recompute is Recompute.FULL else layout.recompute
    kept = replace(layout, recompute=other)
    none = {moe: prices.layer(kept, moe) for moe in set(kinds)}
    full = {moe: prices.layer(kept, moe, Recompute.FULL) for moe in set(kinds)}
    shape, software = job_shape(job, layout), job.software
    degrees = (layout.tp, layout.ep, layout.etp)

    def column(value: dict[bool, float]) -> FloatArray:
        return np.array([value[moe] for moe in kinds])

    def held(recompute: Recompute) -> dict[bool, float]:
        return {m: layer_bytes(model, shape, software, recompute, m) for m in none}

    static = {
        moe: state_bytes(
            layer_local(model, moe, *degrees), layout, software, job.optimizer,
            layer_trained(model, job, moe, layout) if job.lora_rank else None,
        ).total
        for moe in none
    }  # fmt: skip
    stages = stage_layers(model, layout.pp * layout.vpp)
    ends = [StageLayers(0, 0, stage.embedding, stage.head) for stage in stages]
    micro_batches = layout.micro_batches(job.global_batch)
    # the working bytes of the fullest moment, with a recomputed layer: the partition may need one
    # once on each rank, with its last chunk
    moe = any(kinds)
    alone = StageLayers(0, 0, dense_recomputed=int(not moe), moe_recomputed=int(moe))
    extra = [
        buffer_bytes(model, shape, software, moe)
        + receive_bytes(model, shape, software, layout, rank, micro_batches)
        + max(m.working for m in moments(model, job, layout, replace(alone, head=end.head), rank))
        for rank, end in enumerate(ends[-layout.pp :])
    ]
    if not job.lora_rank:
        extra[0] += table_gradient_bytes(model, software, layout, ends[0])
    extra = [0.0] * (len(ends) - layout.pp) + extra
    in_flight = kept_moments(order(schedule_name(layout), layout.pp, micro_batches, layout.vpp))
    return PartitionProblem(
        stages=layout.pp,
        chunks=layout.vpp,
        micro_batches=micro_batches,
        forward_s=column({m: cost.forward.total for m, cost in none.items()}),
        backward_s=column({m: cost.backward.total for m, cost in none.items()}),
        recompute_s=column({m: cost.recompute.total for m, cost in full.items()}),
        kept_bytes=column(held(other)),
        kept_recompute_bytes=column(held(Recompute.FULL)),
        static_bytes=column(static),
        stage_s=np.array([end_s(prices, layout, end) for end in ends]),
        stage_bytes=np.array(
            [
                state_bytes(
                    stage_local(model, end, *degrees, software),
                    layout,
                    software,
                    job.optimizer,
                    LocalParameters() if job.lora_rank else None,
                ).total
                + more
                for end, more in zip(ends, extra, strict=True)
            ]
        ),
        in_flight=in_flight.astype(float),
        limit_bytes=np.full(layout.pp, allocated_limit(limit_bytes, layout, software)),
    )


def end_s(prices: Prices, layout: Layout, end: StageLayers) -> float:
    """Return seconds of the embedding and head that a stage holds, of one micro-batch."""
    seconds = 0.0
    for present, price in ((end.embedding, prices.embedding), (end.head, prices.head)):
        if present:
            seconds += price(layout).forward.total + price(layout).backward.total
    return seconds


def improved(
    prices: Prices, step: StepEstimate, limit_bytes: float, target: Target, time_limit_s: float
) -> tuple[StepEstimate, Partition | None]:
    """Return ``step`` with better stages where the partition finds any, and what it proved.

    The partition minimises ``(m - 1/v) max + sum / v``; the simulator has the last word, so an
    answer that is slower when simulated is dropped.
    """
    layout = step.layout
    # the partition knows the usual schedules only, and no offload
    if layout.pp == 1 or layout.schedule or layout.offload.fraction:
        return step, None
    found = partition(partition_problem(prices, layout, limit_bytes), time_limit_s)
    if not found.feasible or not found.layers:
        return step, found
    recomputed = found.recompute_layers
    if target.uniform_recompute:
        most = max(recomputed)
        recomputed = tuple(min(most, count) for count in found.layers)
    split = Split(found.layers, recomputed)
    better = estimate_step(prices, layout, split)
    fits = peak_memory(prices.model, prices.job, layout, split).device <= limit_bytes
    return (better if fits and better.step_time_s < step.step_time_s else step), found
