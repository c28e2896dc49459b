"""What one layer does, as operations with shapes: the only place that knows a layer's anatomy.

It lists the forward pass of one micro-batch on one rank; ``model.backward`` turns each operation
into those of its backward pass. ``cost`` prices them, ``flops`` counts them.
Shapes are local to a rank: ``tokens`` of the micro-batch after context parallelism, widths after
tensor parallelism. Activations take 2 bytes per element.
"""

from dataclasses import dataclass
from typing import NamedTuple

from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec

ACTIVATION_BYTES = 2
SHARD_ORDER = "shard order"  # a copy, in both passes
# bytes per logit, forward
LOSS_TRAFFIC = {"eager": 22, "kernel": 4, "in_place": 22, "native": 14, "remade": 22, "fused": 4}


class Gemm(NamedTuple):
    """``copies`` products of (m, k) by (k, n)."""

    name: str
    m: float
    n: float
    k: float
    copies: float = 1
    accumulates: bool = False  # adds to an fp32 gradient: reads and writes 4 bytes per output
    weight: bool = True  # multiplies a weight, so its precision is the training precision
    grouped: bool = False  # one call over the experts of a rank


class Attention(NamedTuple):
    """Fused causal attention of ``batch`` sequences; ``share`` of the whole causal triangle."""

    name: str
    batch: float
    heads: float
    seq_q: float
    seq_kv: float
    head_dim: float
    passes: float = 1.0  # 1 forward; 2.5 backward, in units of forward FLOPs
    kernels: int = 1


class Elementwise(NamedTuple):
    """Kernels bound by memory: ``moved_bytes`` read and written."""

    name: str
    moved_bytes: float
    kernels: int = 1


class Collective(NamedTuple):
    """``message_bytes`` as nccl-tests counts them: the full (gathered) buffer of one rank."""

    name: str
    kind: str
    message_bytes: float
    axis: str  # tp, cp, ep or etp
    hidden_behind: str = ""  # name of an operation of the same pass that runs meanwhile
    copies: int = 1  # of each row, to members chosen at random; one copy serves a whole domain
    open_share: float = 1.0  # of the group's domains, those that a row may go to
    of_product: bool = False  # gathers what a product takes: quantised, where products are
    open_chunk: float = 0.0  # share that nothing runs beside, where it is cut into chunks


Operation = Gemm | Attention | Elementwise | Collective


def is_attention(operation: Operation) -> bool:
    """Whether an operation multiplies queries, keys and values, fused or one product each."""
    if isinstance(operation, Attention):
        return True
    return isinstance(operation, Gemm) and operation.name.split()[0] in ("scores", "context")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a layout that a layer's operations depend on."""

    micro_batch: int
    seq_len: int
    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    sequence_parallel: bool = False
    input_bytes: float = 2.0  # of a number that a product keeps of its input

    @property
    def tokens(self) -> float:
        """Tokens of one micro-batch on one rank."""
        return self.micro_batch * self.seq_len / self.cp

    @property
    def sharded_tokens(self) -> float:
        """The same between tensor-parallel regions: split again when sequence parallel."""
        return self.tokens / (self.tp if self.sequence_parallel else 1)


def attention_span(model: ModelSpec, seq_len: int) -> float:
    """Mean number of keys a query sees, causal: half the sequence, or less with a window.

    Where layers differ, the mean of the layers.
    """
    window = model.sliding_window
    if not window or window >= seq_len:
        return seq_len / 2
    windowed = window * (1 - window / (2 * seq_len))
    full = 1 / model.full_attention_every if model.full_attention_every else 0.0
    return full * seq_len / 2 + (1 - full) * windowed


def _norm(name: str, elements: float, software: SoftwareSpec) -> Elementwise:
    # fused: read and write once; eager (cast, square, mean, rsqrt, two products, cast back): 54
    # bytes per element on A100, from Liger-Kernel's benchmark table (rms_norm, huggingface)
    if software.fused_norm:
        return Elementwise(name, 4 * elements)
    return Elementwise(name, 54 * elements, kernels=6)


