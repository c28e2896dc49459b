"""Copies between GPU, host and drives, and the optimizer on the host, as slices of a timeline."""

from collections.abc import Iterator

from planner.cost.layer import Prices
from planner.cost.offload import host_parts, host_update
from planner.layout.layout import Layout
from planner.layout.local import streams_gradients, trained_local
from planner.layout.stages import together
from planner.memory.moments import job_shape
from planner.memory.offload import moved_layers
from planner.simulate.offload import offload_rates
from planner.simulate.slices import CPU, FROM_HOST, FROM_SSD, TO_HOST, TO_SSD, Slice
from planner.simulate.step import StepCosts


def copies(
    prices: Prices, layout: Layout, step: StepCosts, passes: list[Slice], tails: list[Slice]
) -> Iterator[Slice]:
    """Yield what leaves the GPUs and comes back, and what the CPUs do meanwhile."""
    if layout.offload.fraction:
        yield from _activations(prices, layout, step, passes)
    if layout.offload_optimizer:
        for rank in range(layout.pp):
            ends = {piece.kind: piece for piece in tails if piece.rank == rank}
            window = ends["host offload"].start_s, ends["optimizer"].end_s
            mine = [piece for piece in passes if piece.rank == rank]
            yield from _optimizer(prices, layout, step, rank, mine, window)


def _activations(
    prices: Prices, layout: Layout, step: StepCosts, passes: list[Slice]
) -> Iterator[Slice]:
    """Yield the copies of activations out in each forward and back in each backward pass."""
    shape, software = job_shape(prices.job, layout), prices.job.software
    rates = offload_rates(layout.offload, prices.cluster)
    ssd = layout.offload.target == "ssd"
    streams = {"F": TO_SSD if ssd else TO_HOST, "B": FROM_SSD if ssd else FROM_HOST}
    speed = {"F": rates.store_bytes_per_s, "B": rates.load_bytes_per_s}
    moved = [
        sum(one.total_bytes for one in moved_layers(prices.model, shape, software, layout, stage))
        for stage in step.stages
    ]
    for piece in passes:
        size = moved[step.held[piece.rank][piece.chunk]] if piece.kind in streams else 0.0
        if size:
            end_s = min(piece.end_s, piece.start_s + size / speed[piece.kind])
            verb = "store" if piece.kind == "F" else "load"
            yield piece._replace(
                stream=streams[piece.kind], name=f"{verb} activations, {piece.name}",
                kind=verb, end_s=end_s,
            )  # fmt: skip


def _optimizer(
    prices: Prices,
    layout: Layout,
    step: StepCosts,
    rank: int,
    passes: list[Slice],
    window: tuple[float, float],
) -> Iterator[Slice]:
    """Yield gradients out, update and weights back of one rank.

    Tiles of them follow each other, so each part begins one tile after the one before. ``window``
    is from the end of gradient reduction to that of the GPU's own update; a delayed update runs
    behind the passes of the next step, so behind those of this one.
    """
    job, size = prices.job, layout.gpus // layout.pp
    cluster = prices.on(rank * size, size).cluster
    layers = together([step.stages[stage] for stage in step.held[rank]])
    local = trained_local(prices.model, job, layers, layout)
    parts = host_parts(local, layout, job, cluster)
    start_s, end_s = window
    streams = streams_gradients(layout, job.software)
    if streams:
        backward = [piece for piece in passes if piece.kind == "B"]
        longest_s = max(piece.end_s - piece.start_s for piece in backward)
        out_s = parts.out_s / len(step.held[rank])  # a chunk at a time
        for piece in backward:
            till = min(piece.start_s + out_s, piece.end_s)
            yield piece._replace(
                stream=TO_HOST, name=f"gradients, {piece.name}", kind="gradients", end_s=till
            )
        start_s += host_update(local, layout, job, cluster, longest_s, 0.0).gradients_s
    if layout.delayed_update:
        start_s, end_s = passes[0].start_s, max(piece.end_s for piece in passes)
    rows = [(TO_HOST, "gradients to the host", 0.0 if streams else parts.out_s)]
    rows += [(CPU, "optimizer on the host", parts.cpu_s), (FROM_HOST, "weights back", parts.back_s)]
    at = ended_s = start_s
    for stream, name, seconds in rows:
        if seconds:
            ended_s = max(at + seconds, ended_s + seconds / parts.tiles)
            yield Slice(rank, stream, name, name, at, min(ended_s, end_s))
            at += seconds / parts.tiles
