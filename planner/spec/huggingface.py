"""Reads a model from a Hugging Face ``config.json``: numbers only, never remote code.

Field names and defaults follow transformers' configuration classes; the parameter count of every
family is compared with transformers' own model in ``tests/model/test_parameters.py``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from planner.errors import SpecError
from planner.spec.files import Document, check, read_document, shipped, shipped_or_file
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from planner.spec.problems import explain


def _named(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class HuggingFaceConfig(BaseModel):
    """The fields of a ``config.json`` that decide a model's cost; all others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    layers: PositiveInt = Field(validation_alias=_named("num_hidden_layers", "n_layer"))
    hidden: PositiveInt = Field(validation_alias=_named("hidden_size", "n_embd"))
    heads: PositiveInt = Field(validation_alias=_named("num_attention_heads", "n_head"))
    vocab: PositiveInt = Field(validation_alias="vocab_size")
    ffn_hidden: PositiveInt | None = Field(
        None, validation_alias=_named("intermediate_size", "n_inner")
    )
    kv_heads: PositiveInt | None = Field(None, validation_alias="num_key_value_heads")
    head_dim: PositiveInt | None = None
    positions: PositiveInt | None = Field(
        None, validation_alias=_named("n_positions", "max_position_embeddings")
    )
    tied: bool | None = Field(None, validation_alias="tie_word_embeddings")
    attention_bias: bool | None = None
    qkv_bias: bool | None = None
    mlp_bias: bool | None = None
    parallel: bool | None = Field(None, validation_alias="use_parallel_residual")
    sliding_window: NonNegativeInt | None = None
    use_sliding_window: bool | None = None
    layer_types: tuple[str, ...] | None = None
    full_layers: NonNegativeInt | None = Field(None, validation_alias="max_window_layers")

    experts: NonNegativeInt | None = Field(
        None, validation_alias=_named("num_local_experts", "num_experts", "n_routed_experts")
    )
    top_k: PositiveInt | None = Field(None, validation_alias="num_experts_per_tok")
    expert_ffn: PositiveInt | None = Field(None, validation_alias="moe_intermediate_size")
    shared_experts: NonNegativeInt | None = Field(None, validation_alias="n_shared_experts")
    shared_ffn: NonNegativeInt | None = Field(
        None, validation_alias="shared_expert_intermediate_size"
    )
    first_moe: NonNegativeInt | None = Field(None, validation_alias="first_k_dense_replace")
    moe_every: PositiveInt | None = Field(None, validation_alias="moe_layer_freq")
    sparse_step: PositiveInt | None = Field(None, validation_alias="decoder_sparse_step")
    dense_layers: tuple[NonNegativeInt, ...] | None = Field(
        None, validation_alias="mlp_only_layers"
    )

    groups: PositiveInt | None = Field(None, validation_alias="n_group")
    top_groups: PositiveInt | None = Field(None, validation_alias="topk_group")

    q_lora_rank: NonNegativeInt | None = None
    kv_lora_rank: PositiveInt | None = None
    qk_nope_head_dim: PositiveInt | None = None
    qk_rope_head_dim: PositiveInt | None = None
    v_head_dim: PositiveInt | None = None
    mtp_layers: NonNegativeInt | None = Field(
        None, validation_alias=_named("num_nextn_predict_layers", "num_mtp_layers")
    )


Fields = dict[str, Any]


def _llama(config: HuggingFaceConfig) -> Fields:
    bias = bool(config.attention_bias)
    mlp_bias = bool(config.mlp_bias)
    return {"qkv_bias": bias, "attention_out_bias": bias, "mlp_bias": mlp_bias}


def _mistral(config: HuggingFaceConfig) -> Fields:
    return {"sliding_window": config.sliding_window or 0}


def _qwen2(config: HuggingFaceConfig) -> Fields:
    return {"qkv_bias": True, "sliding_window": _qwen_window(config)}


def _qwen3(config: HuggingFaceConfig) -> Fields:
    bias = bool(config.attention_bias)
    return {
        "head_dim": config.head_dim or 128,
        "qkv_bias": bias,
        "attention_out_bias": bias,
        "qk_norm": True,
        "sliding_window": _qwen_window(config),
    }