def _residual(name: str, elements: float, software: SoftwareSpec) -> Elementwise:
    # add: 2 reads and a write; dropout adds a 1-byte mask, and a pass of its own when not fused
    if not software.dropout:
        return Elementwise(name, 6 * elements)
    if software.fused_kernels:
        return Elementwise(name, 7 * elements)
    return Elementwise(name, 15 * elements, kernels=3)


def _enter_tp(shape: Shape, hidden: int, name: str) -> tuple[Operation, ...]:
    """Before a column-parallel product: sequence parallelism gathers the shards."""
    if shape.tp == 1 or not shape.sequence_parallel:
        return ()
    gather = Collective(f"{name} gather", "all_gather", 2 * shape.tokens * hidden, "tp")
    return (gather._replace(of_product=name != "head"),)  # the output matrix stays in 16 bits


def _leave_tp(shape: Shape, hidden: int, name: str, axis: str = "tp") -> tuple[Operation, ...]:
    """After a row-parallel product: sum the partial results."""
    if shape.tp == 1:
        return ()
    kind = "reduce_scatter" if shape.sequence_parallel else "all_reduce"
    reduce = Collective(f"{name} reduce", kind, 2 * shape.tokens * hidden, axis)
    return (reduce._replace(of_product=name != "embedding"),)


def with_ordered_shards(operations: list[Operation]) -> list[Operation]:
    """Return the operations with a copy after each gathering of a sequence, before each scatter.

    torch's functional collectives gather along the outermost dimension, the batch, and then move
    what they have (``torch.distributed._functional_collectives``): read and written once.
    """
    found: list[Operation] = []
    for operation in operations:
        found.append(operation)
        if isinstance(operation, Collective) and operation.axis == "tp":
            copy = Elementwise(SHARD_ORDER, 2 * operation.message_bytes)
            if operation.kind == "all_gather":
                found.append(copy)
            elif operation.kind == "reduce_scatter":
                found.insert(-1, copy)
    return found


