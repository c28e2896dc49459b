"""What torchtitan refuses, hangs on, or runs with wrong gradients: one record per rule.

Asked of the 0.2.0 wheel (the last with TOML) or read in torchtitan b5bcd76 (2026-08).
"""

from functools import lru_cache

from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.rule import Facts, Rule, broken, divisor, facts_of, multiple, near
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

_DIMS = "torchtitan/distributed/parallel_dims.py"
_PIPELINE = "torchtitan/distributed/pipeline_parallel.py"
_ALL = "torchtitan 0.1 to 0.3"
_TOML = "torchtitan 0.1 to 0.2"
SPLIT_BACKWARD = ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
SINGLE = ("1F1B", "GPipe")


def _product(f: Facts) -> bool:
    stated = int(str(f.options.get("stated_dp") or 0))
    return f.world % (f.tp * f.cp * f.pp) > 0 or (stated > 0 and stated != f.dp)


def _product_said(f: Facts) -> str:
    stated = int(str(f.options.get("stated_dp") or f.dp))
    product = f.tp * f.cp * f.pp * stated
    return (
        f"dp_replicate*dp_shard*cp*tp*pp={product} is not the {f.world} GPUs; try "
        f"data_parallel_shard_degree -1 or GPUs {product}"
    )


def _schedule(f: Facts) -> str:
    return str(f.options.get("schedule") or ("1F1B" if f.vpp == 1 else "Interleaved1F1B"))


def _expert_borders(f: Facts) -> tuple[int, int]:
    """Return what must divide ep, and what ep must divide: experts borrow cp, shards and tp."""
    sharded = max(f.shard_optimizer, f.cp)  # data_parallel_shard_degree * cp; copies lend nothing
    return (f.cp, sharded) if f.etp == f.tp else (f.cp * f.tp, sharded * f.tp)


def _expert_grid(f: Facts) -> bool:
    inner, outer = _expert_borders(f)
    return f.ep > 1 and (f.ep % inner > 0 or outer % f.ep > 0)


def _expert_grid_said(f: Facts) -> str:
    inner, outer = _expert_borders(f)
    tried = near(f.ep, lambda n: n % inner == 0 and outer % n == 0, outer)
    return f"ep={f.ep} must be a multiple of {inner} and a divisor of {outer}; try ep {tried}"


def _chunks(f: Facts) -> bool:
    single = _schedule(f) in SINGLE
    return f.pp > 1 and (f.vpp > 1 if single else f.vpp < 2)


def _single_micro_batches(f: Facts) -> int:
    """Micro-batches that go through the pipeline at once; accumulation repeats the pipeline."""
    return int(str(f.options.get("pipeline_micro_batches") or f.micro_batches))


RULES: tuple[Rule, ...] = (
    Rule("T1", _ALL, _DIMS, _product, _product_said),
    Rule("T2", _TOML, _DIMS, lambda f: f.ep > 1 and f.etp not in (1, f.tp),
         lambda f: f"etp={f.etp} must be 1 or tp={f.tp}; try etp 1"),
    Rule("T3", _TOML, _DIMS, lambda f: f.etp in (1, f.tp) and _expert_grid(f), _expert_grid_said),
    Rule("T4", _ALL, "torchtitan/train.py",
         lambda f: f.seq_len % (f.tp * (2 * f.cp if f.cp > 1 else 1)) > 0,
         lambda f: multiple("seq_len", f.seq_len, f.tp * (2 * f.cp if f.cp > 1 else 1),
                            "tp" if f.cp == 1 else "2*cp*tp")),
    Rule("T5", _ALL, _PIPELINE, _chunks,
         lambda f: f"schedule {_schedule(f)} takes "
         f"{'one stage' if _schedule(f) in SINGLE else 'at least 2 stages'} per rank, "
         f"it has {f.vpp}; change pipeline_parallel_layers_per_stage"),
    Rule("T6", _ALL, "torch/distributed/tensor/parallel", lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("T7", _ALL, "torch/distributed/tensor/parallel",
         lambda f: not f.mla and f.kv_heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "kv_heads", f.kv_heads)),
    Rule("T8", _ALL, "torch/distributed/tensor/parallel", lambda f: f.ffn_hidden % f.tp > 0,
         lambda f: divisor("tp", f.tp, "ffn_hidden", f.ffn_hidden)),
    Rule("T9", _ALL, "torchtitan/train.py",
         lambda f: f.micro_batch > 0 and f.global_batch % (f.micro_batch * f.dp) > 0,
         lambda f: multiple("global_batch_size", f.global_batch, f.micro_batch * f.dp,
                            "dp*micro_batch")),
    Rule("T10", _ALL, "torch/distributed/pipelining/schedules.py",
         lambda f: f.pp > 1 and 0 < _single_micro_batches(f) < f.pp,
         lambda f: f"{_single_micro_batches(f)} micro-batches are fewer than pp={f.pp}; try "
         f"local_batch_size {f.pp * f.micro_batch}"),
    Rule("T11", _ALL, "torch/distributed/fsdp, measured with torch 2.13",
         lambda f: f.pp > 1 and _schedule(f) in SPLIT_BACKWARD
         and f.options.get("reshard") == "always",
         lambda f: f"schedule {_schedule(f)} with fsdp_reshard_after_forward always gives wrong "
         "gradients without an error; set it to never"),
    Rule("T12", _ALL, "torch/utils/checkpoint.py, seen with torch 2.13",
         lambda f: f.pp > 1 and _schedule(f) in SPLIT_BACKWARD
         and f.recompute is Recompute.SELECTIVE,
         lambda f: f"schedule {_schedule(f)} stops under selective activation checkpointing by "
         "operator; set activation_checkpoint.mode none or full"),
    Rule("T13", _ALL, "torchtitan/distributed/tensor_parallel.py",
         lambda f: f.on("async_tp") and not f.on("compile"),
         lambda f: "enable_async_tensor_parallel needs compile.enable; switch it on"),
    Rule("T14", _ALL, "torchtitan/distributed/activation_checkpoint.py",
         lambda f: f.options.get("recompute_mode") == "memory_budget" and not f.on("compile"),
         lambda f: "activation_checkpoint.mode memory_budget needs compile.enable; switch it on"),
    Rule("T15", _ALL, "torchtitan/models/moe", lambda f: f.experts % f.ep > 0,
         lambda f: divisor("ep", f.ep, "experts", f.experts)),
    Rule("T16", _ALL, _DIMS, lambda f: f.ep > 1 and not f.experts and f.layers > 0,
         lambda f: f"ep={f.ep} needs a model with experts; try ep 1"),
    Rule("T17", _ALL, _PIPELINE, lambda f: f.pp * f.vpp > f.layers + 2 > 2,
         lambda f: f"pp*vpp={f.pp * f.vpp} stages are more than layers={f.layers}; try pp "
         f"{near(f.pp, lambda n: n <= f.layers, f.pp)}"),
    Rule("T18", _ALL, _PIPELINE, lambda f: bool(f.stages) and sum(f.stages) != f.layers > 0,
         lambda f: f"the stages hold {sum(f.stages)} layers, the model has {f.layers}"),
)  # fmt: skip

