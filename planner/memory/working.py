"""Bytes alive only while one thing works: a layer's backward pass, the loss, the optimizer.

``U = 2 * tokens * hidden`` is one full hidden tensor of a micro-batch. The forms were checked
against 17 configurations of Megatron-Core 0.16 and Transformer Engine 2.11 on 8 B200 (allocated
bytes of every rank): residual 0.2 % of the peak on the dense ones.
"""

from functools import lru_cache

from planner.layout.layout import Layout, Recompute
from planner.layout.local import padded_vocab, streams_gradients
from planner.memory.activations import attention_bytes, layer_bytes
from planner.model.operations import Shape
from planner.model.parameters import layer_parameters
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec
from planner.units import MIB

# cuBLAS keeps a workspace of 32 MiB on Hopper and newer (NVIDIA cuBLAS guide, cublasSetWorkspace);
# tokens, masks, rotary tables and losses make up the rest of 50-54 MiB found constant over tp 1-8.
WORKSPACE_BYTES = 52 * MIB
# Bytes per logit at the moment of the loss: eager, the 2-byte logits, their fp32 log-softmax and
# the gradients of both in fp32 (torchtitan's eager runs of Llama-3-8B: within 2.5 % of what they
# print); kernel, the logits and their gradient in 2 bytes; in place, one fp32 copy that becomes
# the gradient; native, two fp32 copies (Megatron-LM's scripted one cannot work in place: nine runs
# of its tests print 10.0 to 10.3 bytes); remade, one beside the 2-byte gradient; fused, the logits
# become the gradient.
LOSS_BYTES = {
    "eager": 2 + 4 + 4 + 4,
    "kernel": 2 + 2,
    "in_place": 2 + 4,
    "native": 2 + 4 + 4,
    "remade": 2 + 4 + 2,
    "fused": 2,
}


def scores_working_bytes(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> float:
    """Return what unfused attention needs for a moment beside what it keeps.

    Fused softmax: the gradient of the scores. Eager: also fp32 copies of scores and gradient.
    """
    if software.flash_attention:
        return 0.0
    scores = shape.micro_batch * model.heads / shape.tp * shape.seq_len * shape.seq_len / shape.cp
    return (2 if software.fused_kernels else 10) * scores


@lru_cache(maxsize=65536)
def layer_working_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, moe_layer: bool
) -> float:
    """Return what the backward pass of one layer allocates on top of all that is kept.

    The gradient of its output (gathered under sequence parallelism) and that of the inputs of the
    activation function; the gradient of its output takes the room of the output itself. Unfused
    attention comes when the MLP of the layer has given up what it kept.
    """
    whole = 2 * shape.tokens * model.hidden
    split = whole / shape.tp if shape.sequence_parallel else 0.0
    if moe_layer:
        moe = model.moe
        assert moe is not None
        rows = shape.tokens / shape.tp * moe.top_k * shape.etp
        inner = moe.ffn_hidden / shape.etp
        # of the routed rows: after the combine, before it, and at the experts
        mlp = whole + split + 3 * 2 * rows * model.hidden
    else:
        rows, inner = shape.tokens, model.ffn_hidden / shape.tp
        mlp = whole + split
    # gradients of what the activation took; one more tensor where it is no kernel of its own
    mlp += 2 * rows * inner * (2 if model.gated_mlp else 1)
    mlp += 0 if software.fused_kernels else 2 * rows * inner
    if not software.fused_gradient_accumulation:  # the gradient of one weight, before it is added
        mlp += 2 * model.hidden * inner
    scores = scores_working_bytes(model, shape, software)
    if not scores:
        return mlp
    kept = layer_bytes(model, shape, software, Recompute.NONE, moe_layer)
    freed = kept - attention_bytes(model, shape, software, Recompute.NONE)
    return max(mlp, 3 * whole + scores - freed)


