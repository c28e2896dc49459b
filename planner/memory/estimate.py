"""Peak bytes of each pipeline rank, by component."""

from dataclasses import dataclass

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import split_layers
from planner.memory.activations import head_bytes, layer_bytes
from planner.memory.states import LocalParameters, StateBytes, stage_local, state_bytes
from planner.model.operations import Shape
from planner.model.parameters import layer_parameters
from planner.schedule.in_flight import peak_chunk_passes
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import MIB

# CUDA context, cuBLAS workspace and NCCL's own buffers: not in torch's counters.
# 340-400 MiB of NCCL buffers measured (hardware tables, "memory"); context about 500 MiB.
CONTEXT_BYTES = 900 * MIB
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
        return self.reserved + CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class StageLayers:
    """Layers of one (virtual) stage."""

    dense: int
    moe: int
    embedding: bool
    head: bool


def stage_layers(
    model: ModelSpec, layout: Layout, split: tuple[int, ...] | None = None
) -> tuple[StageLayers, ...]:
    """Return the layers of each of the ``pp * vpp`` stages, in pipeline order."""
    chunks = layout.pp * layout.vpp
    counts = split or split_layers(model.layers, chunks)
    stages, first = [], 0
    for index, count in enumerate(counts):
        moe = 0
        if model.moe is not None:
            moe = sum(model.is_moe_layer(layer) for layer in range(first, first + count))
        stages.append(StageLayers(count - moe, moe, index == 0, index == chunks - 1))
        first += count
    return tuple(stages)


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


def _transient_bytes(
    model: ModelSpec, job: JobSpec, layout: Layout, stages: list[StageLayers]
) -> float:
    """Bytes that live for a part of the step: one recomputed layer, logits, gathered weights."""
    shape, software = job_shape(job, layout), job.software
    moe_layer = any(stage.moe for stage in stages)
    working = 0.0
    if layout.recompute is Recompute.FULL:
        working = layer_bytes(model, shape, software, Recompute.NONE, moe_layer)
    else:  # gradients of the layer at work: the widest tensor twice
        working = 4 * shape.tokens * max(model.ffn_hidden / shape.tp, model.hidden)
    if any(stage.head for stage in stages):
        working = max(working, head_bytes(model, shape, software))
    if layout.shard.weights > 1:  # two layers gathered, and one full gradient
        whole = layer_parameters(model, moe_layer)
        experts = whole.experts / (layout.ep * layout.etp)
        gathered = (whole.total - whole.experts) / layout.tp + experts
        working += (2 * 2 + software.reduce_bytes) * gathered
    return working


def rank_memory(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    rank: int,
    split: tuple[int, ...] | None = None,
) -> RankMemory:
    """Return the peak of pipeline rank ``rank`` (0 first)."""
    all_stages = stage_layers(model, layout, split)
    mine = [all_stages[rank + chunk * layout.pp] for chunk in range(layout.vpp)]
    local = LocalParameters()
    for stage in mine:
        local = local.plus(
            stage_local(model, layout, stage.dense, stage.moe, stage.embedding, stage.head)
        )
    states = state_bytes(local, layout, job.software)
    shape, software = job_shape(job, layout), job.software
    kinds = (layout.recompute, False), (layout.recompute, True)
    dense_bytes, moe_bytes = (
        layer_bytes(model, shape, software, recompute, moe) if moe is False or model.moe else 0.0
        for recompute, moe in kinds
    )
    per_pass = sum(stage.dense * dense_bytes + stage.moe * moe_bytes for stage in mine) / len(mine)
    passes = peak_chunk_passes(
        layout.pp, layout.vpp, layout.micro_batches(job.global_batch), rank
    )
    return RankMemory(
        states.weights,
        states.gradients,
        states.optimizer,
        passes * per_pass,
        _transient_bytes(model, job, layout, mine),
    )


def peak_memory(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: tuple[int, ...] | None = None,
) -> RankMemory:
    """Return the memory of the fullest pipeline rank."""
    ranks = range(layout.pp) if layout.pp <= 4 else (0, 1, layout.pp - 1)
    return max(
        (rank_memory(model, cluster, job, layout, rank, split) for rank in ranks),
        key=lambda memory: memory.device,
    )


__all__ = ["RankMemory", "StageLayers", "StateBytes", "peak_memory", "rank_memory", "stage_layers"]
