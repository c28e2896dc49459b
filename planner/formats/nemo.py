"""YAML around Megatron-Core: NeMo, Megatron-Bridge, Primus, and lists of arguments in YAML.

Their settings are Megatron's arguments under other names, so they are read as those. The writer
stands in ``nemo_yaml``.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.formats.launch_line import Launch
from planner.formats.loose import fill_holes, holes, load_loose
from planner.formats.megatron import setup_of
from planner.formats.megatron_flags import FLAGS
from planner.formats.setup import Knob, Setup
from planner.spec.files import read_text

# last part of a setting's name -> argument of Megatron-LM, where it is not the same name
_RENAMED = {
    "virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "num_layers_in_first_pipeline_stage": "--decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "--decoder-last-pipeline-num-layers",
    "expert_tensor_parallel_size": "--expert-tensor-parallel-size",
    "encoder_seq_length": "--seq-length",
    "seq_len": "--seq-length",
    "sequence_length": "--seq-length",
    "max_total_sequence_length": "--seq-length",
    "num_moe_experts": "--num-experts",
    "moe_shared_expert_overlap": "--moe-shared-expert-overlap",
    "fp8_format": "--fp8-format",
    "activations_checkpoint_granularity": "--recompute-granularity",
    "activations_checkpoint_num_layers": "--recompute-num-layers",
    "qk_layernorm": "--qk-layernorm",
    "train_micro_batch_size": "--micro-batch-size",
    "train_global_batch_size": "--global-batch-size",
    "window_size": "--window-size",
    "use_megatron_fsdp": "--use-megatron-fsdp",
    "distributed_fused_adam": "--use-distributed-optimizer",
}
# engines beside the trainer have grids of their own
_SKIPPED = re.compile(
    r"(^|\.)(generation|rollout|vllm|vllm_cfg|validation|eval|reward|critic|ref)\."
)
_SWITCHES = {
    "add_bias_linear": (False, "--disable-bias-linear"),
    "bias": (False, "--disable-bias-linear"),
    "share_embeddings_and_output_weights": (False, "--untie-embeddings-and-output-weights"),
    "gated_linear_unit": (True, "--swiglu"),
    "grad_reduce_in_fp32": (False, "--grad-reduce-in-bf16"),
    "overlap_p2p_comm": (False, "--no-overlap-p2p-communication"),
}
DEEPEST = 8  # files that inherit from files
_NODES = {"num_nodes", "nodes", "num_machines", "nnodes"}
_PER_NODE = {"devices", "gpus_per_node", "num_gpus_per_node", "nproc_per_node"}
_GATED = {"swiglu", "fast-swiglu", "geglu", "fast-geglu", "reglu"}


def read_nemo(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a YAML file around Megatron-Core says; ``given`` fills its holes."""
    inherited, remarks = _inherited(path, text, given, 0)
    settings = fill_holes(inherited, given)
    arguments: dict[str, str] = {}
    other: list[Knob] = []
    numbers: dict[str, int] = {}
    exports: dict[str, str] = {}
    off = tuple(name.removesuffix("enabled") for name, value in settings.items()
                if name.endswith(".enabled") and value is False)  # fmt: skip
    for name, value in settings.items():
        leaf = name.rsplit(".", 1)[-1].strip()
        if _SKIPPED.search(name) or name.startswith(off):
            other.append(Knob(name, str(value)[:60]))
        elif leaf in _NODES | _PER_NODE and str(value).isdigit():
            numbers.setdefault("nodes" if leaf in _NODES else "each", int(value))
            other.append(Knob(name, str(value)))
        elif leaf.isupper() and not leaf.startswith("--"):
            exports[leaf] = str(value)
            other.append(Knob(name, str(value)[:60]))
        elif not _taken(leaf, value, arguments):
            other.append(Knob(name, str(value)[:60]))
    arguments.setdefault("--hidden-dropout", "0.0")
    arguments.setdefault("--attention-dropout", "0.0")
    apart = any(name.endswith("colocated.enabled") and value is False
                for name, value in settings.items())  # fmt: skip
    gpus = numbers["nodes"] * numbers.get("each", 8) if "nodes" in numbers and not apart else None
    if apart:
        remarks.append("generation has nodes of its own; the trainer's share is not in the file")
    setup = setup_of(path, _decided(arguments), Launch((), gpus, exports, (), ()))
    problems = [
        f"{path}: {name}: depends on {holes(value)[0]}, which is not set; "
        f"add --set {holes(value)[0]}=VALUE"
        for name, value in arguments.items()
        if holes(value)
    ]
    return replace(
        setup, neutral=(*setup.neutral, *other), problems=(*problems, *setup.problems),
        assumed=(*remarks, *setup.assumed), framework="nemo",
    )  # fmt: skip


