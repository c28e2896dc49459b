"""The moments of a step at which a rank may be fullest, and what is alive at each.

The order of events of one rank, over which the peak is the maximum: weights are loaded; passes go
forward until the schedule's number of them is in flight; the loss; the backward pass, layer by
layer from the last, with what each layer works with; the optimizer step.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.memory.activations import layer_bytes
from planner.memory.offload import moved_bytes, moved_layers
from planner.memory.working import (
    gathered_bytes,
    head_gathered_bytes,
    layer_working_bytes,
    loss_working_bytes,
)
from planner.model.operations import Shape
from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.kinds import chunks_of
from planner.schedule.passes import Order, in_flight
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec

LOADED = "weights loaded"
IN_FLIGHT = "passes in flight"
LOSS = "loss"
LAYER = "backward of a layer"
AGAIN = "backward of a recomputed layer"
STEP = "optimizer step"


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment: whether gradients are there, bytes kept for backward passes, bytes at work."""

    name: str
    gradients: bool
    activations: float
    working: float


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that one pass of a micro-batch through one chunk of a rank keeps.

    Of these ``moved`` wait outside the GPU; a layer's backward pass loads what it gave away,
    ``loaded`` bytes or ``loaded_again`` of a recomputed one, and what the layer before it did.
    """

    plain: float
    again: float
    last_layer: float
    output: float  # of the embedding, where that is not freed when it has been sent
    moved: float = 0.0
    loaded: float = 0.0
    loaded_again: float = 0.0

    @property
    def total(self) -> float:
        """All layers of the chunk, wherever they are."""
        return self.plain + self.again + self.output

    @property
    def resident(self) -> float:
        """What stays on the GPU until the backward pass."""
        return self.total - self.moved


def job_shape(job: JobSpec, layout: Layout) -> Shape:
    """Return the shape that a layer's operations see under ``layout``."""
    return Shape(
        layout.micro_batch,
        job.seq_len,
        layout.tp,
        layout.cp,
        layout.ep,
        layout.etp,
        layout.sequence_parallel,
        job.input_bytes,
    )


def kept_bytes(model: ModelSpec, job: JobSpec, layout: Layout, mine: StageLayers) -> Kept:
    """Return what a pass keeps in the layers recomputed in full, and in the others."""
    shape, software, chunks = job_shape(job, layout), job.software, chunks_of(layout)
    keeps_output = mine.embedding and layout.pp > 1 and software.keeps_receive_buffers
    kept = _resident(model, software, shape, layout.recompute, chunks, keeps_output, mine)
    if not layout.offload.fraction:
        return kept
    moved = moved_layers(model, shape, software, layout, mine)
    away = moved_bytes(model, shape, software, layout, mine)
    loaded = [
        max((m.each_bytes for m in moved if (m.recompute is Recompute.FULL) is full), default=0.0)
        for full in (False, True)
    ]
    loaded = [min(size, away) for size in loaded]  # a stage of one layer keeps its input
    return replace(kept, moved=away, loaded=loaded[0], loaded_again=loaded[1])


@lru_cache(maxsize=16384)  # many layouts differ in what this does not depend on
def _resident(
    model: ModelSpec,
    software: SoftwareSpec,
    shape: Shape,
    recompute: Recompute,
    chunks: int,
    keeps_output: bool,
    mine: StageLayers,
) -> Kept:
    """Return what a pass keeps where nothing is moved away."""
    plain = again = last = 0.0
    for count, moe_layer, kind in mine.kinds(recompute):
        size = layer_bytes(model, shape, software, kind, moe_layer)
        if kind is Recompute.FULL:
            again += count * size
        else:
            plain += count * size
            last = size
    # torch keeps what each stage received and sent: one tensor more than layers
    output = 2 * shape.sharded_tokens * model.hidden if keeps_output else 0.0
    return Kept(plain / chunks, again / chunks, last, output / chunks)


def chunk_passes(layout: Layout, micro_batches: int, rank: int, custom: Order | None = None) -> int:
    """Return the most chunk passes in flight on pipeline rank ``rank``; of ``custom``, counted."""
    if custom is not None:
        return int(in_flight(custom)[rank])
    chunks = chunks_of(layout)
    return peak_chunk_passes(layout.pp, chunks, micro_batches, rank, schedule=layout.schedule)


def offloaded_bytes(
    model: ModelSpec, job: JobSpec, layout: Layout, mine: StageLayers, passes: int
) -> float:
    """Return what ``passes`` in flight on one pipeline rank have given away."""
    if not layout.offload.fraction:
        return 0.0
    return passes * kept_bytes(model, job, layout, mine).moved


