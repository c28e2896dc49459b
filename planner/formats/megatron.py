"""Megatron-LM arguments, read from a launch script or a bare list of arguments.

The writer stands in ``megatron_script``; both use the names in ``megatron_flags``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.errors import SpecError
from planner.formats.launch_line import Launch, find_launch
from planner.formats.megatron_flags import FLAGS, is_neutral
from planner.formats.megatron_offload import read_offload
from planner.formats.pipeline_layout import end_stages, read_expert_layers, read_stages
from planner.formats.setup import Reading, Setup, sort_settings
from planner.formats.shell_values import open_names
from planner.layout.layout import Layout, Recompute
from planner.layout.rule import divisor
from planner.spec.job import SoftwareSpec
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from planner.spec.problems import explain
from planner.spec.software import MEGATRON_CORE

NAME = "Megatron-LM arguments"
_VOCABULARIES = {"GPT2BPETokenizer": 50257, "Llama2Tokenizer": 32000}
_UNKNOWN_VOCABULARY = 128_000
_SHARDS = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
_PATTERNS = {"--hybrid-override-pattern", "--hybrid-layer-pattern"}
_FALLBACK_DROPOUT = 0.1  # --attention-dropout and --hidden-dropout, where they are not given


def read_megatron(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a launch script or a list of arguments says; ``given`` sets shell variables."""
    launch = find_launch(path, text, given)
    if launch is None:
        raise SpecError(
            f"{path}: no training command with Megatron-LM arguments was found; it needs a line "
            "such as 'torchrun pretrain_gpt.py --num-layers 32 ...'"
        )
    settings, twice = settings_of(launch.arguments)
    return setup_of(path, settings, launch, twice)