def _inherited(
    path: Path, text: str, given: Mapping[str, str], depth: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a file over those of the files that its ``defaults`` name."""
    loose = load_loose(path, text, given)
    remarks, settings = list(loose.remarks), dict[str, Any]()
    named = loose.settings.get("defaults")
    for name in named if isinstance(named, list) else [named] if isinstance(named, str) else []:
        file = path.parent / str(name)
        if depth < DEEPEST and file.is_file():
            parent, more = _inherited(file, read_text(file), given, depth + 1)
            settings |= parent
            remarks += more
        else:
            remarks.append(f"defaults: {name} is not there to be read")
    return settings | loose.settings, remarks


def _decided(arguments: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in arguments.items() if not holes(value)}


def _taken(leaf: str, value: Any, arguments: dict[str, str]) -> bool:
    """Add the argument that a setting stands for; return whether it stands for one."""
    flag = leaf if leaf.startswith("--") else _RENAMED.get(leaf, f"--{leaf.replace('_', '-')}")
    if leaf in _SWITCHES:
        wanted, flag = _SWITCHES[leaf]
        if value is wanted:
            arguments.setdefault(flag, "")
        return isinstance(value, bool)
    if leaf in _SPECIAL:
        return _SPECIAL[leaf](str(value), arguments)
    if flag not in FLAGS and not leaf.startswith("--"):
        return False
    if value is None or value is False:
        return True
    if flag == "--num-query-groups":
        arguments.setdefault("--group-query-attention", "")
    if flag == "--normalization":
        value = {"rmsnorm": "RMSNorm", "layernorm1p": "LayerNorm"}.get(str(value), value)
    if flag == "--moe-layer-freq" and isinstance(value, list):
        value = str(value)
    arguments.setdefault(flag, "" if value is True else _text(value))
    return True


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _precision(value: str, arguments: dict[str, str]) -> bool:
    """Read ``bf16-mixed``, ``bf16_with_fp8_...`` and their like."""
    if value.startswith(("bf16", "fp16", "16-")):
        arguments.setdefault("--bf16" if value.startswith("bf16") else "--fp16", "")
    if "fp8" in value:
        arguments.setdefault("--fp8-format", "hybrid")
    if "mxfp8" in value:
        arguments.setdefault("--fp8-recipe", "mxfp8")
    if "fp4" in value:
        arguments.setdefault("--fp4-format", "e2m1")
    return True


def _activation(value: str, arguments: dict[str, str]) -> bool:
    if value in _GATED:
        arguments.setdefault("--swiglu", "")
    return True


def _eight_bit(value: str, arguments: dict[str, str]) -> bool:
    """Read ``fp8: hybrid``; a switch or nothing leaves the format to another setting."""
    if value.lower() not in ("true", "false", "none"):
        arguments.setdefault("--fp8-format", value)
    return True


_SPECIAL = {
    "activation": _activation,
    "precision": _precision,
    "mixed_precision": _precision,
    "fp8": _eight_bit,
}
