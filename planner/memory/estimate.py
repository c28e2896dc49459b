"""Peak bytes of each pipeline rank, by component."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Layout
from planner.layout.local import sharded_parameters, stage_local, streams_gradients, trained_local
from planner.layout.stages import Split, StageLayers, rank_layers, stage_layers, together
from planner.memory.moments import (
    LOADED,
    STEP,
    Moment,
    chunk_passes,
    job_shape,
    moments,
    offloaded_bytes,
)
from planner.memory.states import state_bytes
from planner.memory.working import buffer_bytes, receive_bytes, step_working_bytes
from planner.schedule.kinds import chunks_of, stage_of
from planner.schedule.passes import Order
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.units import MIB

# NCCL's buffers of each communicator (340-400 MiB measured); not in torch's counters.
COMMUNICATOR_BYTES = 370 * MIB


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on one pipeline rank at the peak of a step.

    ``buffers`` stay for the whole step; ``activations`` are kept for backward passes to come;
    ``host`` bytes lie in the memory of the node.
    ``working`` is alive only at the ``moment`` of the peak; ``outside`` is context and
    communicators, which torch does not count; ``reserve_share`` of what is allocated is what torch
    reserves beyond it; ``spread`` is what measured runs of the software reserve, as shares of the
    estimate (low, high). ``offloaded`` activations are in host memory or on drives, at most.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    working: float
    outside: float
    moment: str
    reserve_share: float
    spread: tuple[float, float] = (1.0, 1.0)
    host: float = 0.0
    offloaded: float = 0.0

    @property
    def states(self) -> float:
        """Weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def allocated(self) -> float:
        """What ``torch.cuda.max_memory_allocated`` shows."""
        return self.states + self.buffers + self.activations + self.working

    @property
    def reserved(self) -> float:
        """What torch takes from the driver."""
        return self.allocated * (1 + self.reserve_share)

    @property
    def device(self) -> float:
        """What the driver (nvidia-smi) shows: the number that must fit."""
        return self.reserved + self.outside


def outside_bytes(layout: Layout, software: SoftwareSpec) -> float:
    """Return what the CUDA context and one communicator for each kind of group take."""
    degrees = (layout.tp, layout.cp, layout.pp, layout.dp, layout.ep)
    return software.context_bytes + COMMUNICATOR_BYTES * sum(degree > 1 for degree in degrees)


def allocated_limit(device_bytes: float, layout: Layout, software: SoftwareSpec) -> float:
    """Return what torch may allocate for the driver to show ``device_bytes``."""
    return (device_bytes - outside_bytes(layout, software)) / (1 + software.reserve_share)


def table_gradient_bytes(
    model: ModelSpec, software: SoftwareSpec, layout: Layout, mine: StageLayers
) -> float:
    """Return what the gradient of an embedding takes beyond the rank's own rows of it."""
    if not (software.whole_table_gradient and mine.embedding) or layout.shard.gradients > 1:
        return 0.0
    if streams_gradients(layout, software):
        return 0.0
    return software.gradient_bytes * model.vocab * model.hidden * (1 - 1 / layout.tp)


