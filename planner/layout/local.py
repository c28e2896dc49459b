"""Parameters that one rank holds, before any data-parallel sharding."""

from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.model.adapters import adapter_parameters
from planner.model.matrices import dense_matrix_parameters
from planner.model.parameters import final_norm_parameters, layer_parameters
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class LocalParameters:
    """Parameters on one rank before any data-parallel sharding.

    ``matrices``: those of ``dense`` that are weight matrices of layers; all of ``expert`` are.
    """

    dense: float = 0.0
    expert: float = 0.0
    matrices: float = 0.0

    def plus(self, other: "LocalParameters", times: float = 1.0) -> "LocalParameters":
        """Return the sum with ``times`` of another part."""
        return LocalParameters(
            self.dense + times * other.dense,
            self.expert + times * other.expert,
            self.matrices + times * other.matrices,
        )

    @property
    def total(self) -> float:
        """Both kinds."""
        return self.dense + self.expert


@lru_cache(maxsize=4096)
def layer_local(model: ModelSpec, moe_layer: bool, tp: int, ep: int, etp: int) -> LocalParameters:
    """Return the parameters of one layer on one rank."""
    whole = layer_parameters(model, moe_layer)
    # a key/value head cannot be split: with more ranks than heads each rank keeps a copy of one
    copies = max(1, tp // model.kv_heads)
    key_value = 2 * model.kv_heads * model.head_dim * model.hidden if model.mla is None else 0
    attention = whole.attention + (copies - 1) * key_value
    dense = (attention + whole.mlp) / tp + whole.replicated
    # norms and biases, as if every rank kept all of them
    vectors = whole.total - whole.experts - dense_matrix_parameters(model, moe_layer)
    return LocalParameters(dense, whole.experts / (ep * etp), dense - vectors)


def padded_vocab(model: ModelSpec, tp: int, multiple: int) -> int:
    """Return the rows of the token table: a multiple of ``multiple * tp``.

    Megatron pads to 128 per tensor-parallel rank (``--make-vocab-size-divisible-by``).
    """
    each = multiple * tp
    return -(-model.vocab // each) * each


@lru_cache(maxsize=16384)
def stage_local(
    model: ModelSpec,
    stage: StageLayers,
    tp: int,
    ep: int,
    etp: int,
    software: SoftwareSpec = SoftwareSpec(),
) -> LocalParameters:
    """Return the parameters of a stage (or of all stages of a rank) on one rank."""
    local = LocalParameters()
    for count, moe_layer, _ in stage.kinds(Recompute.NONE):
        local = local.plus(layer_local(model, moe_layer, tp, ep, etp), count)
    table = padded_vocab(model, tp, software.vocab_multiple) * model.hidden / tp
    positions = model.positions * model.hidden  # whole on every rank
    if stage.embedding:
        local = local.plus(LocalParameters(table + positions))
    if stage.head:
        # tied: a last stage of its own needs a copy of the token table
        own = not model.tied_embeddings or not stage.embedding
        copied = positions if own and software.tied_stage_keeps_positions else 0
        local = local.plus(LocalParameters(final_norm_parameters(model) + own * table + copied))
    return local


def layer_trained(
    model: ModelSpec, job: JobSpec, moe_layer: bool, layout: Layout
) -> LocalParameters:
    """Return the parameters of one layer on one rank that have gradients: all, or adapters."""
    if not job.lora_rank:
        return layer_local(model, moe_layer, layout.tp, layout.ep, layout.etp)
    dense, expert = adapter_parameters(model, job.lora_rank, job.lora_targets, moe_layer)
    split = dense / layout.tp
    return LocalParameters(split, expert / (layout.ep * layout.etp), split)


def trained_local(
    model: ModelSpec, job: JobSpec, stage: StageLayers, layout: Layout
) -> LocalParameters:
    """Return the parameters of a stage on one rank that have gradients: all, or adapters."""
    if not job.lora_rank:
        return stage_local(model, stage, layout.tp, layout.ep, layout.etp, job.software)
    local = LocalParameters()
    for count, moe_layer, _ in stage.kinds(Recompute.NONE):
        local = local.plus(layer_trained(model, job, moe_layer, layout), count)
    return local


def sharded_parameters(local: LocalParameters, layout: Layout) -> float:
    """Return the parameters whose optimizer state this rank holds."""
    return sum(sharded_by_kind(local, layout))


def sharded_by_kind(local: LocalParameters, layout: Layout) -> tuple[float, float]:
    """Return the same apart: (weight matrices of layers, all others)."""
    shard = layout.shard.optimizer
    experts = local.expert / min(shard, max(1, layout.edp))
    return local.matrices / shard + experts, (local.dense - local.matrices) / shard


def streams_gradients(layout: Layout, software: SoftwareSpec) -> bool:
    """Whether gradients go to the host in each backward pass and never gather on the GPU.

    They must be reduced there and then: nobody shares them, or each rank has its own part.
    """
    if not layout.offload_optimizer or layout.pp > 1 or not software.streams_gradients:
        return False
    return layout.dp * layout.cp == 1 or layout.shard.gradients > 1
