"""What Megatron-LM and Megatron-Core refuse, or start and then stop at: one record per rule.

Read in Megatron-LM d98e8a6 (core 0.20) and asked of the megatron-core 0.16.1 wheel. A rule about a
switch is only ever broken by a file that sets it; the planner's own layouts leave them alone.
"""

from planner.layout.layout import Layout, Recompute
from planner.layout.rule import Facts, Rule, broken, divisor, facts_of, multiple, near
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

_ARGUMENTS = "training/arguments.py"
_CONFIG = "core/transformer/transformer_config.py"
_STATE = "core/parallel_state.py"
_SCHEDULES = "core/pipeline_parallel/schedules.py"
_BOTH = "Megatron-Core 0.16 to 0.20"
_RAMP = "Megatron-Core 0.16 to 0.18"
_READ = "Megatron-Core 0.20"
OFFLOADED = {
    "core_attn", "attn_proj", "expert_fc1", "fused_group_mlp", "moe_act", "attn_norm", "mlp_norm",
    "qkv_linear", "gdp_qkv",
}  # fmt: skip


def _world(f: Facts) -> str:
    block = f.tp * f.cp * f.pp
    return multiple("GPUs", f.world, block, "tp*cp*pp")


def _expert_world(f: Facts) -> str:
    block = f.etp * f.ep * f.pp
    return f"{multiple('GPUs', f.world, block, 'etp*ep*pp')}, or a smaller ep or etp"


def _groups(f: Facts) -> str:
    legal = near(f.tp, lambda n: f.kv_heads % n == 0 or n % f.kv_heads == 0, 2 * f.tp)
    return f"tp={f.tp} is neither a divisor nor a multiple of kv_heads={f.kv_heads}; try tp {legal}"


def _ends(f: Facts) -> int:
    """Layers as the pipeline counts them: embedding and loss may count as one each."""
    counted = ("account_for_embedding", "account_for_loss")
    return f.layers + sum(f.on(name) for name in counted)


def _equal_stages(f: Facts) -> bool:
    return not (f.stages or f.free_stages or f.on("first_layers") or f.on("last_layers"))


def _layers(f: Facts) -> str:
    return (
        f"{divisor('pp', f.pp, 'layers', _ends(f))}, or write the stages out with "
        "--pipeline-model-parallel-layout"
    )


def _rounds(f: Facts) -> bool:
    """M9: a round of the interleaved schedule is pp micro-batches, the last one whole or longer."""
    group = int(str(f.options.get("microbatch_group", f.pp)))
    if f.vpp == 1 or not f.micro_batches:
        return False
    return not f.pp <= group <= f.micro_batches or 0 < f.micro_batches % group < f.pp


def _rounds_said(f: Facts) -> str:
    return (
        f"vpp={f.vpp} with {f.micro_batches} micro-batches: they must be a multiple of pp={f.pp}; "
        f"try global_batch {f.dp * f.micro_batch * f.pp * max(1, f.micro_batches // f.pp)}"
    )


def _fsdp_connections(f: Facts) -> bool:
    fsdp = f.on("megatron_fsdp") or f.on("torch_fsdp2")
    return fsdp and str(f.options.get("CUDA_DEVICE_MAX_CONNECTIONS", "")) == "1"