def held_layers(
    model: ModelSpec,
    layout: Layout,
    rank: int,
    split: Split | None = None,
    custom: Order | None = None,
) -> StageLayers:
    """Return all layers that pipeline rank ``rank`` holds under the layout's schedule.

    ``custom`` replaces the order of the layout's schedule.
    """
    if custom is not None:
        stages = stage_layers(model, layout.pp * layout.vpp, split)
        return together([stages[stage] for stage in custom.stage[:, rank]])
    if not layout.schedule:
        return rank_layers(model, layout.pp, layout.vpp, rank, split)
    chunks = chunks_of(layout)
    stages = stage_layers(model, layout.pp * layout.vpp, split) * (chunks // layout.vpp)
    return together(
        [stages[stage] for stage in stage_of(layout.schedule, layout.pp, chunks)[:, rank]]
    )


def rank_timeline(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    rank: int,
    split: Split | None = None,
    given: Sequence[Moment] | None = None,
    custom: Order | None = None,
) -> tuple[RankMemory, ...]:
    """Return pipeline rank ``rank`` (0 first) at every moment of a step when it may be fullest.

    Those are the moments of the schedule unless ``given``; the optimizer step comes last.
    ``custom`` replaces the order of the layout's schedule.
    """
    mine = held_layers(model, layout, rank, split, custom)
    shape, software = job_shape(job, layout), job.software
    local = stage_local(model, mine, layout.tp, layout.ep, layout.etp, software)
    adapters = trained_local(model, job, mine, layout) if job.lora_rank else None
    states = state_bytes(local, layout, software, job.optimizer, adapters)
    trained, gradients = adapters or local, states.gradients
    if adapters is None:
        gradients += table_gradient_bytes(model, software, layout, mine)
    second = software.backward_gradient_bytes * trained.total
    buffers = buffer_bytes(model, shape, software, mine.has_experts)
    micro_batches = layout.micro_batches(job.global_batch)
    buffers += receive_bytes(model, shape, software, layout, rank, micro_batches)
    outside = outside_bytes(layout, software)
    passes = chunk_passes(layout, micro_batches, rank, custom)
    offloaded = offloaded_bytes(model, job, layout, mine, passes)
    timeline = [
        RankMemory(
            states.weights,
            (gradients if moment.gradients else 0.0) + second * (moment.name != LOADED),
            states.optimizer,
            buffers,
            moment.activations,
            moment.working,
            outside,
            moment.name,
            software.reserve_share,
            software.memory_spread,
            states.host,
            offloaded,
        )
        for moment in (moments(model, job, layout, mine, rank, custom) if given is None else given)
    ]
    # the sharded fp32 weight is updated; what was gathered of it is free
    weights = 0.0 if software.sharded_master and adapters is None else states.weights
    on_gpu = (1 - layout.offload_optimizer) * sharded_parameters(trained, layout)
    working = step_working_bytes(on_gpu, software)
    step = RankMemory(
        weights, gradients, states.optimizer, buffers, 0.0, working, outside, STEP,
        software.reserve_share, software.memory_spread, states.host, offloaded,
    )  # fmt: skip
    return (*timeline, step)


def rank_memory(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    rank: int,
    split: Split | None = None,
    custom: Order | None = None,
) -> RankMemory:
    """Return the peak of pipeline rank ``rank`` (0 first): the fullest moment of its step."""
    timeline = rank_timeline(model, job, layout, rank, split, custom=custom)
    return max(timeline, key=lambda memory: memory.allocated)


def fullest_moments(timeline: tuple[RankMemory, ...]) -> tuple[RankMemory, ...]:
    """Return the fullest of the moments of each name, in the order of ``rank_timeline``."""
    found: dict[str, RankMemory] = {}
    for memory in timeline:
        known = found.setdefault(memory.moment, memory)
        if memory.allocated > known.allocated:
            found[memory.moment] = memory
    return tuple(found.values())


@lru_cache(maxsize=4096)
def first_alike(model: ModelSpec, pp: int, vpp: int) -> tuple[int, ...]:
    """Return the first of all pipeline ranks that hold the same layers in equal stages.

    Some stages have a layer more than others, some models begin with layers without experts.
    """
    stages = stage_layers(model, pp * vpp)
    first: dict[tuple[StageLayers, ...], int] = {}
    for rank in range(pp):
        first.setdefault(stages[rank::pp], rank)
    return tuple(first.values())


def peak_memory(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None = None,
    custom: Order | None = None,
) -> RankMemory:
    """Return the memory of the fullest pipeline rank.

    Of ranks that hold the same layers that is the first (property test), where stages are equal and
    the order is not your own (``custom``).
    """
    few = split is None and layout.pp > 4 and not layout.schedule and custom is None
    ranks = first_alike(model, layout.pp, layout.vpp) if few else range(layout.pp)
    return max(
        (rank_memory(model, job, layout, rank, split, custom) for rank in ranks),
        key=lambda memory: memory.device,
    )