def loss_working_bytes(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> float:
    """Return what final norm, output matrix and loss need at their peak.

    Either the loss itself, or the backward pass of the matrix: 2-byte gradients of the logits and
    of the weight (a dummy where the product adds to the main gradient itself).
    """
    table = padded_vocab(model, shape.tp, software.vocab_multiple) / shape.tp
    logits = shape.tokens * table * (shape.tp if software.gathers_logits else 1)
    whole = 2 * shape.tokens * model.hidden
    hidden = whole + 3 * whole / (shape.tp if shape.sequence_parallel else 1)
    return hidden + max(LOSS_BYTES[software.loss] * logits, 2 * logits + 2 * table * model.hidden)


def _fetched(layout: Layout) -> bool:
    """Whether a layer's weights come when it needs them, from other ranks or from the host."""
    return layout.shard.weights > 1 or layout.offload_weights


def _by_layer(layout: Layout, software: SoftwareSpec) -> bool:
    """Whether gradients are reduced, or leave for the host, as soon as a layer has them."""
    if layout.pp > 1:
        return False
    return layout.shard.gradients > 1 or (
        software.sharded_master and streams_gradients(layout, software)
    )


def gathered_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, layout: Layout, moe_layer: bool
) -> tuple[float, float]:
    """Return the bytes of gathered weights and of a whole gradient on its way to its shares.

    Weights of the layer at work and of the one being prefetched (ZeRO-3); the gradient of the layer
    before. Nothing under a pipeline, which keeps both.
    """
    if not (_by_layer(layout, software) or layout.offload_weights):
        return 0.0, 0.0
    whole = layer_parameters(model, moe_layer)
    local = (whole.total - whole.experts) / shape.tp + whole.experts / (shape.ep * shape.etp)
    gathered = 2 * 2 * local if _fetched(layout) else 0.0
    return gathered, software.reduce_bytes * local


def head_gathered_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, layout: Layout
) -> tuple[float, float]:
    """Return the same at the moment of the loss: output matrix, and gradient of the embedding.

    The embedding's gradient was the last one of the micro-batch before; FSDP2 keeps the input of a
    reduction until the next one (torch/distributed/fsdp/_fully_shard, ``reduce_scatter_state``).
    """
    if not (_by_layer(layout, software) or layout.offload_weights):
        return 0.0, 0.0
    table = padded_vocab(model, shape.tp, software.vocab_multiple) / shape.tp * model.hidden
    return 2 * table * _fetched(layout), software.reduce_bytes * table


def receive_bytes(
    model: ModelSpec, shape: Shape, software: SoftwareSpec, layout: Layout, rank: int, count: int
) -> float:
    """Return the buffers for activations and gradients of ``count`` micro-batches from neighbours.

    torch makes one for each micro-batch of each stage (torch/distributed/pipelining/stage.py,
    ``_prepare_forward_infra`` and ``_prepare_backward_infra``); others reuse one or two.
    """
    if not software.keeps_receive_buffers or layout.pp == 1:
        return 0.0
    ends = (rank == 0) + (rank == layout.pp - 1)  # the first stage and the last have one neighbour
    each = 2 * shape.tokens * model.hidden / (shape.tp if shape.sequence_parallel else 1)
    return each * count * (2 * layout.vpp - ends)


@lru_cache(maxsize=16384)
def buffer_bytes(model: ModelSpec, shape: Shape, software: SoftwareSpec, moe_layer: bool) -> float:
    """Return what stays allocated for the whole step besides weights, gradients and states.

    Megatron's buffer for gathered sequence-parallel inputs, and Transformer Engine's dummy weight
    gradients: one 2-byte tensor for each distinct shape of a linear layer (2.3 and newer).
    """
    size = float(WORKSPACE_BYTES)
    if shape.sequence_parallel and shape.tp > 1 and software.regather_sequence:
        size += 2 * shape.tokens * model.hidden
    if software.dummy_gradients:
        layer = layer_parameters(model, moe_layer)
        dense = (layer.attention + layer.mlp) / shape.tp
        experts = 0.0
        if moe_layer and model.moe is not None:  # one of each shape, not one per expert
            experts = layer.experts / model.moe.experts / shape.etp
        size += 2 * (dense + experts)
    return size


def step_working_bytes(parameters: float, software: SoftwareSpec) -> float:
    """Return the temporaries of the optimizer step over ``parameters`` on this rank."""
    return software.optimizer_temporary_bytes * parameters
