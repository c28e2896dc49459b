"""Bytes that one layer keeps for its backward pass, for one micro-batch on one rank.

Sum of the saved tensors of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), written out so
that gated MLPs, grouped queries, fused attention and experts follow from the same lines. For the
paper's model it gives ``sbh (10 + 24/t + 5as/(ht))``, with sequence parallelism
``sbh (34/t + 5as/(ht))``, selective ``34 sbh/t``, full recompute ``2 sbh``.
"""

from functools import lru_cache

from planner.layout.layout import Recompute
from planner.model.operations import Shape
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec


def _attention_core_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, recompute: Recompute
) -> float:
    """Softmax output, dropout mask (1 byte) and output; fused attention keeps a row statistic."""
    heads = model.heads / shape.tp
    if software.flash_attention:
        return 4 * shape.tokens * heads
    if recompute is Recompute.SELECTIVE:
        return 0.0
    scores = shape.micro_batch * heads * shape.seq_len * shape.seq_len / shape.cp
    kept = 2 if software.fused_kernels else 6  # eager keeps the fp32 softmax and its 2-byte copy
    return (kept + (3 if software.dropout else 0)) * scores


def attention_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, recompute: Recompute
) -> float:
    """Return what the attention block of one layer keeps, its norm included."""
    hidden = model.hidden
    # the gathered input is kept whole unless only the shard is kept and gathered again
    regather = shape.sequence_parallel and software.regather_sequence
    inputs = shape.sharded_tokens if regather else shape.tokens
    kept = 2 * shape.sharded_tokens * hidden  # norm input
    if model.mla is None:
        kept += shape.input_bytes * inputs * hidden  # qkv input
        width = (model.heads + 2 * max(model.kv_heads, shape.tp)) * model.head_dim / shape.tp
        output = model.heads * model.head_dim / shape.tp
    else:
        mla = model.mla
        down = mla.kv_lora_rank + mla.qk_rope_head_dim + mla.q_lora_rank
        # every rank makes the latents of its shard; after their norm they are gathered
        kept += shape.sharded_tokens * (shape.input_bytes * hidden + 2 * down)
        kept += shape.input_bytes * inputs * down
        key_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        width = model.heads * (2 * key_dim + mla.v_head_dim) / shape.tp
        output = model.heads * mla.v_head_dim / shape.tp
    kept += 2 * shape.tokens * (width + output)  # q, k, v; output, also input of the projection
    if shape.input_bytes < 2:
        kept += shape.input_bytes * shape.tokens * output  # which keeps its own copy of it
    if shape.cp > 1 and software.context_exchange != "ring":
        # before and after the exchange (TE 2.8 and newer); of two chunks, and of both
        kept += 2 * shape.tokens * output
    kept += _attention_core_bytes(model, shape, software, recompute)
    if software.dropout:
        kept += shape.sharded_tokens * hidden
    if not software.fused_norm:  # fp32 copies inside an eager norm
        kept += 8 * shape.sharded_tokens * hidden
    return kept


def _mlp_bytes(
    model: ModelSpec, shape: Shape, rows: float, inner: float, software: SoftwareSpec
) -> float:
    """Input and output of the activation function; the eager gated one also keeps silu(gate)."""
    tensors = 2 if model.gated_mlp else 1
    if model.gated_mlp and not software.fused_activation:
        tensors += 1
    return (2 * tensors + shape.input_bytes) * rows * inner


def _dense_bytes(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> float:
    regather = shape.sequence_parallel and software.regather_sequence
    inputs = shape.sharded_tokens if regather else shape.tokens
    kept = shape.input_bytes * inputs * model.hidden
    kept += _mlp_bytes(model, shape, shape.tokens, model.ffn_hidden / shape.tp, software)
    return kept


def _moe_bytes(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> float:
    """Router scores, dispatched tokens, expert activations, expert outputs; shared experts."""
    moe = model.moe
    assert moe is not None
    local = shape.tokens / shape.tp
    routed = local * moe.top_k
    kept = 2 * local * model.hidden + 12 * local * moe.experts  # input; logits, scores, routing
    kept += shape.input_bytes * routed * shape.etp * model.hidden  # rows after the exchange
    kept += _mlp_bytes(model, shape, routed * shape.etp, moe.ffn_hidden / shape.etp, software)
    kept += 2 * routed * model.hidden  # expert outputs, for the gradient of their weights
    if moe.shared_ffn_hidden:
        if shape.sequence_parallel and shape.tp > 1 and not software.regather_sequence:
            kept += 2 * shape.tokens * model.hidden  # gathered for the shared experts alone
        kept += _mlp_bytes(model, shape, shape.tokens, moe.shared_ffn_hidden / shape.tp, software)
    return kept


@lru_cache(maxsize=64)
def _fused(software: SoftwareSpec) -> SoftwareSpec:
    """Return the stack without what eager element-wise kernels keep between each other."""
    fused = {"fused_norm": True, "fused_activation": True, "fused_kernels": True}
    return software.model_copy(update=fused)


@lru_cache(maxsize=65536)
def layer_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, recompute: Recompute, moe_layer: bool
) -> float:
    """Return the bytes one layer keeps from its forward to its backward pass."""
    if recompute is Recompute.FULL:  # the input of the layer
        return 2 * shape.sharded_tokens * model.hidden
    by_product = recompute is Recompute.SELECTIVE and software.selective_recomputes_products
    if by_product:
        software = _fused(software)
    kept = attention_bytes(model, shape, software, recompute)
    kept += 2 * shape.sharded_tokens * model.hidden  # input of the second norm
    if not software.fused_norm:
        kept += 8 * shape.sharded_tokens * model.hidden
    if software.dropout:
        kept += shape.sharded_tokens * model.hidden
    rest = _moe_bytes if moe_layer else _dense_bytes
    kept += rest(model, shape, software)
    return kept / 2 if by_product else kept  # every other product keeps its output