def _qwen_window(config: HuggingFaceConfig) -> int:
    """Return the attention span if every layer has one; a mixture is priced as full attention."""
    windowed = config.use_sliding_window and not config.full_layers
    return (config.sliding_window or 0) if windowed else 0


def _gpt2(config: HuggingFaceConfig) -> Fields:
    return {
        "ffn_hidden": config.ffn_hidden or 4 * config.hidden,
        "positions": config.positions or 1024,
        "tied_embeddings": config.tied is not False,
        "gated_mlp": False,
        "norm_bias": True,
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    }


def _neox(config: HuggingFaceConfig) -> Fields:
    bias = config.attention_bias is not False
    return {
        "gated_mlp": False,
        "norm_bias": True,
        "qkv_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": True,
        "parallel_block": config.parallel is not False,
    }


def _mixtral(config: HuggingFaceConfig) -> Fields:
    moe = MoESpec(
        experts=config.experts or 0, top_k=config.top_k or 0, ffn_hidden=config.ffn_hidden or 0
    )
    return {"moe": moe, "sliding_window": config.sliding_window or 0}


def _qwen_experts(config: HuggingFaceConfig, shared_ffn: int) -> MoESpec | None:
    """Return the experts of Qwen-MoE; zero experts make a dense model."""
    if not config.experts:
        return None
    return MoESpec(
        experts=config.experts,
        top_k=config.top_k or 0,
        ffn_hidden=config.expert_ffn or 0,
        shared_ffn_hidden=shared_ffn,
        shared_gate=shared_ffn > 0,
        every=config.sparse_step or 1,
        dense_layers=config.dense_layers or (),
    )


def _qwen2_moe(config: HuggingFaceConfig) -> Fields:
    return {
        "qkv_bias": config.qkv_bias is not False,
        "sliding_window": _qwen_window(config),
        "moe": _qwen_experts(config, config.shared_ffn or 0),
    }


def _qwen3_moe(config: HuggingFaceConfig) -> Fields:
    # the class of transformers reads head_dim only when the file gives it
    head_dim = config.head_dim or config.hidden // config.heads
    return _qwen3(config) | {"head_dim": head_dim, "moe": _qwen_experts(config, 0)}


def _deepseek(config: HuggingFaceConfig) -> Fields:
    """Return the fields of DeepSeek-V2 and V3; V3's balancing bias is a buffer, no parameter."""
    every, first = config.moe_every or 1, config.first_moe or 0
    moe = MoESpec(
        experts=config.experts or 0,
        top_k=config.top_k or 0,
        ffn_hidden=config.expert_ffn or 0,
        shared_ffn_hidden=(config.shared_experts or 0) * (config.expert_ffn or 0),
        groups=config.groups or 1,
        top_groups=config.top_groups or 1,
        first_layer=first,
        # DeepSeek counts from layer 0, MoESpec.every from layer 1
        dense_layers=tuple(layer for layer in range(first, config.layers) if layer % every),
    )
    mla = MLASpec(
        q_lora_rank=config.q_lora_rank or 0,
        kv_lora_rank=config.kv_lora_rank or 0,
        qk_nope_head_dim=config.qk_nope_head_dim or 0,
        qk_rope_head_dim=config.qk_rope_head_dim or 0,
        v_head_dim=config.v_head_dim or 0,
    )
    return _llama(config) | {
        "kv_heads": config.heads,
        "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        "mtp_layers": config.mtp_layers or 0,
        "moe": moe,
        "mla": mla,
    }


def _gpt_oss(config: HuggingFaceConfig) -> Fields:
    """Return the fields of GPT-OSS: every other layer has the window, if the file lists none."""
    moe = MoESpec(
        experts=config.experts or 0,
        top_k=config.top_k or 0,
        ffn_hidden=config.ffn_hidden or 0,
        expert_bias=True,
        router_bias=True,
    )
    kinds = config.layer_types or ("sliding_attention", "full_attention")
    full = kinds.count("full_attention")
    bias = config.attention_bias is not False
    return {
        "qkv_bias": bias,
        "attention_out_bias": bias,
        "attention_sinks": True,
        "sliding_window": (config.sliding_window or 0) if full < len(kinds) else 0,
        "full_attention_every": round(len(kinds) / full) if full else 0,
        "moe": moe,
    }