def settings_of(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return argument -> value, and a remark for each that is given twice; the last one wins."""
    settings: dict[str, str] = {}
    twice: list[str] = []
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in settings and settings[name] != value:
                twice.append(f"{name} is given twice; the last one wins")
            settings[name] = value if equals else ""
        elif name:
            settings[name] = f"{settings[name]} {word}".strip()
    return settings, twice


def setup_of(
    path: Path, settings: Mapping[str, str], launch: Launch, twice: Sequence[str] = ()
) -> Setup:
    """Return the record of arguments; every broken value is collected, none raised."""
    undecided = {name: open_names(value) for name, value in settings.items()}
    known = {name: value for name, value in settings.items()
             if name not in FLAGS or not undecided[name]}  # fmt: skip
    reading = sort_settings(known, FLAGS, is_neutral, str(path))
    for name, causes in undecided.items():
        if causes and name in FLAGS:
            what = ", ".join(causes)
            variable = causes[0].split(",")[0]
            reading.problems.append(
                f"{path}: {name}: depends on {what}, which the script does not set; "
                f"add --set {variable}=VALUE"
            )
    patterns = [name for name in settings if name in _PATTERNS and settings[name] != "None"]
    reading.problems += [
        f"{path}: {name}: layers by a pattern of Mamba, attention and MLP blocks have no field in "
        "the planner's model; nothing of it would be estimated right" for name in patterns
    ]  # fmt: skip
    reading.assumed += [*twice, *launch.remarks]
    reading.silent += [f"{name} is set, but no argument uses it" for name in launch.idle]
    values = reading.values
    degrees: dict[str, Any] = _degrees(values, reading)
    stages = _stages(values, degrees, reading, path)
    model, missing = _model(path, values, reading)
    _silent(values, degrees, reading)
    parallel = bool(values.get("sequence_parallel")) and degrees["tp"] > 1
    layout = Layout(**degrees, sequence_parallel=parallel)
    software = _software(values)
    offload, lost = read_offload(values, model, layout, software)
    reading.unpriced += lost
    _unpriced(values, reading)
    connections = launch.exports.get("CUDA_DEVICE_MAX_CONNECTIONS", "")
    fsdp = values.get("megatron_fsdp") or values.get("torch_fsdp2")
    if not connections and degrees["tp"] * degrees["cp"] > 1 and not fsdp:
        reading.assumed.append(
            "CUDA_DEVICE_MAX_CONNECTIONS=1 is exported elsewhere; Megatron-LM stops without it on "
            "GPUs before Blackwell"
        )
    options = values | {"CUDA_DEVICE_MAX_CONNECTIONS": connections}
    return Setup(
        framework="megatron", path=str(path), software=software, model=model,
        micro_batch=values.get("micro_batch"), global_batch=values.get("global_batch"),
        seq_len=values.get("seq_len"), precision=_precision(values),
        sequence_parallel=parallel,
        zero=_zero(values), replicas=values.get("instances", 1), stages=stages,
        open_fields=missing, gpus=launch.gpus, options=options, **degrees,
        **_recompute(values, degrees), **offload, **reading.lists(),
    )  # fmt: skip


def _degrees(values: Mapping[str, Any], reading: Reading) -> dict[str, int]:
    """Return the degrees with Megatron's defaults: ETP falls back to TP."""
    found = {name: values.get(name, 1) for name in ("tp", "cp", "pp", "ep")}
    for name in found:
        if found[name] < 1:
            reading.problems.append(f"{name}={found[name]} is not a degree; write 1 or more")
            found[name] = 1
    found["etp"] = values.get("etp", found["tp"] if values.get("experts") else 1)
    if values.get("experts") and "etp" not in values and found["tp"] > 1:
        reading.assumed.append(
            f"--expert-tensor-parallel-size is not given and falls back to tp={found['tp']}"
        )
    found["vpp"] = values.get("chunks", 1)
    per_chunk, layers = values.get("chunk_layers"), values.get("layers", 0)
    if per_chunk:
        found["vpp"] = max(1, layers // found["pp"] // per_chunk)
        if layers // found["pp"] % per_chunk:
            knob = "--num-layers-per-virtual-pipeline-stage"
            said = divisor(knob, per_chunk, "layers of a pipeline rank", layers // found["pp"])
            reading.problems.append(f"M6: {said} (training/arguments.py)")
    return found


def _stages(
    values: Mapping[str, Any], degrees: dict[str, int], reading: Reading, path: Path
) -> tuple[int, ...]:
    """Return the layers of each virtual stage where the arguments write them out."""
    pp, layers = degrees["pp"], values.get("layers", 0)
    if "layer_layout" in values:
        try:
            stages = read_stages(values["layer_layout"])
        except ValueError as error:
            reading.problems.append(f"{path}: --pipeline-model-parallel-layout: {error}")
            return ()
        degrees["vpp"] = max(1, len(stages) // pp)
        return stages
    chunks = pp * degrees["vpp"]
    ends = [bool(values.get(f"account_for_{end}")) for end in ("embedding", "loss")]
    if any(ends) and chunks > 1 and (layers + sum(ends)) % chunks == 0:
        each = (layers + sum(ends)) // chunks
        return (each - ends[0], *(each,) * (chunks - 2), each - ends[1])
    first, last = values.get("first_layers"), values.get("last_layers")
    if not (first or last) or pp == 1 or not layers:
        return ()
    try:
        return end_stages(layers, pp, degrees["vpp"], first, last)
    except ValueError as error:
        reading.problems.append(f"M5: {error} (training/arguments.py)")
        return ()


def _model(
    path: Path, values: Mapping[str, Any], reading: Reading
) -> tuple[ModelSpec | None, tuple[str, ...]]:
    """Return the model that the arguments describe, and the fields that they leave open."""
    needed = {"layers": "--num-layers", "hidden": "--hidden-size", "heads": "--num-attention-heads"}
    missing = [flag for name, flag in needed.items() if not values.get(name)]
    if missing:
        reading.assumed.append(f"the model is not in the file ({', '.join(missing)} missing)")
        return None, ()
    vocab = values.get("padded_vocab") or values.get("vocab")
    vocab = vocab or _VOCABULARIES.get(values.get("tokenizer", "GPT2BPETokenizer"))
    is_open = () if vocab else ("vocab",)
    if not vocab:
        vocab = _UNKNOWN_VOCABULARY
        reading.assumed.append(
            f"the vocabulary is in the tokenizer: {vocab} tokens assumed, --model states it"
        )
    try:
        moe = _experts(values) if values.get("experts") else None
        return ModelSpec.model_validate(_model_fields(path, values, vocab, moe)), is_open
    except ValidationError as error:
        details = error.errors(include_url=False)
        reading.problems += [f"{path}: {explain(ModelSpec, {}, one)}" for one in details]
    except ValueError as error:
        reading.problems.append(f"{path}: --moe-layer-freq: {error}")
    return None, ()


def _model_fields(
    path: Path, values: Mapping[str, Any], vocab: int, moe: MoESpec | None
) -> dict[str, Any]:
    hidden, heads, gated = values["hidden"], values["heads"], _gated(values)
    grouped = values.get("grouped") and values.get("kv_heads")
    biases = not values.get("no_bias")
    mla = _latent(values)
    width = 8 * hidden // 3 // 64 * 64 if gated else 4 * hidden
    return {
        "name": path.stem, "layers": values["layers"], "hidden": hidden, "heads": heads,
        "kv_heads": heads if mla or not grouped else values["kv_heads"],
        "head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla
        else values.get("head_dim") or hidden // heads,
        "ffn_hidden": values.get("ffn_hidden") or width, "vocab": vocab, "gated_mlp": gated,
        "tied_embeddings": not values.get("untied"),
        "positions": values.get("positions", 0) if _learned(values) else 0,
        "norm_bias": values.get("normalization", "LayerNorm") == "LayerNorm",
        "qkv_bias": biases or bool(values.get("qkv_bias")), "attention_out_bias": biases,
        "mlp_bias": biases, "qk_norm": bool(values.get("qk_norm")) and mla is None,
        "sliding_window": _window(values), "moe": moe, "mla": mla,
        "mtp_layers": values.get("mtp_layers", 0),
    }  # fmt: skip


def _gated(values: Mapping[str, Any]) -> bool:
    return bool(values.get("swiglu") or values.get("geglu"))


def _learned(values: Mapping[str, Any]) -> bool:
    rotary = values.get("rotary")
    return values.get("position_type", "learned_absolute") == "learned_absolute" and not rotary


def _window(values: Mapping[str, Any]) -> int:
    """Return the attention span; ``127,0`` looks at 127 tokens before and at itself."""
    left = str(values.get("window", "")).strip("()").replace(",", " ").split()
    every = values.get("window_every")
    return int(left[0]) + 1 if left and left[0].isdigit() and not every else 0


def _experts(values: Mapping[str, Any]) -> MoESpec:
    layers = values["layers"]
    placed = read_expert_layers(values.get("moe_layers", "1"), layers)
    default = values.get("ffn_hidden") or 4 * values["hidden"]
    return MoESpec.model_validate({
        "experts": values["experts"], "top_k": values.get("top_k", 2),
        "ffn_hidden": values.get("expert_ffn") or default,
        "shared_ffn_hidden": values.get("shared_ffn", 0),
        "shared_gate": bool(values.get("shared_gate")), **placed,
    })  # fmt: skip


def _latent(values: Mapping[str, Any]) -> MLASpec | None:
    """Return latent attention with the defaults of Megatron's ``MLATransformerConfig``."""
    if not values.get("mla"):
        return None
    return MLASpec(
        q_lora_rank=values.get("q_lora_rank", 0), kv_lora_rank=values.get("kv_lora_rank", 32),
        qk_nope_head_dim=values.get("qk_nope_head_dim", 128),
        qk_rope_head_dim=values.get("qk_rope_head_dim", 64),
        v_head_dim=values.get("v_head_dim", 128),
    )  # fmt: skip


def _precision(values: Mapping[str, Any]) -> str:
    if values.get("fp4"):
        return "nvfp4"
    if values.get("fp8"):
        return "mxfp8" if values.get("fp8_recipe") == "mxfp8" else "fp8"
    return "bf16" if values.get("bf16") else "fp16" if values.get("fp16") else "fp32"


def _zero(values: Mapping[str, Any]) -> int:
    if values.get("torch_fsdp2"):
        return 2 if values.get("no_reshard") else 3
    if values.get("megatron_fsdp"):
        return _SHARDS.get(values.get("strategy", "no_shard"), 0)
    return int(bool(values.get("distributed_optimizer")))


def _recompute(values: Mapping[str, Any], degrees: Mapping[str, int]) -> dict[str, Any]:
    """Return the kind of recompute, and the layers of each stage where not all are recomputed."""
    old_full = values.get("recompute_all") or (
        values.get("recompute_method") and "granularity" not in values
    )
    granularity = "full" if old_full else values.get("granularity")
    if values.get("recompute_selective"):
        granularity = "selective"
    if granularity == "selective":
        modules = values.get("recompute_modules", "core_attn").split()
        kind = Recompute.SELECTIVE if "core_attn" in modules else Recompute.NONE
        return {"recompute": kind}
    if granularity != "full":
        return {}
    count = values.get("recompute_num_layers")
    if values.get("recompute_method") != "block" or count is None:
        return {"recompute": Recompute.FULL}
    per_stage = values.get("layers", 0) // (degrees["pp"] * degrees["vpp"])
    if "layer_layout" not in values and count >= per_stage:
        return {"recompute": Recompute.FULL}
    return {"recompute_layers": count}


def _loss(values: Mapping[str, Any]) -> str:
    """Return the kind of loss; the fused one is Megatron's own unless told otherwise."""
    if not values.get("fused_loss"):
        return "in_place"
    return "fused" if values.get("fused_loss_kernel") == "te" else "native"


def _software(values: Mapping[str, Any]) -> SoftwareSpec:
    """Return Megatron-Core as these arguments run it; what is not switched on is off."""
    dropout = max(
        values.get("attention_dropout", _FALLBACK_DROPOUT),
        values.get("hidden_dropout", _FALLBACK_DROPOUT),
    )
    flash = values.get("attention", "auto") not in ("unfused", "local")
    small = bool(values.get("reduce_bf16"))
    changes: dict[str, Any] = {
        "loss": _loss(values),
        "dropout": dropout > 0, "flash_attention": flash,
        "overlap_grad_reduce": bool(values.get("overlap_reduce")),
        "overlap_param_gather": bool(values.get("overlap_gather")),
        "tp_overlap_chunks": 4 if values.get("tp_overlap") else 1,  # as in MEGASCALE
        "overlap_pipeline": not values.get("no_overlap_p2p"),
        "fused_gradient_accumulation": not values.get("no_gradient_fusion"),
        "gradient_bytes": 2 if small else 4, "reduce_bytes": 2 if small else 4,
        "vocab_multiple": values.get("vocab_multiple", 128),
        "moe_sends_once": bool(values.get("flex_backend") or values.get("deepep")),
    }  # fmt: skip
    changed = {name: value for name, value in changes.items()
               if getattr(MEGATRON_CORE, name) != value}  # fmt: skip
    name = " ".join(["megatron-core", *(f"{key}={value}" for key, value in changed.items())])
    return MEGATRON_CORE.model_copy(update=changed | {"name": name})


def _silent(values: Mapping[str, Any], degrees: Mapping[str, int], reading: Reading) -> None:
    """Collect the arguments that are accepted and do nothing."""
    cases = {
        "--sequence-parallel does nothing with tp 1": values.get("sequence_parallel")
        and degrees["tp"] == 1,
        "--num-query-groups does nothing without --group-query-attention": "kv_heads" in values
        and not values.get("grouped"),
        "--cp-comm-type does nothing with cp 1": "cp_comm_type" in values and degrees["cp"] == 1,
        "--recompute-num-layers does nothing without --recompute-granularity full":
            "recompute_num_layers" in values and values.get("granularity") != "full"
            and "recompute_method" not in values,
        "--fp8-recipe does nothing without --fp8-format": "fp8_recipe" in values
        and "fp8" not in values,
        "--data-parallel-sharding-strategy does nothing without --use-megatron-fsdp":
            "strategy" in values and not values.get("megatron_fsdp"),
        "--expert-model-parallel-size does nothing in a model without experts":
            degrees["ep"] == 1 and "ep" in values and not values.get("experts"),
        "--recompute-granularity selective saves nothing with fused attention":
            (values.get("granularity") == "selective" or values.get("recompute_selective"))
            and values.get("recompute_modules", "core_attn") == "core_attn"
            and values.get("attention", "auto") not in ("unfused", "local"),
    }  # fmt: skip
    reading.silent += [sentence for sentence, holds in cases.items() if holds]


def _unpriced(values: Mapping[str, Any], reading: Reading) -> None:
    """Collect what is understood but missing in the estimate."""
    modules = set(values.get("recompute_modules", "").split()) - {"core_attn"}
    cases = {
        f"recompute of {', '.join(sorted(modules))}": modules,
        "states in lower precision": values.get("precise"),
        "dropped tokens (capacity factor)": values.get("capacity"),
        "a batch that grows during the run": values.get("rampup"),
        "windows on some layers only": values.get("window_every"),
        "rank order tp-cp-ep-pp-dp": values.get("pp_inside_dp"),
        f"optimizer {values.get('optimizer')}": values.get("optimizer", "adam") != "adam",
    }
    reading.unpriced += [what for what, present in cases.items() if present]
