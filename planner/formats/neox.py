"""GPT-NeoX's YAML, read: Megatron's model and degrees, DeepSpeed's batch, precision and ZeRO.

Names are written with dashes or underscores (``megatron/neox_arguments``).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.formats.deepspeed import SETTINGS as DEEPSPEED
from planner.formats.deepspeed import is_neutral as is_deepspeed
from planner.formats.deepspeed import offload_of
from planner.formats.loose import load_loose, without_holes
from planner.formats.setup import (
    Meaning,
    Reading,
    Setup,
    number,
    sort_settings,
    switch,
    text_of,
    whole,
)
from planner.layout.layout import Recompute
from planner.spec.model import ModelSpec
from planner.spec.problems import explain
from planner.spec.software import MEGATRON_DEEPSPEED, MEGATRON_DEEPSPEED_FP16

SETTINGS: dict[str, Meaning] = DEEPSPEED | {
    "pipe_parallel_size": Meaning("pp", whole, "pp"),
    "model_parallel_size": Meaning("tp", whole, "tp"),
    "context_parallel_size": Meaning("cp", whole, "cp"),
    "sequence_parallel": Meaning("sequence_parallel", switch, "sequence parallel"),
    "global_num_gpus": Meaning("gpus", whole, "GPUs"),
    "num_layers": Meaning("layers", whole, "layers"),
    "hidden_size": Meaning("hidden", whole, "hidden width"),
    "intermediate_size": Meaning("ffn_hidden", whole, "MLP width"),
    "num_attention_heads": Meaning("heads", whole, "heads"),
    "num_kv_heads": Meaning("kv_heads", whole, "key/value heads"),
    "seq_length": Meaning("seq_len", whole, "tokens of a sequence"),
    "max_position_embeddings": Meaning("positions", whole, "positions"),
    "pos_emb": Meaning("position_type", text_of, "positions by", True),
    "norm": Meaning("norm", text_of, "norm"),
    "activation": Meaning("activation", text_of, "activation"),
    "no_weight_tying": Meaning("untied", switch, "untied embeddings"),
    "gpt_j_residual": Meaning("parallel_block", switch, "parallel attention and MLP"),
    "use_bias_in_attn_linear": Meaning("attention_bias", switch, "biases of attention"),
    "use_bias_in_mlp": Meaning("mlp_bias", switch, "biases of the MLP"),
    "padded_vocab_size": Meaning("vocab", whole, "vocabulary"),
    "tokenizer_type": Meaning("tokenizer", text_of, "tokenizer"),
    "sliding_window_width": Meaning("window", whole, "attention window"),
    "moe_num_experts": Meaning("experts", whole, "experts"),
    "checkpoint_activations": Meaning("recompute", switch, "recompute full"),
    "checkpoint_num_layers": Meaning("recompute_group", whole, "layers of a recomputed group"),
    "hidden_dropout": Meaning("hidden_dropout", number, "dropout"),
    "attention_dropout": Meaning("attention_dropout", number, "attention dropout"),
    "precision": Meaning("precision", text_of, "precision"),
}
_NEUTRAL = re.compile(
    r"(vocab_file|merge_file|save|load|data|train|valid|test|lr|min_lr|warmup|eval|log|split|seed|"
    r"rotary|rope|init_method|output_layer|scaled_|bias_|optimizer|weight_decay|clip|distributed|"
    r"synchronize|keep_last|tensorboard|wandb|use_wandb|attention_config|sparsity|scheduler|launcher|"
    r"deepspeed|include|exclude|hostfile|num_(nodes|gpus|workers)|tokenizer|mmap|shuffle|finetune|"
    r"iteration|checkpoint_|extra_save|print|git|text_gen|sample_|prompt|layernorm_|rms_norm_|"
    r"make_vocab|mup|use_(mup|bias_in_norms|checkpoint_lr|cpu|flash)|partition_activations|comment|"
    r"do_train|user_script|exit|short_seq|pack|label|char|autotuning|fp32_allreduce|comet|onnx|"
    r"dynamic_loss|loss_scale|override|gmlp|maximum|lazy|s3_|moe_|norm_factor|apply_query)"
)
_GATED = {"swiglu", "geglu", "reglu", "bilinear", "glu"}
_VOCABULARIES = {"GPT2BPETokenizer": 50257, "HFTokenizer": 50277}  # the second is Pythia's
_NORMS = {"rmsnorm", "te_rmsnorm"}


def is_neutral(name: str) -> bool:
    """Whether a setting is GPT-NeoX's and touches neither layout, memory nor step time."""
    return is_deepspeed(name) or _NEUTRAL.match(name) is not None