def _passes(layout: Layout, micro_batches: int, most: int, lazy: bool) -> list[tuple[bool, int]]:
    """Return (gradients are there, chunk passes in flight) at the start of a backward pass.

    Gradients that the backward pass itself makes are missing in the first one, when ``most`` passes
    are in flight; one fewer is left for the next.
    """
    chunks = chunks_of(layout)
    if not lazy:
        return [(True, most)]
    if micro_batches == 1 and chunks == 1:
        return [(False, most)]
    later = min(most, micro_batches - 1) if chunks == 1 else most
    return [(False, most), (True, later)]


def _loss_follows(layout: Layout, mine: StageLayers) -> bool:
    """Whether every pass of the rank ends in the loss, so that its last layer never leaves."""
    return mine.head and chunks_of(layout) == 1


def moments(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    mine: StageLayers,
    rank: int,
    custom: Order | None = None,
) -> list[Moment]:
    """Return every moment at which pipeline rank ``rank``, which holds ``mine``, may be fullest.

    ``custom`` replaces the order of the layout's schedule.
    """
    kept = kept_bytes(model, job, layout, mine)
    micro_batches = layout.micro_batches(job.global_batch)
    lazy = job.software.lazy_gradients
    found = [Moment(LOADED, not lazy, 0.0, 0.0)]
    most = chunk_passes(layout, micro_batches, rank, custom)
    for gradients, passes in _passes(layout, micro_batches, most, lazy):
        found += moments_of(model, job, layout, mine, gradients, passes)
    if lazy and micro_batches == 1:  # gradients are whole only when activations are gone
        layers = [moment.working for moment in found if moment.name in (LAYER, AGAIN)]
        found.append(Moment(LAYER, True, kept.last_layer, max(layers, default=0.0)))
    return found


def moments_of(
    model: ModelSpec, job: JobSpec, layout: Layout, mine: StageLayers, gradients: bool, passes: int
) -> list[Moment]:
    """Return the moments of a backward pass: ``passes`` are in flight before it, itself included.

    The first is the moment at which it begins; ``gradients`` says whether those are there by then.
    """
    kept = kept_bytes(model, job, layout, mine)
    others = (passes - 1) * kept.resident
    if passes > 1 and not _loss_follows(layout, mine):  # its last store is under way
        others += kept.loaded
    first = gradients or not job.software.lazy_gradients
    found = [Moment(IN_FLIGHT, gradients, others + kept.resident, 0.0)]
    for name, own, working in _backward(model, job, layout, mine, kept, first):
        found.append(Moment(name, gradients, others + own, working))
    return found


@lru_cache(maxsize=16384)
def _backward(
    model: ModelSpec, job: JobSpec, layout: Layout, mine: StageLayers, kept: Kept, repeated: bool
) -> list[tuple[str, float, float]]:
    """Return (moment, bytes left of the pass, bytes at work) along the backward pass of a chunk.

    Layers recomputed in full are the first of their stage, so their turn comes when the others have
    given up what they kept. ``repeated``: an earlier micro-batch has been reduced.
    """
    shape, software = job_shape(job, layout), job.software
    expert = mine.has_experts
    working = layer_working_bytes(model, shape, software, expert)
    weights, reduced = gathered_bytes(model, shape, software, layout, expert)
    found = []
    if mine.head:
        table, waiting = head_gathered_bytes(model, shape, software, layout)
        loss = loss_working_bytes(model, shape, software) + table + waiting * repeated
        found.append((LOSS, kept.resident, loss))
    if kept.plain:
        # its own tensors, which never left in the layer before the loss, and the next layer's
        ends = _loss_follows(layout, mine)
        first = min(kept.moved, (1 if ends else 2) * kept.loaded)
        second = min(kept.moved, 2 * kept.loaded)
        given_up = kept.last_layer - (0.0 if ends else kept.loaded)
        selective = layer_bytes(model, shape, software, Recompute.NONE, expert) - kept.last_layer
        work = working + weights + max(0.0, selective)
        found.append((LAYER, kept.resident + first, work))
        # the layer after it has been reduced; what it kept is free
        found.append((LAYER, kept.resident - given_up + second, work + reduced))
    if kept.again:
        whole = layer_bytes(model, shape, software, Recompute.NONE, expert)
        own = layer_bytes(model, shape, software, Recompute.FULL, expert)
        work = working + weights + reduced + whole - own  # its input is kept already
        away = layout.offload.fraction * kept.again
        loaded = min(away, 2 * kept.loaded_again)
        found.append((AGAIN, kept.again + kept.output - away + loaded, work))
    return found
