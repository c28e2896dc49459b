"""Model FLOPs: the one definition behind MFU and HFU in this package.

6 FLOPs per token and matrix parameter (forward 2, backward 4), output matrix included, input
embedding not; attention scores and context, causal counted half: ``6 s q_dim`` per token and layer
at full length. Recomputed work is not counted in model FLOPs (MFU) and is in hardware FLOPs (HFU).
Of the routed experts only the ``top_k`` that a token visits count.
"""

from planner.model.operations import Attention, Gemm, Operation, attention_span, is_attention
from planner.model.parameters import active_parameters
from planner.spec.model import ModelSpec


def attention_flops_per_token(model: ModelSpec, seq_len: int) -> float:
    """Forward FLOPs of scores and context of all layers for one token, causal counted half."""
    key_dim = value_dim = model.head_dim
    if model.mla is not None:
        key_dim = model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim
        value_dim = model.mla.v_head_dim
    span = attention_span(model, seq_len)
    return model.layers * 2 * span * model.heads * (key_dim + value_dim)


def model_flops_per_token(model: ModelSpec, seq_len: int, frozen: bool = False) -> float:
    """FLOPs of one token in forward and backward, without recompute.

    ``frozen``: weights have no gradients, 4 FLOPs for each instead of 6; adapters do not count.
    """
    matrices = active_parameters(model) - model.positions * model.hidden
    if not model.tied_embeddings:
        matrices -= model.vocab * model.hidden
    return (4 if frozen else 6) * matrices + 3 * attention_flops_per_token(model, seq_len)


def operation_flops(operation: Operation) -> float:
    """FLOPs of one operation on one rank, causal attention counted half however it is computed."""
    if isinstance(operation, Attention):
        pairs = operation.batch * operation.heads * operation.seq_q * operation.seq_kv
        return 2.0 * pairs * operation.head_dim * operation.passes
    if not isinstance(operation, Gemm):
        return 0.0
    whole = 2.0 * operation.m * operation.n * operation.k * operation.copies
    return whole / 2 if is_attention(operation) else whole
