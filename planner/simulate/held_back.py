"""Weight gradients held back: how many ``zb_2p`` has room for, and what a schedule keeps for it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.local import stage_local
from planner.layout.stages import Split, StageLayers, rank_layers
from planner.memory.activations import layer_bytes
from planner.memory.estimate import RankMemory, peak_memory, rank_memory, rank_timeline
from planner.memory.moments import job_shape, kept_bytes, moments
from planner.memory.states import state_bytes
from planner.model.operations import ACTIVATION_BYTES, Gemm
from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.passes import V_SHAPED
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

FloatArray = NDArray[np.float64]


def weight_delay(
    prices: Prices,
    layout: Layout,
    forward_s: FloatArray,
    backward_s: FloatArray,
    weight_s: FloatArray,
    hops_s: FloatArray,
) -> int:
    """Return how many weight gradients the last rank of ``zb_2p`` holds back.

    As many as fill the time from the first rank to the last and back, ``(p - 1) (F + B) / W`` on
    equal stages, at least those of ``zb_h2`` and at most what fits beside its one pass into the
    memory of ``2 p`` passes. All arrays ``[stages]`` seconds, hops one fewer.
    """
    there_and_back = forward_s[:-1].sum() + backward_s[:-1].sum() + 2 * hops_s.sum()
    wanted = round(there_and_back / weight_s[-1]) if weight_s[-1] else 0
    room = (2 * layout.pp - 1) / weight_share(prices, layout)
    return int(max(min(wanted, room), 2 * (layout.pp - 1)))


def weight_share(prices: Prices, layout: Layout) -> float:
    """Return what one layer keeps for its weight gradients, of what it keeps from its forward pass.

    A weight gradient multiplies the input of its layer by the gradient of its output.
    """
    model, job = prices.model, prices.job
    moe = model.is_moe_layer(model.layers - 1)
    kept = layer_bytes(model, job_shape(job, layout), job.software, layout.recompute, moe)
    operations, _ = prices.operations("moe" if moe else "dense", layout)
    products = [op for op in operations if isinstance(op, Gemm) and op.weight]
    return ACTIVATION_BYTES * sum(op.copies * op.m * (op.k + op.n) for op in products) / kept


def scheduled_memory(
    model: ModelSpec, job: JobSpec, layout: Layout, split: Split | None = None
) -> RankMemory:
    """Return the memory of the fullest pipeline rank under the layout's schedule.

    ``planner.memory`` counts 1F1B or its interleaved form; another schedule keeps more passes.
    """
    if not layout.schedule:
        return peak_memory(model, job, layout, split)
    ranks = [scheduled_rank(model, job, layout, rank, split) for rank in range(layout.pp)]
    return max(ranks, key=lambda memory: memory.device)


def scheduled_rank(
    model: ModelSpec, job: JobSpec, layout: Layout, rank: int, split: Split | None = None
) -> RankMemory:
    """Return the memory of pipeline rank ``rank`` under the layout's schedule.

    The first rank of a V holds the output matrix too; it is counted in full there, although tied
    embeddings share it.
    """
    if not layout.schedule:
        return rank_memory(model, job, layout, rank, split)
    count = layout.micro_batches(job.global_batch)
    usual, passes = (
        peak_chunk_passes(layout.pp, layout.vpp, count, rank, schedule=schedule)
        for schedule in ("", layout.schedule)
    )
    mine = rank_layers(model, layout.pp, layout.vpp, rank, split)
    more = (passes - usual) * kept_bytes(model, job, layout, mine).total
    timeline = [
        replace(memory, activations=memory.activations + more) if memory.activations else memory
        for memory in rank_timeline(model, job, layout, rank, split)
    ]
    memory = max(timeline, key=lambda moment: moment.allocated)
    if layout.schedule not in V_SHAPED or rank > 0 or layout.pp == 1:
        return memory
    head = StageLayers(0, 0, head=True)
    local = stage_local(model, head, layout.tp, layout.ep, layout.etp, job.software)
    states = state_bytes(local, layout, job.software)
    loss = max(moment.working for moment in moments(model, job, layout, head, rank))
    return replace(
        memory,
        weights=memory.weights + states.weights,
        gradients=memory.gradients + states.gradients,
        optimizer=memory.optimizer + states.optimizer,
        working=max(memory.working, loss),
    )
