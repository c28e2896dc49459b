"""Bytes of weights, gradients and optimizer state on one rank.

Mixed-precision Adam: 2-byte weights, a main gradient of ``gradient_bytes`` (fp32 in Megatron-LM,
PTD-P section 5), 12 bytes of fp32 master weight, momentum and variance (ZeRO, section 3.1).
Each class is divided by its own group (DESIGN: ``shard = weights, gradients, optimizer``); experts
are replicated ``edp`` times, so only that group shares theirs (MoE Parallel Folding, 3.2).
"""

from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Layout
from planner.model.parameters import embedding_parameters, head_parameters, layer_parameters
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec

WEIGHT_BYTES = 2


@dataclass(frozen=True, slots=True)
class LocalParameters:
    """Parameters on one rank before any data-parallel sharding."""

    dense: float = 0.0
    expert: float = 0.0

    def plus(self, other: "LocalParameters", times: float = 1.0) -> "LocalParameters":
        """Return the sum with ``times`` of another part."""
        return LocalParameters(self.dense + times * other.dense, self.expert + times * other.expert)

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
    return LocalParameters(dense, whole.experts / (ep * etp))


def stage_local(
    model: ModelSpec, layout: Layout, dense: int, moe: int, embedding: bool, head: bool
) -> LocalParameters:
    """Return the parameters of a stage of ``dense`` and ``moe`` layers on one rank."""
    degrees = (layout.tp, layout.ep, layout.etp)
    local = LocalParameters()
    if dense:
        local = local.plus(layer_local(model, False, *degrees), dense)
    if moe:
        local = local.plus(layer_local(model, True, *degrees), moe)
    if embedding:
        local = local.plus(LocalParameters(embedding_parameters(model) / layout.tp))
    if head:
        matrix = head_parameters(model)
        if model.tied_embeddings and not embedding:  # the last stage needs its own copy
            matrix += model.vocab * model.hidden
        local = local.plus(LocalParameters(matrix / layout.tp))
    return local


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of the three tensor classes on one rank."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.gradients + self.optimizer


def state_bytes(local: LocalParameters, layout: Layout, software: SoftwareSpec) -> StateBytes:
    """Return the state of ``local`` parameters under the layout's sharding."""
    shard, edp = layout.shard, max(1, layout.edp)

    def divided(group: int) -> float:
        return local.dense / group + local.expert / min(group, edp)

    return StateBytes(
        WEIGHT_BYTES * divided(shard.weights),
        software.gradient_bytes * divided(shard.gradients),
        software.optimizer_bytes * divided(shard.optimizer),
    )
