"""nanotron's YAML configuration, read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.formats.loose import load_loose, without_holes
from planner.formats.methods import method_problems
from planner.formats.setup import Meaning, Reading, Setup, sort_settings, switch, text_of, whole
from planner.formats.unsupported import (
    offloaded,
    partial_recompute,
    rank_order,
    refuse,
    second_shards,
    uneven_stages,
    unlike_llama,
)
from planner.formats.work import Work
from planner.layout.layout import Recompute
from planner.layout.rule import Facts, broken, facts_of
from planner.layout.rules_nanotron import RULES
from planner.layout.stages import balance_layers
from planner.model.parameters import layer_parameters
from planner.spec.model import ModelSpec
from planner.spec.problems import explain
from planner.spec.software import NANOTRON

_MODEL = "model.model_config."
_PARALLEL = "parallelism."
SETTINGS: dict[str, Meaning] = {
    f"{_PARALLEL}dp": Meaning("dp", whole, "dp"),
    f"{_PARALLEL}tp": Meaning("tp", whole, "tp"),
    f"{_PARALLEL}pp": Meaning("pp", whole, "pp"),
    f"{_PARALLEL}expert_parallel_size": Meaning("ep", whole, "ep"),
    f"{_PARALLEL}context_parallel_size": Meaning("cp", whole, "cp"),
    f"{_PARALLEL}pp_engine": Meaning("engine", text_of, "pipeline"),
    f"{_PARALLEL}tp_mode": Meaning("tp_mode", text_of, "tensor-parallel mode"),
    f"{_PARALLEL}tp_linear_async_communication": Meaning("tp_async", switch, "tp overlap"),
    f"{_PARALLEL}tp_recompute_allgather": Meaning("regather", switch, "gather again in backward"),
    f"{_PARALLEL}recompute_layer": Meaning("recompute", switch, "recompute full"),
    "tokens.micro_batch_size": Meaning("micro_batch", whole, "micro-batch"),
    "tokens.batch_accumulation_per_replica": Meaning(
        "accumulation", whole, "micro-batches of a step"
    ),
    "tokens.sequence_length": Meaning("seq_len", whole, "tokens of a sequence"),
    "optimizer.zero_stage": Meaning("zero", whole, "ZeRO"),
    "optimizer.accumulate_grad_in_fp32": Meaning("fp32_gradients", switch, "fp32 gradients"),
    "model.dtype": Meaning("dtype", text_of, "precision"),
    f"{_MODEL}num_hidden_layers": Meaning("layers", whole, "layers"),
    f"{_MODEL}hidden_size": Meaning("hidden", whole, "hidden width"),
    f"{_MODEL}num_attention_heads": Meaning("heads", whole, "heads"),
    f"{_MODEL}num_key_value_heads": Meaning("kv_heads", whole, "key/value heads"),
    f"{_MODEL}intermediate_size": Meaning("ffn_hidden", whole, "MLP width"),
    f"{_MODEL}vocab_size": Meaning("vocab", whole, "vocabulary"),
    f"{_MODEL}tie_word_embeddings": Meaning("tied", switch, "tied embeddings"),
    f"{_MODEL}sliding_window_size": Meaning("window", whole, "attention window"),
    f"{_MODEL}attention_bias": Meaning("bias", switch, "biases of attention"),
    f"{_MODEL}moe_config.num_experts": Meaning("experts", whole, "experts"),
    f"{_MODEL}moe_config.top_k": Meaning("top_k", whole, "experts per token"),
    f"{_MODEL}moe_config.moe_intermediate_size": Meaning("expert_ffn", whole, "expert width"),
    f"{_MODEL}moe_config.shared_expert_intermediate_size": Meaning(
        "shared_ffn", whole, "shared expert width"
    ),
    f"{_MODEL}moe_config.enable_shared_expert": Meaning("shared", switch, "shared expert"),
}
_NEUTRAL = {
    "checkpoints", "data", "data_stages", "general", "lighteval", "logging",
    "metrics_logging", "profiler",
    "tokenizer", "s3_upload", "model", "optimizer", "tokens", "parallelism",
}  # fmt: skip
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def is_neutral(name: str) -> bool:
    """Whether a setting is nanotron's; its sections hold nothing else that costs time."""
    section = name.split(".")[0]
    return (section in _NEUTRAL and not name.startswith(_PARALLEL)) or name in {
        f"{_PARALLEL}moe_layer_recompute"
    }


