"""Which layouts the torch launcher can execute: its own rules, asked about the planner's records.

The rules live with the program they limit (``planner.launcher.rules``), so the search, the export
and the launcher's check before its first collective can never disagree. No torch is imported.
"""

from planner.launcher.facts import Facts
from planner.launcher.rules import broken_rules
from planner.layout.layout import Layout
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def torch_target_problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    """Return one sentence for every rule the layout breaks on the torch target; empty when legal.

    Each names the rule, the numbers at fault and legal ones near. Some microseconds per call.
    """
    shard, moe, mla = layout.shard, model.moe, model.mla
    facts = Facts(
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
        global_batch=job.global_batch,
        seq_len=job.seq_len,
        precision=job.precision,
        dropout=job.software.dropout,
        tp=layout.tp,
        cp=layout.cp,
        pp=layout.pp,
        vpp=layout.vpp,
        dp=layout.dp,
        ep=layout.ep,
        etp=layout.etp,
        micro_batch=layout.micro_batch,
        sequence_parallel=layout.sequence_parallel,
        shard_weights=shard.weights,
        shard_gradients=shard.gradients,
        shard_optimizer=shard.optimizer,
        schedule=layout.schedule,
        optimizer=job.optimizer,
        lora_rank=job.lora_rank,
        offload_optimizer=layout.offload_optimizer,
        offload_weights=layout.offload_weights,
        delayed_update=layout.delayed_update,
        shard_secondary=shard.secondary,
        context_exchange=job.software.context_exchange,
    )
    return broken_rules(facts)
