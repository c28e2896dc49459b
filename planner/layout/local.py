"""Parameters that one rank holds, before any data-parallel sharding."""

from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Recompute
from planner.layout.stages import StageLayers
from planner.model.parameters import embedding_parameters, head_parameters, layer_parameters
from planner.spec.model import ModelSpec


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


@lru_cache(maxsize=16384)
def stage_local(
    model: ModelSpec, stage: StageLayers, tp: int, ep: int, etp: int
) -> LocalParameters:
    """Return the parameters of a stage (or of all stages of a rank) on one rank."""
    local = LocalParameters()
    for count, moe_layer, _ in stage.kinds(Recompute.NONE):
        local = local.plus(layer_local(model, moe_layer, tp, ep, etp), count)
    if stage.embedding:
        local = local.plus(LocalParameters(embedding_parameters(model) / tp))
    if stage.head:
        matrix = head_parameters(model)
        if model.tied_embeddings and not stage.embedding:  # the last stage needs its own copy
            matrix += model.vocab * model.hidden
        local = local.plus(LocalParameters(matrix / tp))
    return local