# family and flavor of torchtitan's registries, and the shipped model that they are
FLAVORS = {
    ("llama3", "8b"): "llama-3-8b", ("llama3", "70b"): "llama-3-70b",
    ("llama3", "405b"): "llama-3.1-405b", ("deepseek_v3", "671b"): "deepseek-v3",
    ("qwen3", "8b"): "qwen3-8b", ("qwen3", "30b-a3b"): "qwen3-30b-a3b",
    ("qwen3", "235b-a22b"): "qwen3-235b-a22b",
}  # fmt: skip
PRECISIONS = ("bf16", "fp8", "mxfp8")


@lru_cache(maxsize=64)
def flavor_of(model: ModelSpec) -> tuple[str, str] | None:
    """Return torchtitan's family and flavor of a model; None where it has none."""
    for (family, flavor), shipped in FLAVORS.items():
        if load_model(shipped).model_copy(update={"name": model.name}) == model:
            return family, flavor.upper()
    return None


def sharding_problems(layout: Layout) -> list[str]:
    """Return what of a sharding torchtitan 0.1 to 0.2 has no setting for."""
    shard, ranks = layout.shard, layout.dp * layout.cp
    problems = []
    if layout.pp > 1 and shard not in (Shard(), Shard.zero(1, ranks)):
        problems.append(f"with pp={layout.pp}, torchtitan shards as ZeRO-1 over all ranks, or not")
    whole = [Shard.zero(stage, ranks) for stage in (0, 2, 3)]
    hybrid = shard.weights == shard.gradients == shard.optimizer
    if layout.pp == 1 and ranks > 1 and shard not in whole and not hybrid:
        problems.append("torchtitan has no ZeRO-1; try ZeRO 0, 2 or 3")
    if shard == Shard() and ranks > 1 and layout.cp > 1:
        problems.append("torchtitan shards over cp always; try ZeRO 3")
    if 1 < shard.optimizer < ranks and (shard.optimizer % layout.cp or layout.cp > shard.optimizer):
        problems.append(f"shards over {shard.optimizer} ranks are no multiple of cp={layout.cp}")
    return problems


def unwritable(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    """Return what of a job has no setting in torchtitan 0.1 to 0.2, whatever its stages are."""
    problems = sharding_problems(layout)
    if flavor_of(model) is None:
        known = ", ".join(FLAVORS.values())
        problems.append(f"model {model.name!r} is no flavor of torchtitan; known: {known}")
    if job.precision not in PRECISIONS:
        problems.append(f"precision {job.precision!r}: use bf16, fp8 or mxfp8")
    if layout.tp > 1 and not layout.sequence_parallel:
        problems.append("torchtitan's tensor parallelism is sequence parallel; set it")
    return problems


def torchtitan_problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    """Return one sentence for every reason why torchtitan cannot run a layout of the planner.

    Stages of unequal layers are legal: ``module_fqns_per_model_part`` writes them out.
    """
    facts = Facts(**facts_of(model, job, layout), free_stages=True)  # type: ignore[arg-type]
    problems = broken(RULES, facts) + unwritable(model, job, layout)
    if layout.shard.secondary:
        problems.append("torchtitan keeps no second shard of the weights")
    if job.optimizer != "adamw" or job.lora_rank:
        problems.append("only adamw without adapters is written for torchtitan")
    if layout.schedule:
        problems.append(f"schedule {layout.schedule}: only 1F1B and Interleaved1F1B are written")
    if layout.offload.fraction or bool(layout.offload_optimizer) != layout.offload_weights:
        problems.append("torchtitan moves optimizer and weights to the host together, or nothing")
    return problems
