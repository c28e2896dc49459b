"""Layers to stages and recompute to layers for one layout: the partition problem, and its use."""

from dataclasses import dataclass, replace

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
from planner.memory.moments import chunk_passes, job_shape, moments
from planner.memory.states import state_bytes
from planner.memory.working import buffer_bytes, receive_bytes
from planner.schedule.kinds import V_SHAPED, kind_of, rank_of, schedule_name, stage_of
from planner.schedule.orders import order
from planner.schedule.passes import kept_moments
from planner.search.climb import Simulator, climb
from planner.search.partition import FloatArray, Partition, PartitionProblem, partition
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, estimate_step

EQUAL = "equal"
MOST_CUTS = 3  # times that memory the problem did not see is taken off its limit


def partition_problem(
    prices: Prices, layout: Layout, limit_bytes: float, least: bool = False
) -> PartitionProblem:
    """Return the prices of all layers and stages of ``layout`` under ``limit_bytes`` of device.

    Working memory is that of a rank that recomputes a layer, since a partition may ask for it;
    ``least``: what no partition can do without.
    """
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
    name = schedule_name(layout)
    table = stage_of(name, layout.pp, layout.vpp)  # [chunks, pp]
    at_work = {head: _working_bytes(prices, layout, head, least) for head in (False, True)}
    extra = [0.0] * len(ends)
    for rank, stage in enumerate(table[-1].tolist()):  # once on each rank, with its last chunk
        receives = receive_bytes(model, shape, software, layout, rank, micro_batches)
        # a V ends where it began: its first rank has the head
        extra[stage] = at_work[ends[stage].head] + receives
    if not job.lora_rank:
        extra[table[-1, 0]] += table_gradient_bytes(model, software, layout, ends[0])
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
        in_flight=_in_flight(prices, layout, least),
        limit_bytes=np.full(layout.pp, allocated_limit(limit_bytes, layout, software)),
        v_shaped=name in V_SHAPED,
    )


def _working_bytes(prices: Prices, layout: Layout, head: bool, least: bool) -> float:
    """Return buffers and the bytes at work of a rank in its fullest moment, or the least of them.

    All of them: with a layer of experts, if there is one, recomputed in full.
    """
    model, job = prices.model, prices.job
    moe = model.moe_layers > 0
    alone = [StageLayers(0, 0, False, head, int(not moe), int(moe))]
    if least:
        kinds = {model.is_moe_layer(layer) for layer in range(model.layers)}
        alone = [StageLayers(int(not k), int(k), False, head) for k in kinds]
        alone += [StageLayers(0, 0, False, head, int(not k), int(k)) for k in kinds]
    shape = job_shape(job, layout)
    return (min if least else max)(
        buffer_bytes(model, shape, job.software, one.has_experts)
        + max(moment.working for moment in moments(model, job, layout, one, 0))
        for one in alone
    )


def _in_flight(prices: Prices, layout: Layout, least: bool) -> FloatArray:
    """Return kept passes of each virtual stage when its rank may be fullest, ``[moments, S]``.

    ``least``: as ``peak_memory`` counts them, with the chunks of a rank taken together, once its
    gradients are there, too.
    """
    name, micro_batches = schedule_name(layout), layout.micro_batches(prices.job.global_batch)
    if least:
        ranks = rank_of(name, layout.pp, layout.vpp).tolist()
        most = [chunk_passes(layout, micro_batches, rank) for rank in ranks]
        if prices.job.software.lazy_gradients and layout.vpp == 1:
            most = [min(passes, micro_batches - 1) for passes in most]
        return np.array([most]) / layout.vpp
    passes = kept_moments(order(name, layout.pp, micro_batches, layout.vpp))
    in_flight = np.empty(passes.shape)
    in_flight[:, stage_of(name, layout.pp, layout.vpp).ravel()] = passes
    return in_flight


def end_s(prices: Prices, layout: Layout, end: StageLayers) -> float:
    """Return seconds of the embedding and head that a stage holds, of one micro-batch."""
    seconds = 0.0
    for present, price in ((end.embedding, prices.embedding), (end.head, prices.head)):
        if present:
            seconds += price(layout).forward.total + price(layout).backward.total
    return seconds


@dataclass(frozen=True, slots=True)
class Staged:
    """A layout with the best stages found, the step with equal ones, and who proved what."""

    step: StepEstimate
    equal: StepEstimate
    found: Partition | None
    solver: str


def improved(
    prices: Prices, step: StepEstimate, limit_bytes: float, target: Target, time_limit_s: float
) -> Staged:
    """Return ``step`` with better stages where any are found, and what the partition proved.

    The partition minimises ``(m - 1/v) max + sum / v``; the climb goes on from there under the
    simulator, which has the last word: an answer that is slower when simulated is dropped.
    """
    layout = step.layout
    # offloaded layouts keep equal stages: what they may recompute beside it is not a partition
    whole = layout.pp == 1 or layout.offload.fraction > 0
    if target.whole_recompute and any(step.split.recomputed or ()):
        return Staged(step, step, None, EQUAL)  # all layers recomputed: nothing is left to choose
    if whole or kind_of(schedule_name(layout)).pipelines > 1:
        return Staged(step, step, None, EQUAL)
    problem = partition_problem(prices, layout, limit_bytes)
    found, starts = None, {step.split: EQUAL}
    if partitioned(layout, prices.model.layers):
        found = partition(problem, time_limit_s)
        if found.layers:
            name = "dynamic programme" if layout.vpp == 1 else "HiGHS"
            starts.setdefault(Split(found.layers, _recomputed(found, target)), name)
    simulator, uniform = Simulator(prices, layout, step.split), target.uniform_recompute
    names = list(starts.values())
    best, solver = step, EQUAL
    for _ in range(MOST_CUTS):
        climbed = climb(problem, simulator, list(starts), uniform, time_limit_s)
        over = 0.0
        for other in dict.fromkeys((*starts, climbed)):
            size = peak_memory(prices.model, prices.job, layout, other).device
            over = size - limit_bytes  # of the last, what the climb found
            if over <= 0 and target.settable(other) == other:
                tried = estimate_step(prices, layout, other)
                if tried.step_time_s < best.step_time_s:
                    best, solver = tried, starts.get(other, f"{names[-1]} + climb")
        if over <= 0:
            break
        # the memory model sees more than the problem did: cut that off and climb again
        problem = replace(problem, limit_bytes=problem.limit_bytes - over)
        starts = {step.split: EQUAL}
    return Staged(best, step, found, solver)


def partitioned(layout: Layout, layers: int) -> bool:
    """Whether the partition knows the schedule, and every stage can have a layer."""
    return not layout.schedule and layout.pp * layout.vpp <= layers


def _recomputed(found: Partition, target: Target) -> tuple[int, ...]:
    """Return the recomputed layers of each stage as the target can set them."""
    if not target.uniform_recompute:
        return found.recompute_layers
    most = max(found.recompute_layers)
    return tuple(min(most, count) for count in found.layers)