def read_neox(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a GPT-NeoX YAML file says."""
    loose = load_loose(path, text, given)
    named = {name.replace("-", "_"): value for name, value in loose.settings.items()}
    decided, problems = without_holes(named, SETTINGS, str(path))
    reading = sort_settings(decided, SETTINGS, is_neutral, str(path))
    reading.problems += problems
    reading.assumed += loose.remarks
    values = reading.values
    model, is_open = _model(path, values, reading)
    tp, cp, pp = (max(1, values.get(name, 1)) for name in ("tp", "cp", "pp"))
    zero = values.get("zero", 0)
    _remarks(values, pp, model, reading)
    precision = _precision(values)
    given_sizes = {"micro_batch", "accumulation", "stated_batch"} & set(values)
    fields: dict[str, Any] = {
        "recompute": Recompute.FULL if values.get("recompute") else Recompute.NONE,
    } | offload_of(values, zero, reading)
    return Setup(
        framework="neox", path=str(path), model=model, tp=tp, cp=cp, pp=pp,
        software=MEGATRON_DEEPSPEED_FP16 if precision == "fp16" else MEGATRON_DEEPSPEED,
        micro_batch=values.get("micro_batch"), seq_len=values.get("seq_len"),
        accumulation=values.get("accumulation", 1 if given_sizes == {"micro_batch"} else None),
        global_batch=values.get("stated_batch"), precision=precision, zero=zero,
        sequence_parallel=bool(values.get("sequence_parallel")) and tp > 1,
        gpus=values.get("gpus"), open_fields=is_open, options=values, **fields, **reading.lists(),
    )  # fmt: skip


def _precision(values: Mapping[str, Any]) -> str:
    """Return the precision; without a section GPT-NeoX computes in fp16."""
    stated = str(values.get("precision", "")).lower()
    if values.get("bf16") or stated in ("bfloat16", "bf16"):
        return "bf16"
    return "fp32" if values.get("fp16") is False or stated == "fp32" else "fp16"


def _remarks(
    values: Mapping[str, Any], pp: int, model: ModelSpec | None, reading: Reading
) -> None:  # fmt: skip
    optimizer = str(values.get("optimizer", "adam")).lower()
    unpriced = {
        f"optimizer {optimizer} (estimated as AdamW)": "adam" not in optimizer,
        "groups of recomputed layers": values.get("recompute_group", 1) > 1,
        "experts (moe_num_experts)": values.get("experts", 1) > 1,
    }
    reading.unpriced += [what for what, present in unpriced.items() if present]
    if model is not None and model.layers % pp:
        reading.assumed.append(
            f"DeepSpeed deals {model.layers} layers over {pp} stages; the first ones get one more"
        )
    if values.get("sequence_parallel") and values.get("tp", 1) == 1:
        reading.silent.append("sequence_parallel does nothing with model_parallel_size 1")


def _model(
    path: Path, values: Mapping[str, Any], reading: Reading
) -> tuple[ModelSpec | None, tuple[str, ...]]:
    """Return the model, and the fields that the file leaves to the tokenizer."""
    missing = [name for name in ("layers", "hidden", "heads") if not values.get(name)]
    if missing:
        reading.assumed.append("the model is not in the file")
        return None, ()
    vocab = values.get("vocab")
    if not vocab:
        vocab = _VOCABULARIES.get(values.get("tokenizer", "GPT2BPETokenizer"), 50277)
        reading.assumed.append(f"the vocabulary is in the tokenizer: {vocab} tokens assumed, "
                               "--model states it")  # fmt: skip
    try:
        return ModelSpec.model_validate(_fields(path, values, vocab)), () if values.get(
            "vocab") else ("vocab",)  # fmt: skip
    except (ValidationError, ZeroDivisionError) as error:
        details = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        reading.problems += [f"{path}: {explain(ModelSpec, {}, one)}" for one in details]
        return None, ()


def _fields(path: Path, values: Mapping[str, Any], vocab: int) -> dict[str, Any]:
    hidden, gated = values["hidden"], values.get("activation", "gelu") in _GATED
    learned = values.get("position_type", "learned") == "learned"
    bias = bool(values.get("attention_bias", True))
    return {
        "name": path.stem, "layers": values["layers"], "hidden": hidden, "heads": values["heads"],
        "kv_heads": values.get("kv_heads") or values["heads"],
        "head_dim": hidden // values["heads"], "vocab": vocab, "gated_mlp": gated,
        "ffn_hidden": values.get("ffn_hidden") or (8 * hidden // 3 if gated else 4 * hidden),
        "tied_embeddings": not values.get("untied"),
        "positions": values.get("positions", 0) if learned else 0,
        "norm_bias": values.get("norm", "layernorm") not in _NORMS,
        "qkv_bias": bias, "attention_out_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", True)),
        "parallel_block": bool(values.get("parallel_block")),
        "sliding_window": values.get("window", 0),
    }  # fmt: skip
