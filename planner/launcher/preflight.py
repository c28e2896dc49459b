"""Every check that must pass before the first collective: a late one aborts or hangs, silently."""

from .facts import Facts
from .plan_file import LayoutConfig, PlanFile, StageConfig
from .rules import ALL_AT_ONCE, V_SHAPED, broken_rules


def facts(plan: PlanFile) -> Facts:
    """Return the numbers that the rules ask about."""
    model, layout = plan.model, plan.layout
    moe, mla = model.moe, model.mla
    return Facts(
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.kv_heads,
        rotary_dim=mla.qk_rope_head_dim if mla else model.head_dim,
        ffn_hidden=model.ffn_hidden,
        experts=moe.experts if moe else 0,
        expert_ffn_hidden=moe.ffn_hidden if moe else 0,
        shared_ffn_hidden=moe.shared_ffn_hidden if moe else 0,
        vocab=model.vocab,
        positions=model.positions,
        sliding_window=model.sliding_window,
        attention_sinks=model.attention_sinks,
        expert_bias=bool(moe and moe.expert_bias),
        mtp_layers=model.mtp_layers,
        global_batch=plan.global_batch,
        seq_len=plan.seq_len,
        precision=plan.precision,
        dropout=plan.dropout,
        tp=layout.tp,
        cp=layout.cp,
        pp=layout.pp,
        vpp=layout.vpp,
        dp=layout.dp,
        ep=layout.ep,
        etp=layout.etp,
        micro_batch=layout.micro_batch,
        sequence_parallel=layout.sequence_parallel,
        shard_weights=layout.shard_weights,
        shard_gradients=layout.shard_gradients,
        shard_optimizer=layout.shard_optimizer,
        schedule=plan.schedule,
        optimizer=plan.optimizer,
        lora_rank=plan.lora_rank,
        offload_optimizer=layout.offload_optimizer,
        offload_weights=layout.offload_weights,
        delayed_update=layout.delayed_update,
        shard_secondary=layout.shard_secondary,
        context_exchange=plan.context_exchange,
    )


def _size_problems(plan: PlanFile) -> list[str]:
    """Zero sizes, which the divisibility rules could not even be asked about."""
    sizes = {f"layout.{name}": value for name, value in vars(plan.layout).items()}
    del sizes["layout.shard_secondary"]  # none is 0
    names = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_hidden", "vocab")
    sizes |= {f"model.{name}": getattr(plan.model, name) for name in names}
    if plan.model.moe is not None:
        counts = ("experts", "top_k", "ffn_hidden", "every")
        sizes |= {f"model.moe.{name}": getattr(plan.model.moe, name) for name in counts}
    if plan.model.mla is not None:
        parts = {name: size for name, size in vars(plan.model.mla).items() if name != "q_lora_rank"}
        sizes |= {f"model.mla.{name}": size for name, size in parts.items()}
    sizes |= {"job.global_batch": plan.global_batch, "job.seq_len": plan.seq_len}
    return [
        f"{name}: {value} must be at least 1"
        for name, value in sizes.items()
        if isinstance(value, int) and not isinstance(value, bool) and value < 1
    ]


def _own_problems(stage: StageConfig, number: int, expected: int, last: int) -> list[str]:
    place, found = f"stages[{number}]", []
    if stage.stage != number:
        found.append(f"{place}: stage is {stage.stage}, must be {number}")
    if stage.first_layer != expected:
        found.append(f"{place}: first_layer is {stage.first_layer}, must be {expected}")
    if stage.embedding != (number == 0):
        found.append(f"{place}: the embedding belongs to stage 0")
    if stage.head != (number == last):
        found.append(f"{place}: the head belongs to stage {last}")
    if stage.recompute_layers > stage.layers:
        found.append(f"{place}: recompute_layers={stage.recompute_layers} of {stage.layers} layers")
    if stage.layers == 0 and not stage.embedding and not stage.head:
        found.append(f"{place}: holds nothing")
    return found


def _stage_problems(plan: PlanFile) -> list[str]:
    """Stages must be in order, leave out no layer and hold something each."""
    count = plan.layout.pp * plan.layout.vpp
    if len(plan.stages) != count:
        return [f"stages: {len(plan.stages)} listed, pp * vpp is {count}"]
    found: list[str] = []
    expected = 0
    for number, stage in enumerate(plan.stages):
        found += _own_problems(stage, number, expected, count - 1)
        expected += stage.layers
    if expected != plan.model.layers:
        found.append(f"stages: hold {expected} layers, the model has {plan.model.layers}")
    return found


def _offload_problems(layout: LayoutConfig) -> list[str]:
    fraction, target = layout.offload_fraction, layout.offload_target
    found = []
    if not 0 <= fraction <= 1:
        found.append(f"layout.offload_fraction: {fraction:g} is not between 0 and 1; try 0.5")
    if fraction > 0 and target not in ("host", "ssd"):
        found.append(f"layout.offload_target: {target!r} is not known; use host or ssd")
    return found


def plan_problems(plan: PlanFile) -> list[str]:
    """Return every reason why this plan cannot be executed; empty when it can."""
    if sizes := _size_problems(plan):
        return sizes
    found = broken_rules(facts(plan)) + _stage_problems(plan)
    found += _offload_problems(plan.layout)
    ranks = plan.layout.ranks
    if sorted(plan.rank_map) != list(range(ranks)):
        found.append(f"rank_map: {list(plan.rank_map)} is no order of the ranks 0 to {ranks - 1}")
    expected = "interleaved_1f1b" if plan.layout.vpp > 1 else "1f1b"
    known = (expected, *V_SHAPED, *((ALL_AT_ONCE,) if plan.layout.vpp == 1 else ()))
    if plan.schedule not in known:
        found.append(f"schedule: {plan.schedule!r} is not executed with vpp={plan.layout.vpp}; "
                     f"try {expected!r}")  # fmt: skip
    return found


def world_problems(plan: PlanFile, world_size: int) -> list[str]:
    """Return the problem of a launch with the wrong number of processes, if it is one."""
    ranks = plan.layout.ranks
    if world_size == ranks:
        return []
    return [f"the plan has {ranks} ranks, {world_size} processes were started; start {ranks}"]
