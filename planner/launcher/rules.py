"""What this launcher can execute, as data: one record per rule, with its source.

The search asks these rules about every layout and the launcher asks them again before its first
collective, where a violation would abort or hang instead of raising.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from .facts import Facts, hops_divide, masters_apart


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit. ``broken`` is the cheap question; ``message`` is asked only when it says yes.

    ``torch`` is the version in which the limit was seen.
    """

    id: str
    source: str
    broken: Callable[[Facts], bool]
    message: Callable[[Facts], str]
    torch: str = "2.13"


def near(value: int, legal: Callable[[int], bool], most: int) -> str:
    """Return the closest legal numbers below and above ``value``, as ``4 or 8``."""
    below = next((str(n) for n in range(min(value - 1, most), 0, -1) if legal(n)), "")
    above = next((str(n) for n in range(value + 1, most + 1) if legal(n)), "")
    return " or ".join(filter(None, (below, above))) or "nothing else"


def _interleaved(micro_batches: int, pp: int) -> bool:
    return micro_batches % max(1, micro_batches // pp) == 0


def _batch(f: Facts) -> str:
    share = f.dp * f.micro_batch
    lower, upper = f.global_batch // share * share, -(-f.global_batch // share) * share
    tried = " or ".join(str(n) for n in (lower, upper) if n)
    return (
        f"dp={f.dp} times micro_batch={f.micro_batch} is {share}, which does not divide "
        f"global_batch={f.global_batch}; try global_batch {tried}"
    )


def _micro_batches(f: Facts) -> str:
    least = f.dp * f.micro_batch * f.pp
    return (
        f"1F1B over pp={f.pp} needs at least {f.pp} micro-batches, "
        f"global_batch={f.global_batch} gives {f.micro_batches}; "
        f"try global_batch {least} or pp {f.micro_batches}"
    )


def _rounds(f: Facts) -> str:
    tried = near(f.micro_batches, lambda n: _interleaved(n, f.pp), 2 * f.micro_batches + f.pp)
    return (
        f"interleaved 1F1B over pp={f.pp} cannot order {f.micro_batches} micro-batches "
        f"(they must split into {f.micro_batches // f.pp} equal rounds); try {tried} of them"
    )


def _sequence(f: Facts) -> str:
    part = f.seq_len // f.cp
    tried = near(f.tp, lambda n: part % n == 0, part)
    what = f"seq_len/cp={part}" if f.cp > 1 else f"seq_len={part}"
    return f"sequence_parallel: tp={f.tp} does not divide {what}; try tp {tried}"


def _zigzag(f: Facts) -> str:
    tried = near(f.cp, lambda n: f.seq_len % (2 * n) == 0, f.seq_len)
    return f"cp={f.cp} cuts sequences into {2 * f.cp} chunks, which do not divide seq_len=" + (
        f"{f.seq_len}; try cp {tried}"
    )


def _expert_grid(f: Facts) -> str:
    tried = near(f.ep, lambda n: f.stage_ranks % (n * f.etp) == 0, f.stage_ranks)
    return (
        f"ep*etp={f.ep * f.etp} does not divide the tp*cp*dp={f.stage_ranks} ranks of a stage; "
        f"try ep {tried}"
    )


def _shard_dp(f: Facts) -> str:
    ranks = f.dp * f.cp
    what = f"dp*cp={ranks}" if f.cp > 1 else f"dp={ranks}"
    tried = near(f.shard_optimizer, lambda n: ranks % n == 0, ranks)
    return f"shard_optimizer={f.shard_optimizer} does not divide {what}; try {tried}"


def _shard_edp(f: Facts) -> str:
    tried = near(f.shard_optimizer, lambda n: f.edp % min(n, f.edp) == 0, f.dp * f.cp)
    return (
        f"shard_optimizer={f.shard_optimizer} does not divide the edp={f.edp} ranks that hold the "
        f"same experts; try {tried}"
    )


def _apart(f: Facts) -> str:
    if f.delayed_update:
        return "delayed_update"
    if f.offload_optimizer and f.shard_weights > 1:
        return f"offload_optimizer with shard_weights={f.shard_weights} and weights on the GPU"
    return (
        f"sharding {f.shard_weights}, {f.shard_gradients}, {f.shard_optimizer} of weights, "
        "gradients and optimizer"
    )


def _divided(number: int, what: str, degree: int, knob: str) -> str:
    tried = near(degree, lambda n: number % n == 0, number)
    return f"{knob}={degree} does not divide {what}={number}; try {knob} {tried}"


def _shared_heads(f: Facts) -> int:
    """Return the heads that keys and values have where they are exchanged."""
    return gcd(f.heads, f.kv_heads)


def _shard_pp(f: Facts) -> str:
    return (
        f"pp={f.pp} with shard_weights={f.shard_weights}, shard_gradients={f.shard_gradients}: "
        "a pipeline stage keeps whole weights and gradients until its last micro-batch; "
        "try 1 for both (ZeRO-1)"
    )


EXCHANGES = ("all_gather", "ring", "all_to_all")
V_SHAPED = ("zb_v", "dualpipe_v")  # two chunks per rank, split backward passes
ALL_AT_ONCE = "gpipe"  # every forward pass before the first backward pass, one chunk per rank
_NEVER = "not executed by this version of the launcher"
_PIPELINING = "torch/distributed/pipelining/schedules.py"
_TENSOR = "torch/distributed/tensor/parallel/style.py"
_FSDP = "torch/distributed/fsdp/_fully_shard"
_OWN = "planner.launcher"

# Order: first what is not executed at all, then tensor, batch, pipeline and sharding arithmetic.
OPTIMIZERS = ("adamw", "sgd")  # as train.py builds them

RULES: tuple[Rule, ...] = (
    Rule(
        "L1", f"{_OWN}.experts: no two ranks may route the same token",
        lambda f: f.experts > 0 and f.tp > 1 and not f.sequence_parallel,
        lambda f: f"experts with tp={f.tp} need sequence_parallel; set it, or try tp 1",
    ),
    Rule(
        "L2", "torch.nn.functional.grouped_mm: strides are multiples of 16 bytes",
        lambda f: f.experts > 0 and (f.hidden % 8 > 0 or f.expert_ffn_hidden // f.etp % 8 > 0),
        lambda f: f"experts multiply rows of hidden={f.hidden} and ffn_hidden/etp="
        f"{f.expert_ffn_hidden // f.etp}; both must be multiples of 8",
    ),
    Rule(
        "L3", _OWN,
        lambda f: f.mtp_layers > 0,
        lambda f: f"mtp_layers={f.mtp_layers}: multi-token prediction is {_NEVER}; try 0",
    ),
    Rule(
        "L4", _OWN,
        lambda f: 0 < f.sliding_window < f.seq_len,
        lambda f: f"sliding_window={f.sliding_window} under seq_len={f.seq_len} is {_NEVER}; "
        f"try seq_len {f.sliding_window}",
    ),
    Rule(
        "L5", f"{_OWN}.context: zig-zag order",
        lambda f: f.cp > 1 and f.seq_len % (2 * f.cp) > 0,
        _zigzag,
    ),
    Rule(
        "L6", f"{_OWN}.mesh: the expert grid folds the ranks of a stage",
        lambda f: f.experts > 0 and f.stage_ranks % (f.ep * f.etp) > 0,
        _expert_grid,
    ),
    Rule(
        "L7", _OWN,
        lambda f: f.precision != "bf16",
        lambda f: f"precision={f.precision!r} is {_NEVER}; try 'bf16'",
    ),
    Rule(
        "L8", _OWN,
        lambda f: f.dropout,
        lambda f: f"dropout is {_NEVER}; set software.dropout to false",
    ),
    Rule(
        "L9", _OWN,
        lambda f: 0 < f.positions < f.seq_len,
        lambda f: f"seq_len={f.seq_len} exceeds the {f.positions} learned positions; "
        f"try seq_len {f.positions}",
    ),
    Rule(
        "L10", _OWN,
        lambda f: f.positions == 0 and f.rotary_dim % 2 == 1,
        lambda f: f"rotary positions turn pairs, a head's {f.rotary_dim} are odd; "
        f"try {f.rotary_dim - 1} or {f.rotary_dim + 1}",
    ),
    Rule(
        "L11", _TENSOR,
        lambda f: f.heads % f.tp > 0,
        lambda f: _divided(f.heads, "heads", f.tp, "tp"),
    ),
    Rule(
        "L12", _TENSOR,
        lambda f: f.kv_heads % f.tp > 0,
        lambda f: _divided(f.kv_heads, "kv_heads", f.tp, "tp"),
    ),
    Rule(
        "L13", _TENSOR,
        lambda f: f.ffn_hidden % f.tp > 0,
        lambda f: _divided(f.ffn_hidden, "ffn_hidden", f.tp, "tp"),
    ),
    Rule(
        "L14", f"{_TENSOR}; unequal shards abort gloo and hang NCCL",
        lambda f: f.sequence_parallel and f.seq_len // f.cp % f.tp > 0,
        _sequence,
    ),
    Rule(
        "L15", f"{_OWN}.loss: every rank holds a part of the vocabulary",
        lambda f: -(-f.vocab // f.tp) * (f.tp - 1) >= f.vocab,
        lambda f: f"vocab={f.vocab} leaves a rank of tp={f.tp} without logits; try tp 1",
    ),
    Rule(
        "L16", f"{_PIPELINING}; unequal micro-batches deadlock",
        lambda f: f.global_batch % (f.dp * f.micro_batch) > 0,
        _batch,
    ),
    Rule(
        "L17", f"{_PIPELINING}: Schedule1F1B",
        lambda f: f.vpp == 1 and f.schedule != ALL_AT_ONCE and 0 < f.micro_batches < f.pp,
        _micro_batches,
    ),
    Rule(
        "L18", f"{_PIPELINING}: ScheduleInterleaved1F1B",
        lambda f: f.vpp > 1
        and f.schedule not in V_SHAPED
        and not _interleaved(f.micro_batches, f.pp),
        _rounds,
    ),
    Rule(
        "L19", _OWN,
        lambda f: f.vpp > 1 and f.pp == 1,
        lambda f: f"vpp={f.vpp} needs a pipeline, pp is 1; try vpp 1 or pp 2",
    ),
    Rule(
        "L20", f"{_OWN}: only the embedding and the head may have a stage of their own",
        lambda f: f.pp * f.vpp > f.layers + 2,
        lambda f: f"pp={f.pp} times vpp={f.vpp} stages exceed layers={f.layers} plus embedding "
        f"and head; try pp*vpp {f.layers}",
    ),
    Rule(
        "L21", f"{_FSDP}: shard mesh",
        lambda f: f.dp * f.cp % f.shard_optimizer > 0,
        _shard_dp,
    ),
    Rule(
        "L22", f"{_OWN}.masters: gradients are scattered in hops of one chain",
        lambda f: not hops_divide(f),
        lambda f: f"shard_weights={f.shard_weights}, shard_gradients={f.shard_gradients} and "
        f"shard_optimizer={f.shard_optimizer} must divide each other in this order, and the last "
        f"be shard_gradients or all dp*cp={f.dp * f.cp} ranks",
    ),
    Rule(
        "L23", f"{_OWN}.masters: rows are cut over data-parallel ranks only",
        lambda f: masters_apart(f) and (f.tp > 1 or f.pp > 1 or f.experts > 0),
        lambda f: f"{_apart(f)} is {_NEVER} with tp={f.tp}, pp={f.pp}, experts={f.experts}; "
        "try 1, 1 and a dense model, or ZeRO 1 or 3",
    ),
    Rule(
        "L24", "torch/distributed/pipelining/stage.py: backward_maybe_with_nosync",
        lambda f: f.pp > 1 and (f.shard_weights > 1 or f.shard_gradients > 1),
        _shard_pp,
    ),
    Rule(
        "L25", f"{_OWN}.mesh",
        lambda f: f.experts == 0 and (f.ep > 1 or f.etp > 1),
        lambda f: f"ep={f.ep}, etp={f.etp}: the model has no experts; try 1 for both",
    ),
    Rule(
        "L26", f"{_OWN}.dispatch: every rank holds equally many experts",
        lambda f: f.experts > 0 and f.experts % f.ep > 0,
        lambda f: _divided(f.experts, "experts", f.ep, "ep"),
    ),
    Rule(
        "L27", f"{_OWN}.parallel: etp splits the matrices of an expert",
        lambda f: f.expert_ffn_hidden % f.etp > 0,
        lambda f: _divided(f.expert_ffn_hidden, "the experts' ffn_hidden", f.etp, "etp"),
    ),
    Rule(
        "L28", _TENSOR,
        lambda f: f.shared_ffn_hidden % f.tp > 0,
        lambda f: _divided(f.shared_ffn_hidden, "shared_ffn_hidden", f.tp, "tp"),
    ),
    Rule(
        "L29", f"{_FSDP}: the experts' own shard mesh",
        lambda f: f.experts > 0 and f.edp > 0 and f.edp % min(f.shard_optimizer, f.edp) > 0,
        _shard_edp,
    ),
    Rule(
        "L30", f"{_FSDP}/_fsdp_param.py: a secondary shard is cut over dimension 0 only",
        lambda f: f.experts > 0 and f.shard_secondary > 0,
        lambda f: f"shard_secondary={f.shard_secondary} is {_NEVER} with experts; try 0",
    ),
    Rule(
        "L31", _OWN,
        lambda f: f.attention_sinks or f.expert_bias,
        lambda f: f"attention_sinks={f.attention_sinks}, expert_bias={f.expert_bias}: attention "
        f"sinks and biases of experts are {_NEVER}; try false",
    ),
    Rule(
        "L32", f"{_PIPELINING}: ScheduleZBVZeroBubble, ScheduleDualPipeV",
        lambda f: f.schedule in V_SHAPED and f.vpp != 2,
        lambda f: f"schedule {f.schedule} has two chunks per rank, not {f.vpp}; try vpp 2",
    ),
    Rule(
        "L33", f"{_PIPELINING}: ScheduleDualPipeV; stops over DTensor, seen with torch 2.13",
        lambda f: f.schedule == "dualpipe_v" and f.tp > 1,
        lambda f: f"schedule dualpipe_v with tp={f.tp} is {_NEVER}; try zb_v or tp 1",
    ),
    Rule(
        "L34", f"{_PIPELINING}: ScheduleDualPipeV",
        lambda f: f.schedule == "dualpipe_v" and f.micro_batches < 2 * f.pp,
        lambda f: f"schedule dualpipe_v needs {2 * f.pp} micro-batches for pp={f.pp}, "
        f"not {f.micro_batches}; try zb_v",
    ),
    Rule(
        "L35", f"{_OWN}.optimizer",
        lambda f: f.optimizer not in OPTIMIZERS,
        lambda f: f"optimizer={f.optimizer!r} is {_NEVER}; try {' or '.join(OPTIMIZERS)}",
    ),
    Rule(
        "L36", f"{_OWN}: adapters beside frozen weights are simulated only",
        lambda f: f.lora_rank > 0,
        lambda f: f"lora_rank={f.lora_rank} is {_NEVER}; try 0",
    ),
    Rule(
        "L37", f"{_FSDP}: CPUOffloadPolicy moves the whole state of a module",
        lambda f: f.offload_optimizer not in (0, 1),
        lambda f: f"offload_optimizer={f.offload_optimizer:g} is {_NEVER}; try 0 or 1",
    ),
    Rule(
        "L38", f"{_FSDP}: weights on the host are shards that a layer gathers",
        lambda f: f.offload_weights and f.shard_weights == 1 and f.dp * f.cp > 1,
        lambda f: f"offload_weights with shard_weights=1 over {f.dp * f.cp} ranks is {_NEVER}; "
        f"try shard_weights {f.dp * f.cp} (ZeRO-3)",
    ),
    Rule(
        "L39", f"{_OWN}.masters: gradients on the host are scattered no further",
        lambda f: f.offload_optimizer > 0 and f.shard_gradients not in (1, f.shard_optimizer),
        lambda f: f"offload_optimizer with shard_gradients={f.shard_gradients} is {_NEVER}; "
        f"try 1 or shard_optimizer={f.shard_optimizer}",
    ),
    Rule(
        "L40", f"{_OWN}.masters: a delayed update needs weights that the passes can go on reading",
        lambda f: f.delayed_update and f.offload_weights,
        lambda f: f"delayed_update with offload_weights is {_NEVER}; try one of them",
    ),
    Rule(
        "L41", f"{_FSDP}: reshard_after_forward",
        lambda f: f.shard_secondary != 0
        and (
            not 1 < f.shard_secondary < f.shard_weights
            or f.shard_weights % f.shard_secondary > 0
        ),
        lambda f: f"shard_secondary={f.shard_secondary} must divide "
        f"shard_weights={f.shard_weights} and lie below it; 0 for no second copy",
    ),
    Rule(
        "L42", f"{_OWN}.context",
        lambda f: f.cp > 1 and f.context_exchange not in EXCHANGES,
        lambda f: f"context_exchange={f.context_exchange!r} is {_NEVER}; try "
        f"{', '.join(EXCHANGES)}",
    ),
    Rule(
        "L43", f"{_OWN}.ulysses: a rank of cp computes whole heads",
        lambda f: f.cp > 1 and f.context_exchange == "all_to_all"
        and _shared_heads(f) % (f.tp * f.cp) > 0,
        lambda f: f"context_exchange all_to_all: tp*cp={f.tp * f.cp} does not divide the "
        f"{_shared_heads(f)} key/value heads; try cp "
        f"{near(f.cp, lambda n: _shared_heads(f) % (f.tp * n) == 0, f.cp)}, ring or all_gather",
    ),
    Rule(
        "L44", f"{_FSDP}/_fsdp_init.py: makes the groups of a second copy as if of all ranks",
        lambda f: f.shard_secondary > 0 and f.shard_weights != f.stage_ranks * f.pp,
        lambda f: f"shard_secondary={f.shard_secondary} with weights over {f.shard_weights} of "
        f"{f.stage_ranks * f.pp} ranks is {_NEVER}; try weights over all, or 0",
    ),
)  # fmt: skip


def broken_rules(facts: Facts) -> list[str]:
    """Return one sentence for every rule that ``facts`` breaks, all at once."""
    return [f"{rule.id}: {rule.message(facts)}" for rule in RULES if rule.broken(facts)]