_FFN = {"ffn_hidden": "intermediate_size"}
_TOP_K = {"top_k": "num_experts_per_tok"}
_MIXTRAL = _FFN | _TOP_K | {"experts": "num_local_experts"}
_QWEN_MOE = _FFN | _TOP_K | {"experts": "num_experts", "expert_ffn": "moe_intermediate_size"}
_QWEN2_MOE = _QWEN_MOE | {"shared_ffn": "shared_expert_intermediate_size"}
_DEEPSEEK = _FFN | _TOP_K | {name: name for name in MLASpec.model_fields}
_DEEPSEEK |= {"experts": "n_routed_experts", "expert_ffn": "moe_intermediate_size"}
_DEEPSEEK |= {"shared_experts": "n_shared_experts", "first_moe": "first_k_dense_replace"}

# architecture -> (model_type, its own fields, what its file must hold: own name -> field)
_FAMILIES: dict[str, tuple[str, Callable[[HuggingFaceConfig], Fields], dict[str, str]]] = {
    "LlamaForCausalLM": ("llama", _llama, _FFN),
    "MistralForCausalLM": ("mistral", _mistral, _FFN),
    "Qwen2ForCausalLM": ("qwen2", _qwen2, _FFN),
    "Qwen3ForCausalLM": ("qwen3", _qwen3, _FFN),
    "GPT2LMHeadModel": ("gpt2", _gpt2, {}),
    "GPTNeoXForCausalLM": ("gpt_neox", _neox, _FFN),
    "MixtralForCausalLM": ("mixtral", _mixtral, _MIXTRAL),
    "GptOssForCausalLM": ("gpt_oss", _gpt_oss, _MIXTRAL),
    "Qwen2MoeForCausalLM": ("qwen2_moe", _qwen2_moe, _QWEN2_MOE),
    "Qwen3MoeForCausalLM": ("qwen3_moe", _qwen3_moe, _QWEN_MOE),
    "DeepseekV2ForCausalLM": ("deepseek_v2", _deepseek, _DEEPSEEK),
    "DeepseekV3ForCausalLM": ("deepseek_v3", _deepseek, _DEEPSEEK),
}
ARCHITECTURES = tuple(_FAMILIES)


# fields of published files whose layers no field of ModelSpec holds, and what they stand for
UNHELD = {
    "block_configs": "a shape of its own for each layer",
    "compress_ratios": "attention that differs from layer to layer",
    "global_head_dim": "two shapes of attention",
    "hybrid_layer_pattern": "two kinds of attention",
    "hybrid_override_pattern": "a pattern of Mamba, attention and MLP blocks",
    "index_n_heads": "sparse attention with index heads of its own",
    "intermediate_size_mlp": "two MLP widths",
    "layers_block_type": "blocks of several kinds",
    "linear_attn_config": "linear-attention layers",
    "linear_num_key_heads": "linear-attention layers",
    "moe_latent_size": "experts behind a latent width",
    "swa_num_attention_heads": "windowed layers with heads of their own",
}


def _unheld(data: dict[str, Any]) -> dict[str, str]:
    """Return the fields of a file that say more of its layers than the planner's record can."""
    found = {field: what for field, what in UNHELD.items() if data.get(field) not in (None, [], {})}
    if isinstance(data.get("moe_layer_freq"), list):
        found["moe_layer_freq"] = "expert layers by a list"
    return found