def _attention_core(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> list[Operation]:
    heads = model.heads / shape.tp
    key_dim = value_dim = model.head_dim
    if model.mla is not None:
        key_dim = model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim
        value_dim = model.mla.v_head_dim
    seq_q = shape.seq_len / shape.cp
    if software.flash_attention:
        span = 2 * attention_span(model, shape.seq_len)
        dim = (key_dim + value_dim) / 2
        return [Attention("attention", shape.micro_batch, heads, seq_q, span, dim)]
    copies = shape.micro_batch * heads
    scores = copies * seq_q * shape.seq_len
    # fused scale-mask-softmax: read and write 2 bytes; eager: scale, mask, fp32 softmax, cast
    softmax = Elementwise("softmax", 4 * scores)
    if not software.fused_kernels:
        softmax = Elementwise("softmax", 24 * scores, kernels=5)
    core: list[Operation] = [
        Gemm("scores", seq_q, shape.seq_len, key_dim, copies, weight=False),
        softmax,
        Gemm("context", seq_q, value_dim, shape.seq_len, copies, weight=False),
        # q, k, v and the context change between (s, b) and (b, s) order
        Elementwise("transpose", 8 * shape.tokens * heads * key_dim, kernels=2),
    ]
    if software.dropout:
        core.insert(2, Elementwise("attention dropout", 5 * scores))
    return core


def _context_exchange(
    model: ModelSpec, shape: Shape, software: SoftwareSpec
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Return what context-parallel ranks exchange before and after the attention core.

    A ring passes keys and values around, hidden behind the blocks of the core; an all-gather brings
    them before it. All-to-all (DeepSpeed-Ulysses, arXiv 2309.14509) trades sequence for heads and
    back, in the open.
    """
    if shape.cp == 1:
        return (), ()
    if software.context_exchange == "all_to_all":
        heads = (model.heads + 2 * max(model.kv_heads, shape.tp)) / shape.tp
        each = 2 * shape.tokens * model.head_dim
        before = Collective("cp qkv exchange", "all_to_all", each * heads, "cp")
        return (before,), (before._replace(message_bytes=each * model.heads / shape.tp),)
    width = 2 * model.kv_heads * model.head_dim
    if model.mla is not None:
        width = model.heads * (model.mla.qk_nope_head_dim + model.mla.v_head_dim)
    message = 2 * shape.micro_batch * shape.seq_len * max(width / shape.tp, model.head_dim)
    behind = "attention" if software.context_exchange == "ring" else ""
    return (Collective("cp exchange", "all_gather", message, "cp", hidden_behind=behind),), ()


def _projections(model: ModelSpec, shape: Shape) -> list[Operation]:
    tokens, tp = shape.tokens, shape.tp
    if model.mla is None:
        width = (model.heads + 2 * max(model.kv_heads, tp)) * model.head_dim / tp
        return [Gemm("qkv", tokens, width, model.hidden)]
    mla = model.mla
    query = model.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) / tp
    key_value = model.heads * (mla.qk_nope_head_dim + mla.v_head_dim) / tp
    down = mla.kv_lora_rank + mla.qk_rope_head_dim + mla.q_lora_rank
    return [
        Gemm("latent down", shape.sharded_tokens, down, model.hidden),
        Elementwise("latent norm", 4 * shape.sharded_tokens * down, kernels=2),
        Gemm("q up", tokens, query, mla.q_lora_rank or model.hidden),
        Gemm("kv up", tokens, key_value, mla.kv_lora_rank),
        Elementwise("latent concat", 6 * tokens * (query + key_value), kernels=4),
    ]


def attention_operations(
    model: ModelSpec, shape: Shape, software: SoftwareSpec
) -> tuple[list[Operation], list[Operation]]:
    """Return (all forward operations of the attention block, those of its core alone)."""
    hidden, tp = model.hidden, shape.tp
    value_dim = model.mla.v_head_dim if model.mla else model.head_dim
    core = _attention_core(model, shape, software)
    operations: list[Operation] = [_norm("norm", shape.sharded_tokens * hidden, software)]
    operations += _enter_tp(shape, hidden, "attention")
    operations += _projections(model, shape)
    if not model.positions:  # eager: 40 bytes per element, same benchmark (rope, huggingface)
        rotated = shape.tokens * (model.heads + max(model.kv_heads, tp)) * model.head_dim / tp
        fused = software.fused_kernels
        operations.append(Elementwise("rotary", (4 if fused else 40) * rotated, 2 if fused else 8))
    if model.qk_norm:
        width = (model.heads + model.kv_heads) * model.head_dim / tp
        operations.append(_norm("qk norm", shape.tokens * width, software))
    before, after = _context_exchange(model, shape, software)
    operations += [*before, *core, *after]
    operations.append(Gemm("projection", shape.tokens, hidden, model.heads * value_dim / tp))
    if not model.parallel_block:
        operations += _leave_tp(shape, hidden, "attention")
    operations.append(_residual("residual", shape.sharded_tokens * hidden, software))
    return operations, core


def _activation(model: ModelSpec, rows: float, width: float, software: SoftwareSpec) -> Elementwise:
    elements = rows * width
    if model.gated_mlp:
        return Elementwise("swiglu", (6 if software.fused_activation else 10) * elements, 1)
    return Elementwise("gelu", (4 if software.fused_activation else 12) * elements, 1)


def _mlp(
    model: ModelSpec, rows: float, inner: float, software: SoftwareSpec, name: str
) -> list[Operation]:
    up = 2 * inner if model.gated_mlp else inner
    return [
        Gemm(f"{name} up", rows, up, model.hidden),
        _activation(model, rows, inner, software),
        Gemm(f"{name} down", rows, model.hidden, inner),
    ]


def mlp_operations(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> list[Operation]:
    """Return the forward operations of a dense MLP block, its norm and residual included."""
    hidden = model.hidden
    operations: list[Operation] = []
    if not model.parallel_block:
        operations.append(_norm("norm", shape.sharded_tokens * hidden, software))
        operations += _enter_tp(shape, hidden, "mlp")
    operations += _mlp(model, shape.tokens, model.ffn_hidden / shape.tp, software, "mlp")
    operations += _leave_tp(shape, hidden, "mlp")
    operations.append(_residual("residual", shape.sharded_tokens * hidden, software))
    return operations


def moe_operations(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> list[Operation]:
    """Return the forward operations of an expert block, routing balanced.

    MoE Parallel Folding, arXiv 2504.14960, 3.2.
    Tokens are already split over tp (sequence parallel) and cp; the expert grid reinterprets the
    shards: all-to-all over ep, all-gather over etp, grouped product, and the way back.
    """
    moe = model.moe
    assert moe is not None
    hidden, software_fused = model.hidden, software.fused_kernels
    local = shape.tokens / shape.tp  # MoE needs sequence parallelism, so tokens are always split
    routed = local * moe.top_k
    rows = routed * shape.etp  # rows of all local experts after the etp gather
    experts = moe.experts / shape.ep
    inner = moe.ffn_hidden / shape.etp
    up = 2 * inner if model.gated_mlp else inner
    permute = (4 if software_fused else 10) * routed * hidden
    once = software.moe_sends_once
    copies, open_share = (moe.top_k, moe.top_groups / moe.groups) if once else (1, 1.0)
    exchange = Collective(
        "dispatch", "all_to_all", 2 * routed * hidden, "ep", "", copies, open_share
    )
    operations: list[Operation] = [
        _norm("norm", local * hidden, software),
        Gemm("router", local, moe.experts, hidden, weight=False),
        Elementwise("top-k", 12 * local * moe.experts, kernels=8),
        Elementwise("permute", permute, kernels=3),
    ]
    if shape.ep > 1:
        operations.append(exchange)
    if shape.etp > 1:
        gathered = 2 * rows * hidden
        operations.append(Collective("expert gather", "all_gather", gathered, "etp"))
    per_expert = rows / experts
    operations += [
        Gemm("experts up", per_expert, up, hidden, experts, grouped=True),
        _activation(model, rows, inner, software),
        Gemm("experts down", per_expert, hidden, inner, experts, grouped=True),
    ]
    if shape.etp > 1:
        gathered = 2 * rows * hidden
        operations.append(Collective("expert reduce", "reduce_scatter", gathered, "etp"))
    if shape.ep > 1:
        operations.append(exchange._replace(name="combine"))
    operations.append(Elementwise("unpermute", permute, kernels=2))
    if moe.shared_ffn_hidden:
        operations += _enter_tp(shape, hidden, "shared")
        inner = moe.shared_ffn_hidden / shape.tp
        operations += _mlp(model, shape.tokens, inner, software, "shared")
        operations += _leave_tp(shape, hidden, "shared")
    operations.append(_residual("residual", local * hidden, software))
    return operations


def embedding_operations(model: ModelSpec, shape: Shape) -> list[Operation]:
    """Return the forward operations of the token embedding, vocabulary-parallel over tp."""
    moved = 4 * shape.tokens * model.hidden
    operations: list[Operation] = [Elementwise("embedding", moved, kernels=3)]
    return operations + list(_leave_tp(shape, model.hidden, "embedding"))


def head_operations(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> list[Operation]:
    """Return the forward operations of the final norm, the output matrix and the loss.

    Loss traffic per logit: an fp32 copy (6 bytes), and 16 bytes forward, 30 backward of the eager
    loss (Liger-Kernel's benchmark table); a fused loss reads and writes the 2-byte logits once, one
    in half precision twice. Where every rank gathers the logits, each does the work of all.
    """
    gathers = software.gathers_logits and shape.tp > 1
    logits = shape.tokens * model.vocab / (1 if gathers else shape.tp)
    operations: list[Operation] = [
        _norm("norm", shape.sharded_tokens * model.hidden, software),
        *_enter_tp(shape, model.hidden, "head"),
        Gemm("head", shape.tokens, model.vocab / shape.tp, model.hidden),
        Elementwise("loss", LOSS_TRAFFIC[software.loss] * logits, kernels=6),
    ]
    if gathers:
        operations.append(Collective("logits", "all_gather", 2 * logits, "tp"))
    elif shape.tp > 1:  # maximum, picked logit and sum of each token, in fp32
        operations.append(Collective("loss reduce", "all_reduce", 12 * shape.tokens, "tp"))
    return operations