def _torch_fsdp2(f: Facts) -> list[str]:
    wrong = {
        f"pp={f.pp}": f.pp > 1,
        f"ep={f.ep}": f.ep > 1,
        "--use-distributed-optimizer": f.on("distributed_optimizer"),
        "gradient accumulation fusion (add --no-gradient-accumulation-fusion)": not f.on(
            "no_gradient_fusion"
        ),
        "tied embeddings (add --untie-embeddings-and-output-weights)": f.tied,
        "--fp16": f.on("fp16"),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def _moe_overlap(f: Facts) -> list[str]:
    wrong = {
        "ep 1": f.ep == 1,
        "pp > 1 without virtual stages": f.pp > 1 and f.vpp == 1,
        "full recompute": f.recompute is Recompute.FULL,
        "the allgather dispatcher": str(f.options.get("dispatcher", "allgather")) == "allgather",
        "--moe-shared-expert-overlap": f.on("shared_expert_overlap"),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def _option(f: Facts, name: str) -> int:
    return int(str(f.options.get(name) or 0))


def _modules(f: Facts) -> set[str]:
    return set(str(f.options.get("offload_modules", "")).replace(",", " ").split())


def _not_offloaded(f: Facts) -> set[str]:
    return _modules(f) - OFFLOADED


def _ramp(f: Facts) -> tuple[int, int]:
    """Return the first batch and the increment of a growing one; (0, 0) where it does not grow."""
    words = str(f.options.get("rampup") or "").split()
    if len(words) != 3 or not all(word.isdigit() for word in words) or f.on("shrink_batch"):
        return 0, 0
    return int(words[0]), int(words[1])


def _ramp_broken(f: Facts) -> bool:
    """M34: every batch on the way is a multiple of dp*micro_batch, the last one is met exactly."""
    first, step = _ramp(f)
    share = f.dp * f.micro_batch
    if not step or not share:
        return False
    return first % share > 0 or step % share > 0 or (f.global_batch - first) % step > 0


def _ramp_said(f: Facts) -> str:
    first, step = _ramp(f)
    return (
        f"--rampup-batch-size goes from {first} by {step} to {f.global_batch}; first batch and "
        f"increment must be multiples of dp*micro_batch={f.dp * f.micro_batch}, and increments "
        "must end at the global batch"
    )


def _connections(f: Facts) -> bool:
    """M14: unset may be set outside the file; another value cannot be right."""
    if f.on("megatron_fsdp") or f.on("torch_fsdp2"):
        return False
    return f.tp * f.cp > 1 and str(f.options.get("CUDA_DEVICE_MAX_CONNECTIONS") or "1") != "1"


RULES: tuple[Rule, ...] = (
    Rule("M1", _BOTH, _ARGUMENTS, lambda f: f.world % (f.tp * f.cp * f.pp) > 0, _world),
    Rule("M2", _BOTH, _STATE, lambda f: f.world % (f.etp * f.ep * f.pp) > 0, _expert_world),
    Rule("M3", _BOTH, _CONFIG, lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("M4", _BOTH, _CONFIG,
         lambda f: f.kv_heads > 0 and not f.mla
         and f.kv_heads % f.tp > 0 and f.tp % f.kv_heads > 0, _groups),
    Rule("M5", _BOTH, _ARGUMENTS, lambda f: _equal_stages(f) and _ends(f) % f.pp > 0, _layers),
    Rule("M6", _BOTH, _ARGUMENTS,
         lambda f: f.vpp > 1 and _equal_stages(f) and _ends(f) % f.pp == 0
         and _ends(f) // f.pp % f.vpp > 0,
         lambda f: divisor("vpp", f.vpp, "layers per pipeline rank", _ends(f) // f.pp)),
    Rule("M7", _READ, _ARGUMENTS,
         lambda f: sum(f.on(n) for n in ("chunk_layers", "chunks", "layer_layout")) > 1,
         lambda f: "only one of --num-layers-per-virtual-pipeline-stage, "
         "--num-virtual-stages-per-pipeline-rank and --pipeline-model-parallel-layout may be set"),
    Rule("M8", _BOTH, _ARGUMENTS,
         lambda f: f.vpp > 1 and f.pp <= (2 if f.on("no_overlap_p2p") else 1),
         lambda f: f"vpp={f.vpp} needs pp > {2 if f.on('no_overlap_p2p') else 1}, "
         f"pp is {f.pp}; try pp {3 if f.on('no_overlap_p2p') else 2} or vpp 1"),
    Rule("M9", _BOTH, _SCHEDULES, _rounds, _rounds_said),
    Rule("M10", _BOTH, "core/num_microbatches_calculator.py",
         lambda f: f.micro_batch > 0 and f.global_batch % (f.micro_batch * f.dp) > 0,
         lambda f: multiple("global_batch", f.global_batch, f.micro_batch * f.dp,
                            "dp*micro_batch")),
    Rule("M11", _BOTH, _ARGUMENTS, lambda f: f.cp > 1 and f.seq_len % (2 * f.cp) > 0,
         lambda f: multiple("seq_len", f.seq_len, 2 * f.cp, "2*cp")),
    Rule("M12", _BOTH, _ARGUMENTS,
         lambda f: "a2a+p2p" in str(f.options.get("cp_comm_type")) and not f.on("cp_sizes"),
         lambda f: "--cp-comm-type a2a+p2p needs --hierarchical-context-parallel-sizes with "
         f"product cp={f.cp}"),
    Rule("M13", _BOTH, "core/tensor_parallel/mappings.py",
         lambda f: f.sequence_parallel and f.tp > 1 and f.seq_len // f.cp % f.tp > 0,
         lambda f: multiple("seq_len", f.seq_len, f.cp * f.tp, "cp*tp, sequence parallel")),
    Rule("M14", _READ, _ARGUMENTS, _connections,
         lambda f: "tp or cp > 1 needs CUDA_DEVICE_MAX_CONNECTIONS=1 on GPUs before Blackwell, it "
         f"is {f.options.get('CUDA_DEVICE_MAX_CONNECTIONS')}"),
    Rule("M14b", _READ, _ARGUMENTS, _fsdp_connections,
         lambda f: "FSDP needs CUDA_DEVICE_MAX_CONNECTIONS unset or above 1; remove the export"),
    Rule("M15", _BOTH, _CONFIG,
         lambda f: f.options.get("granularity") == "full"
         and not (f.on("recompute_method") and f.on("recompute_num_layers")),
         lambda f: "--recompute-granularity full needs --recompute-method uniform or block, and "
         "--recompute-num-layers"),
    Rule("M15b", _BOTH, _CONFIG,
         lambda f: f.options.get("granularity") == "selective" and f.on("recompute_method"),
         lambda f: "--recompute-granularity selective excludes --recompute-method; remove it"),
    Rule("M16", _BOTH, _CONFIG, lambda f: f.on("distribute_saved") and f.sequence_parallel,
         lambda f: "--distribute-saved-activations excludes --sequence-parallel; remove one"),
    Rule("M17", _BOTH, _CONFIG,
         lambda f: f.on("offload_layers") and (f.pp > 1 or f.recompute is not Recompute.NONE),
         lambda f: "--cpu-offloading-num-layers excludes pipelines and recompute; set pp 1 and no "
         "recompute, or remove it"),
    Rule("M18", _READ, _CONFIG, lambda f: bool(_not_offloaded(f)),
         lambda f: f"--offload-modules: {', '.join(sorted(_not_offloaded(f)))} cannot be "
         f"offloaded; use {', '.join(sorted(OFFLOADED))}"),
    Rule("M17b", _BOTH, _CONFIG, lambda f: _option(f, "offload_layers") >= f.layers > 0,
         lambda f: f"--cpu-offloading-num-layers {_option(f, 'offload_layers')} must be below "
         f"layers={f.layers}; try {f.layers - 1}"),
    Rule("M18b", _READ, _CONFIG,
         lambda f: f.on("fine_offload") and not f.on("offload_modules"),
         lambda f: "--fine-grained-activation-offloading needs --offload-modules; try core_attn"),
    Rule("M18c", _READ, _CONFIG,
         lambda f: "attn_proj" in _modules(f) and "core_attn" not in _modules(f),
         lambda f: "--offload-modules attn_proj needs core_attn beside it; add core_attn"),
    Rule("M18d", _READ, _CONFIG,
         lambda f: "fused_group_mlp" in _modules(f)
         and bool(_modules(f) & {"expert_fc1", "moe_act"}),
         lambda f: "--offload-modules fused_group_mlp holds expert_fc1 and moe_act; remove those"),
    Rule("M18e", _READ, _CONFIG,
         lambda f: f.on("fine_offload") and _option(f, "offload_layers") > 0,
         lambda f: "--fine-grained-activation-offloading excludes --cpu-offloading-num-layers; "
         "remove one"),
    Rule("M19", _BOTH, _ARGUMENTS, lambda f: f.on("optimizer_offload") and not f.on("precise"),
         lambda f: "--optimizer-cpu-offload needs --use-precision-aware-optimizer; add it"),
    Rule("M20", _BOTH, _ARGUMENTS,
         lambda f: f.on("overlap_gather")
         and not (f.on("distributed_optimizer") or f.on("megatron_fsdp")),
         lambda f: "--overlap-param-gather needs --use-distributed-optimizer; add it"),
    Rule("M20b", _BOTH, _ARGUMENTS,
         lambda f: f.on("overlap_gather") and not f.on("overlap_reduce"),
         lambda f: "--overlap-param-gather needs --overlap-grad-reduce; add it"),
    Rule("M21", _READ, _ARGUMENTS, lambda f: f.on("torch_fsdp2") and bool(_torch_fsdp2(f)),
         lambda f: f"--use-torch-fsdp2 excludes {', '.join(_torch_fsdp2(f))}"),
    Rule("M22", _READ, _ARGUMENTS,
         lambda f: f.on("megatron_fsdp")
         and str(f.options.get("ckpt_format", "fsdp_dtensor")) != "fsdp_dtensor",
         lambda f: "--use-megatron-fsdp needs --ckpt-format fsdp_dtensor"),
    Rule("M23", _BOTH, _ARGUMENTS, lambda f: f.ep > 1 and f.layers > 0 and not f.experts,
         lambda f: f"ep={f.ep} needs a model with experts; try ep 1"),
    Rule("M23b", _BOTH, _ARGUMENTS, lambda f: f.experts % f.ep > 0,
         lambda f: divisor("ep", f.ep, "experts", f.experts)),
    Rule("M24", _READ, _CONFIG, lambda f: f.on("moe_overlap") and bool(_moe_overlap(f)),
         lambda f: f"--overlap-moe-expert-parallel-comm excludes {', '.join(_moe_overlap(f))}"),
    Rule("M25", _READ, _ARGUMENTS, lambda f: f.on("delay_wgrad") and not f.on("moe_overlap"),
         lambda f: "--delay-wgrad-compute needs --overlap-moe-expert-parallel-comm"),
    Rule("M25b", _BOTH, _ARGUMENTS,
         lambda f: f.on("tp_overlap") and not (f.sequence_parallel and f.tp > 1),
         lambda f: "--tp-comm-overlap needs --sequence-parallel and tp > 1"),
    Rule("M26", _READ, _STATE, lambda f: f.dp * f.cp % max(1, f.shard_optimizer) > 0,
         lambda f: divisor("shard_optimizer", f.shard_optimizer, "dp*cp", f.dp * f.cp)),
    Rule("M28", _BOTH, "core/tensor_parallel/layers.py", lambda f: f.ffn_hidden % f.tp > 0,
         lambda f: divisor("tp", f.tp, "ffn_hidden", f.ffn_hidden)),
    Rule("M29", _BOTH, "core/transformer/moe/experts.py",
         lambda f: f.etp > 1 and f.expert_ffn % f.etp > 0,
         lambda f: divisor("etp", f.etp, "moe ffn_hidden", f.expert_ffn)),
    Rule("M30", _BOTH, _CONFIG, lambda f: f.experts > 0 and f.tp > 1 and not f.sequence_parallel,
         lambda f: f"experts with tp={f.tp} need --sequence-parallel; add it or set tp 1"),
    Rule("M31", _BOTH, "core/distributed/distributed_data_parallel.py",
         lambda f: f.zero > 1 and not (f.on("megatron_fsdp") or f.on("torch_fsdp2")),
         lambda f: "the distributed optimizer is ZeRO-1, weights and gradients stay whole; "
         "try ZeRO 1 or 0"),
    Rule("M32", _READ, "core/pipeline_parallel_layer_layout.py",
         lambda f: bool(f.stages) and sum(f.stages) != f.layers,
         lambda f: f"the stages hold {sum(f.stages)} layers, the model has {f.layers}"),
    Rule("M33", _READ, "core/pipeline_parallel_layer_layout.py",
         lambda f: bool(f.stages) and len(f.stages) % f.pp > 0,
         lambda f: f"pp={f.pp} does not divide the {len(f.stages)} stages of the layout; "
         f"try pp {near(f.pp, lambda n: len(f.stages) % n == 0, len(f.stages))}"),
    Rule("M34", _RAMP, "core/num_microbatches_calculator.py", _ramp_broken, _ramp_said),
    Rule("M35", _BOTH, _ARGUMENTS, lambda f: f.offload_weights,
         lambda f: "weights stay on the GPU; leave out offload_weights"),
)  # fmt: skip

# What holds for a program around Megatron-Core that fills in the other arguments by itself.
_FILLED_IN = {"M7", "M12", "M15", "M15b", "M19", "M20", "M20b", "M21", "M22", "M25"}
WRAPPED: tuple[Rule, ...] = tuple(rule for rule in RULES if rule.id not in _FILLED_IN)


def megatron_problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    """Return one sentence for every rule that a layout of the planner breaks on Megatron-Core.

    Stages of unequal layers are legal: ``--pipeline-model-parallel-layout`` writes them out.
    """
    facts = Facts(**facts_of(model, job, layout), free_stages=True)  # type: ignore[arg-type]
    return broken(RULES, facts)