def _architecture(document: Document, data: dict[str, Any], at: tuple[str, ...]) -> str:
    """Return the architecture, which the file may also name by its ``model_type`` alone."""
    given = data.get("architectures")
    if isinstance(given, list) and given:
        field, value = "architectures", given[0]
        known = {name: name for name in _FAMILIES}
    else:
        field, value = "model_type", data.get("model_type")
        known = {family[0]: name for name, family in _FAMILIES.items()}
    found = known.get(value) if isinstance(value, str) else None
    if found is None:
        place = f"{document.path}:{document.line((*at, field)) or 1}"
        state = f"{value!r} is not supported" if value is not None else "missing"
        why = ", ".join(f"{what} ({name})" for name, what in _unheld(data).items())
        state += f"; its layers are not read either: {why}" if why else ""
        raise SpecError(f"{place}: {field}: {state}; use one of: {', '.join(known)}")
    return found


def _conflicts(config: HuggingFaceConfig, needed: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the fields that are missing or contradict each other, each with a remedy."""
    for own, field in needed.items():
        nothing = own == "q_lora_rank" and own in config.model_fields_set  # null: no latent query
        if getattr(config, own) is None and not nothing:
            yield field, "missing; add it, this architecture has no size without it"
    experts_field = needed.get("experts", "")
    if config.experts == 0 and experts_field not in (
        "",
        "num_experts",
    ):  # Qwen without experts is dense
        yield experts_field, "0 is not accepted; write a number greater than 0"
    heads, kv_heads = config.heads, config.kv_heads or config.heads
    if config.head_dim is None and config.kv_lora_rank is None and config.hidden % heads:
        fix = f"give head_dim, or a multiple such as {-(-config.hidden // heads) * heads}"
        yield "hidden_size", f"{config.hidden} is not a multiple of {heads} heads; {fix}"
    if heads % kv_heads:
        right = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        fix = f"use one of {', '.join(right)}"
        yield "num_key_value_heads", f"{kv_heads} does not divide {heads} heads; {fix}"
    if config.experts and (config.top_k or 0) > config.experts:
        fix = f"use at most {config.experts}, the number of experts"
        yield "num_experts_per_tok", f"{config.top_k} is too many; {fix}"


def parse_config(document: Document) -> ModelSpec:
    """Return the model that a ``config.json`` describes."""
    at = ("text_config",) if isinstance(document.data.get("text_config"), dict) else ()
    data = document.data[at[0]] if at else document.data
    architecture = _architecture(document, data, at)
    held_not = [
        f"{document.path}:{document.line((*at, field)) or 1}: {field}: {what} is not read; state "
        "the model by the fields of the planner's own record"
        for field, what in _unheld(data).items()
    ]
    if held_not:
        raise SpecError(held_not)
    config = check(HuggingFaceConfig, document, at)
    _, own_fields, needed = _FAMILIES[architecture]
    problems = [
        f"{document.path}:{document.line((*at, field)) or 1}: {field}: {sentence}"
        for field, sentence in _conflicts(config, needed)
    ]
    if problems:
        raise SpecError(problems)
    fields = {
        "name": _name(document.path),
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "kv_heads": config.kv_heads or config.heads,
        "head_dim": config.head_dim or config.hidden // config.heads,
        "ffn_hidden": config.ffn_hidden,
        "vocab": config.vocab,
        "tied_embeddings": bool(config.tied),
    }
    try:
        return ModelSpec.model_validate(fields | own_fields(config))
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError(
            f"{document.path}: {explain(ModelSpec, fields, problem)}" for problem in details
        ) from None


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def model_names() -> tuple[str, ...]:
    """Names of the models that ship, in alphabetical order."""
    return tuple(shipped("profiles", "models/*.json"))


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Return a shipped model by name, or read a ``config.json`` or the folder that holds one.

    A file with the fields of ``ModelSpec`` itself, as a plan repeats them, is read too.
    """
    known = shipped("profiles", "models/*.json")
    given = Path(name_or_path)
    if given.is_dir() and not (given / "config.json").exists() and str(given) in known:
        path = known[str(given)]  # a folder of that name happens to lie here
    else:
        path = shipped_or_file("model", name_or_path, known)
    document = read_document(path / "config.json" if path.is_dir() else path)
    if {"layers", "hidden"} <= document.data.keys():
        return check(ModelSpec, document)
    return parse_config(document)
