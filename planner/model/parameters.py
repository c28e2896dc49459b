"""Parameter counts of each part of a model, before any sharding.

Conventions follow the published checkpoints: the count of a whole model equals the one of
transformers' meta-device model (``tests/model/test_parameters.py`` compares them family by family).
"""

from dataclasses import dataclass

from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """Parameters of one transformer layer by the way parallelism splits them.

    ``attention`` and ``mlp`` matrices are split by tp; ``experts`` by ep and etp; ``replicated``
    (norms, router, latent down-projections) is whole on every tensor-parallel rank.
    """

    attention: int
    mlp: int
    experts: int
    replicated: int

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.attention + self.mlp + self.experts + self.replicated


def mlp_parameters(model: ModelSpec, inner: int) -> tuple[int, int]:
    """Parameters of an MLP of inner width ``inner``: (split by tp, replicated over tp).

    The bias of the second product is added after the sum over tp, so every rank keeps it whole.
    """
    matrices = 3 if model.gated_mlp else 2
    split = matrices * model.hidden * inner
    if not model.mlp_bias:
        return split, 0
    return split + inner * (matrices - 1), model.hidden


def expert_parameters(model: ModelSpec) -> int:
    """Parameters of one routed expert."""
    assert model.moe is not None
    matrices, inner = 3 if model.gated_mlp else 2, model.moe.ffn_hidden
    bias = inner * (matrices - 1) + model.hidden if model.moe.expert_bias else 0
    return matrices * model.hidden * inner + bias


def _attention(model: ModelSpec) -> tuple[int, int]:
    """Return (parameters split by tp, parameters replicated over tp) of one attention block."""
    hidden, heads = model.hidden, model.heads
    if model.mla is not None:
        return _latent_attention(model)
    query, key_value = heads * model.head_dim, model.kv_heads * model.head_dim
    split = hidden * (query + 2 * key_value) + query * hidden
    split += (query + 2 * key_value) if model.qkv_bias else 0
    split += heads if model.attention_sinks else 0
    replicated = hidden if model.attention_out_bias else 0
    replicated += 2 * model.head_dim if model.qk_norm else 0
    return split, replicated


def _latent_attention(model: ModelSpec) -> tuple[int, int]:
    mla = model.mla
    assert mla is not None
    hidden, heads = model.hidden, model.heads
    query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    split = heads * mla.v_head_dim * hidden
    split += mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    replicated = hidden * latent + mla.kv_lora_rank
    if mla.q_lora_rank:
        split += mla.q_lora_rank * query
        replicated += hidden * mla.q_lora_rank + mla.q_lora_rank
    else:
        split += hidden * query
    # of the five matrices only the two down-projections and the output may have a bias
    replicated += (latent + mla.q_lora_rank) if model.qkv_bias else 0
    replicated += hidden if model.attention_out_bias else 0
    return split, replicated


def layer_parameters(model: ModelSpec, moe_layer: bool) -> LayerParameters:
    """Return the parameters of one layer; ``moe_layer`` says whether it holds experts."""
    attention, replicated = _attention(model)
    norm = model.hidden * (2 if model.norm_bias else 1)
    replicated += 2 * norm
    if not moe_layer:
        mlp, bias = mlp_parameters(model, model.ffn_hidden)
        return LayerParameters(attention, mlp, 0, replicated + bias)
    moe = model.moe
    assert moe is not None
    replicated += moe.experts * model.hidden + (moe.experts if moe.router_bias else 0)
    shared, bias = mlp_parameters(model, moe.shared_ffn_hidden) if moe.shared_ffn_hidden else (0, 0)
    replicated += bias + (model.hidden if moe.shared_gate else 0)
    experts = moe.experts * expert_parameters(model)
    return LayerParameters(attention, shared, experts, replicated)


def embedding_parameters(model: ModelSpec) -> int:
    """Parameters of the token table and of a learned position table."""
    return (model.vocab + model.positions) * model.hidden


def final_norm_parameters(model: ModelSpec) -> int:
    """Parameters of the norm before the output matrix."""
    return model.hidden * (2 if model.norm_bias else 1)


def head_parameters(model: ModelSpec) -> int:
    """Parameters of the output matrix (0 when tied) and of the final norm."""
    matrix = 0 if model.tied_embeddings else model.vocab * model.hidden
    return matrix + final_norm_parameters(model)


def total_parameters(model: ModelSpec) -> int:
    """Parameters of the whole model, multi-token-prediction layers left out."""
    moe_layers = model.moe_layers
    layers = (model.layers - moe_layers) * layer_parameters(model, False).total
    if moe_layers:
        layers += moe_layers * layer_parameters(model, True).total
    return layers + embedding_parameters(model) + head_parameters(model)


def active_parameters(model: ModelSpec) -> int:
    """Parameters that one token passes through: top-k of the routed experts."""
    if model.moe is None:
        return total_parameters(model)
    idle = model.moe.experts - model.moe.top_k
    unused = model.moe_layers * idle * expert_parameters(model)
    return total_parameters(model) - unused