def read_nanotron(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a nanotron YAML file says."""
    loose = load_loose(path, text, given)
    decided, problems = without_holes(loose.settings, SETTINGS, str(path))
    reading = sort_settings(decided, SETTINGS, is_neutral, str(path))
    reading.problems += problems
    reading.assumed += loose.remarks
    values = reading.values
    tp, cp, pp, dp, ep = (max(1, values.get(name, 1)) for name in ("tp", "cp", "pp", "dp", "ep"))
    model = _model(path, values, reading)
    if values.get("zero", 0) > 1:
        reading.silent.append(f"zero_stage {values['zero']} acts as 1: only the optimizer is split")
    if "tp_mode" in values and tp == 1:
        reading.silent.append("tp_mode does nothing with tp 1")
    afab = values.get("engine", "1f1b") == "afab"
    reading.unpriced += ["all forward passes before all backward passes (afab)"] if afab else []
    return Setup(
        framework="nanotron", path=str(path), software=NANOTRON, model=model, tp=tp, cp=cp, pp=pp,
        ep=ep, dp=dp, gpus=tp * cp * pp * dp, micro_batch=values.get("micro_batch"),
        accumulation=values.get("accumulation", 1), seq_len=values.get("seq_len"),
        precision=_PRECISIONS.get(values.get("dtype", "bfloat16"), "bf16"),
        sequence_parallel=values.get("tp_mode", "ALL_REDUCE").upper() == "REDUCE_SCATTER"
        and tp > 1, zero=int(values.get("zero", 0) > 0),
        recompute=Recompute.FULL if values.get("recompute") else Recompute.NONE,
        stages=_stages(model, pp) if pp > 1 else (), options=values, **reading.lists(),
    )  # fmt: skip


def _stages(model: ModelSpec | None, pp: int) -> tuple[int, ...]:
    """Return the layers of each stage as nanotron deals them out, by size."""
    if model is None or pp > model.layers:
        return ()
    sizes = []
    for layer in range(model.layers):
        parts = layer_parameters(model, model.is_moe_layer(layer))
        sizes.append(float(parts.attention + parts.mlp + parts.experts))
    return balance_layers(tuple(sizes), float(model.vocab * model.hidden), pp)


def _model(path: Path, values: Mapping[str, Any], reading: Reading) -> ModelSpec | None:
    if not {"layers", "hidden", "heads", "ffn_hidden", "vocab"} <= set(values):
        reading.assumed.append("the model is not in the file")
        return None
    moe = None
    if values.get("experts"):
        moe = {
            "experts": values["experts"], "top_k": values.get("top_k", 2),
            "ffn_hidden": values.get("expert_ffn", values["ffn_hidden"]),
            "shared_ffn_hidden": values.get("shared_ffn", 0) if values.get("shared") else 0,
        }  # fmt: skip
    bias = bool(values.get("bias"))
    try:
        return ModelSpec.model_validate({
            "name": path.stem, "layers": values["layers"], "hidden": values["hidden"],
            "heads": values["heads"], "kv_heads": values.get("kv_heads") or values["heads"],
            "head_dim": values["hidden"] // values["heads"], "ffn_hidden": values["ffn_hidden"],
            "vocab": values["vocab"], "tied_embeddings": bool(values.get("tied")),
            "qkv_bias": bias, "sliding_window": values.get("window", 0), "moe": moe,
        })  # fmt: skip
    except ValidationError as error:
        details = error.errors(include_url=False)
        reading.problems += [f"{path}: {explain(ModelSpec, {}, one)}" for one in details]
        return None


def write_nanotron(work: Work) -> str:
    """Return the YAML of a job; ``LayoutError`` with every reason why nanotron cannot run it."""
    import yaml

    model, job, layout = work.model, work.job, work.layout
    facts = Facts(**facts_of(model, job, layout))  # type: ignore[arg-type]
    problems = (
        broken(RULES, facts)
        + rank_order(work, "nanotron")
        + offloaded(work, "nanotron")
        + second_shards(work, "nanotron")
    )
    problems += partial_recompute(work, "nanotron")
    problems += unlike_llama(work, "nanotron", allowed=frozenset({"tied embeddings"}))
    if layout.pp > 1 and work.layers != _stages(model, layout.pp):
        problems += uneven_stages(work, "nanotron") or [
            f"equal stages: nanotron deals {_stages(model, layout.pp)} layers, by size"
        ]
    problems += method_problems(work, "nanotron")
    if model.head_dim * model.heads != model.hidden:
        problems.append(f"head_dim={model.head_dim} is not hidden/heads; nanotron has no setting")
    if layout.shard.optimizer not in (1, layout.dp * layout.cp):
        problems.append("nanotron shards the optimizer over all data-parallel ranks or none")
    if job.precision not in _PRECISIONS.values():
        problems.append(f"precision {job.precision!r}: use bf16 or fp16")
    refuse(problems)
    return yaml.safe_dump(_document(work), sort_keys=False)


def _document(work: Work) -> dict[str, Any]:
    """Return everything nanotron asks of a file; without a data set it trains on random tokens."""
    job, layout = work.job, work.layout
    dtype = next(long for long, short in _PRECISIONS.items() if short == job.precision)
    return {
        "general": {"project": "planner", "run": "plan", "seed": 42},
        "parallelism": {
            "dp": layout.dp, "tp": layout.tp, "pp": layout.pp, "context_parallel_size": layout.cp,
            "expert_parallel_size": layout.ep, "pp_engine": "1f1b",
            "tp_mode": "REDUCE_SCATTER" if layout.sequence_parallel else "ALL_REDUCE",
            "tp_linear_async_communication": layout.sequence_parallel,
            "recompute_layer": work.recompute is Recompute.FULL,
        },
        "tokens": {
            "micro_batch_size": layout.micro_batch, "sequence_length": job.seq_len,
            "batch_accumulation_per_replica": layout.micro_batches(job.global_batch),
            "train_steps": 20,
        },
        "optimizer": {
            "zero_stage": layout.shard.zero_stage(), "accumulate_grad_in_fp32": True,
            "weight_decay": 0.1, "clip_grad": 1.0,
            "optimizer_factory": {"name": "adamW", "adam_beta1": 0.9, "adam_beta2": 0.95,
                                  "adam_eps": 1e-8, "torch_adam_is_fused": True},
            "learning_rate_scheduler": {
                "learning_rate": 1e-4, "min_decay_lr": 1e-5, "lr_warmup_steps": 2,
                "lr_warmup_style": "linear", "lr_decay_style": "cosine",
            },
        },
        "model": {"dtype": dtype, "init_method": {"std": 0.02}, "model_config": _sizes(work)},
        "data_stages": [{"name": "all", "start_training_step": 1,
                         "data": {"dataset": None, "seed": 42, "num_loading_workers": 1}}],
        "checkpoints": {"checkpoints_path": "checkpoints", "checkpoint_interval": 1_000_000,
                        "save_final_state": False},
        "logging": {"iteration_step_info_interval": 1},
    }  # fmt: skip


def _sizes(work: Work) -> dict[str, Any]:
    """Return the model as nanotron's Qwen2 (a Llama, whose attention also splits contexts)."""
    model = work.model
    found: dict[str, Any] = {
        "is_qwen2_config": True, "hidden_size": model.hidden, "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ffn_hidden, "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied_embeddings,
        "max_position_embeddings": work.job.seq_len,
    }  # fmt: skip
    if work.layout.cp > 1:
        found |= {"_attn_implementation": "llama3_ring_attention", "ring_attn_heads_k_stride": 1}
    return found
