"""Peak bytes of each pipeline rank, by component."""

from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Layout, Recompute
from planner.layout.local import stage_local
from planner.layout.stages import Split, StageLayers, rank_layers
from planner.memory.activations import head_bytes, layer_bytes, scores_transient_bytes
from planner.memory.states import WEIGHT_BYTES, state_bytes
from planner.model.operations import Shape
from planner.model.parameters import layer_parameters
from planner.schedule.in_flight import peak_chunk_passes
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.units import MIB

# CUDA context and cuBLAS workspace; NCCL's buffers of each communicator (hardware tables, "memory":
# 340-400 MiB measured). Neither is in torch's counters.
CONTEXT_BYTES = 500 * MIB
COMMUNICATOR_BYTES = 370 * MIB
# What torch reserves beyond what it has allocated at the peak: segments of 2 and 20 MiB, split
# blocks that no request fits (pytorch c10/cuda/CUDACachingAllocator).
FRAGMENTATION = 0.04


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on one pipeline rank at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float
    outside: float  # context and communicators, which torch does not count

    @property
    def allocated(self) -> float:
        """What ``torch.cuda.max_memory_allocated`` shows."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.activations + self.transient

    @property
    def reserved(self) -> float:
        """What torch takes from the driver."""
        return self.allocated * (1 + FRAGMENTATION)

    @property
    def device(self) -> float:
        """What the driver (nvidia-smi) shows: the number that must fit."""
        return self.reserved + self.outside


def outside_bytes(layout: Layout) -> float:
    """Return what the CUDA context and one communicator for each kind of group take."""
    degrees = (layout.tp, layout.cp, layout.pp, layout.dp, layout.ep)
    return CONTEXT_BYTES + COMMUNICATOR_BYTES * sum(degree > 1 for degree in degrees)


def allocated_limit(device_bytes: float, layout: Layout) -> float:
    """Return what torch may allocate for the driver to show ``device_bytes``."""
    return (device_bytes - outside_bytes(layout)) / (1 + FRAGMENTATION)


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
    )


@lru_cache(maxsize=65536)
def transient_bytes(
    model: ModelSpec,
    shape: Shape,
    software: SoftwareSpec,
    recompute: Recompute,
    stage: StageLayers,
    gathers_weights: bool,
) -> float:
    """Bytes that live for a part of the step: one recomputed layer, logits, gathered weights."""
    moe_layer = stage.moe + stage.moe_recomputed > 0
    again = stage.dense_recomputed + stage.moe_recomputed > 0
    if recompute is Recompute.FULL or again:
        working = layer_bytes(model, shape, software, Recompute.NONE, moe_layer)
    else:  # the layer at work: its gathered input and that one's gradient, the widest gradient
        widest = 2 * model.ffn_hidden if model.gated_mlp else model.ffn_hidden
        working = 2 * shape.tokens * (2 * model.hidden + max(widest / shape.tp, model.hidden))
    working += scores_transient_bytes(model, shape, software)
    if stage.head:
        working = max(working, head_bytes(model, shape, software))
    if gathers_weights:  # two layers gathered, and one full gradient
        whole = layer_parameters(model, moe_layer)
        experts = whole.experts / (shape.ep * shape.etp)
        gathered = (whole.total - whole.experts) / shape.tp + experts
        working += (2 * WEIGHT_BYTES + software.reduce_bytes) * gathered
    return working


def rank_memory(
    model: ModelSpec,
    job: JobSpec,
    layout: Layout,
    rank: int,
    split: Split | None = None,
) -> RankMemory:
    """Return the peak of pipeline rank ``rank`` (0 first)."""
    mine = rank_layers(model, layout.pp, layout.vpp, rank, split)
    shape, software = job_shape(job, layout), job.software
    local = stage_local(model, mine, layout.tp, layout.ep, layout.etp, software)
    states = state_bytes(local, layout, software)
    held = 0.0  # activations of one micro-batch through all chunks of this rank
    for count, moe_layer, recompute in mine.kinds(layout.recompute):
        held += count * layer_bytes(model, shape, software, recompute, moe_layer)
    passes = peak_chunk_passes(layout.pp, layout.vpp, layout.micro_batches(job.global_batch), rank)
    transient = transient_bytes(
        model, shape, software, layout.recompute, mine, layout.shard.weights > 1
    )
    return RankMemory(
        states.weights,
        states.gradients,
        states.optimizer,
        held * passes / layout.vpp,
        transient,
        outside_bytes(layout),
    )


def peak_memory(
    model: ModelSpec, job: JobSpec, layout: Layout, split: Split | None = None
) -> RankMemory:
    """Return the memory of the fullest pipeline rank."""
    ranks = range(layout.pp) if layout.pp <= 4 else (0, 1, layout.pp - 1)
    return max(
        (rank_memory(model, job, layout, rank, split) for rank in ranks),
        key=lambda memory: memory.device,
    )
