"""accelerate's YAML: FSDP 1 and 2, DeepSpeed (also in a file of its own), parallelism_config.

Read and written. Model, batch and sequence length stand in the training program.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import SpecError
from planner.formats.deepspeed import read_deepspeed
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
)
from planner.formats.work import Work
from planner.layout.layout import Offload, Recompute, Shard
from planner.layout.rule import Facts, broken, facts_of
from planner.layout.rules_accelerate import RULES
from planner.spec.files import read_text
from planner.spec.software import TORCH_FSDP

SOFTWARE = TORCH_FSDP.model_copy(update={"name": "accelerate"})
_FSDP, _SIZES, _DEEP = "fsdp_config.", "parallelism_config.parallelism_config_", "deepspeed_config."
_MEGATRON = "megatron_lm_config.megatron_lm_"
SETTINGS: dict[str, Meaning] = {
    "distributed_type": Meaning("kind", text_of, "runs"),
    "mixed_precision": Meaning("precision", text_of, "precision"),
    "num_processes": Meaning("gpus", whole, "GPUs"),
    "num_machines": Meaning("nodes", whole, "nodes"),
    f"{_FSDP}fsdp_version": Meaning("fsdp_version", whole, "FSDP"),
    f"{_FSDP}fsdp_sharding_strategy": Meaning("strategy", text_of, "shards"),
    f"{_FSDP}fsdp_reshard_after_forward": Meaning("reshard", text_of, "reshard after forward"),
    f"{_FSDP}fsdp_auto_wrap_policy": Meaning("wrap", text_of, "FSDP units by"),
    f"{_FSDP}fsdp_offload_params": Meaning("offload", switch, "parameters on the CPU"),
    f"{_FSDP}fsdp_cpu_offload": Meaning("offload", switch, "parameters on the CPU"),
    f"{_FSDP}fsdp_activation_checkpointing": Meaning("recompute", switch, "recompute full"),
    f"{_FSDP}fsdp_activation_checkpointing_offload": Meaning(
        "offload_activations", switch, "checkpoints on the CPU"
    ),
    f"{_SIZES}dp_replicate_size": Meaning("replicate", whole, "copies"),
    f"{_SIZES}dp_shard_size": Meaning("shard", whole, "ranks that share a copy"),
    f"{_SIZES}tp_size": Meaning("tp", whole, "tp"),
    f"{_SIZES}cp_size": Meaning("cp_size", whole, "cp"),
    f"{_SIZES}sp_size": Meaning("sp_size", whole, "cp by all-to-all"),
    f"{_SIZES}cp_comm_strategy": Meaning("cp_strategy", text_of, "context exchange"),
    f"{_DEEP}zero_stage": Meaning("zero", whole, "ZeRO"),
    f"{_DEEP}gradient_accumulation_steps": Meaning(
        "accumulation", whole, "micro-batches of a step"
    ),
    f"{_DEEP}offload_optimizer_device": Meaning("offload_optimizer", text_of, "optimizer on"),
    f"{_DEEP}offload_param_device": Meaning("offload_parameters", text_of, "parameters on"),
    f"{_DEEP}deepspeed_config_file": Meaning("file", text_of, "DeepSpeed settings in"),
    f"{_MEGATRON}tp_degree": Meaning("tp", whole, "tp"),
    f"{_MEGATRON}pp_degree": Meaning("pp", whole, "pp"),
    f"{_MEGATRON}num_micro_batches": Meaning("accumulation", whole, "micro-batches of a step"),
    f"{_MEGATRON}sequence_parallelism": Meaning("sequence_parallel", switch, "sequence parallel"),
    f"{_MEGATRON}recompute_activations": Meaning("selective", switch, "recompute selective"),
    f"{_MEGATRON}use_distributed_optimizer": Meaning("distributed_optimizer", switch, "ZeRO-1"),
}
_NEUTRAL = {
    "compute_environment", "debug", "downcast_bf16", "dynamo_backend", "dynamo_config",
    "enable_cpu_affinity", "fp8_config", "gpu_ids", "ipex_config", "machine_rank",
    "main_process_ip",
    "main_process_port", "main_training_function", "mpirun_config", "rdzv_backend",
    "same_network", "tpu_env", "tpu_use_cluster", "tpu_use_sudo", "use_cpu", "fsdp_config",
    "deepspeed_config", "megatron_lm_config", "parallelism_config", "tpu_name", "tpu_zone",
    "commands", "command_file", "aws_config", "num_cpu_threads_per_process",
}  # fmt: skip
_SIZE_NAMES = ("replicate", "shard", "tp", "cp_size", "sp_size")
_STRATEGIES = {
    "FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0, "HYBRID_SHARD": 3, "HYBRID_SHARD_ZERO2": 2,
    "1": 3, "2": 2, "3": 0, "4": 3, "5": 2,
}  # fmt: skip
_OF_FSDP1 = ("fsdp_sharding_strategy", "fsdp_use_orig_params", "fsdp_sync_module_states",
             "fsdp_forward_prefetch", "fsdp_backward_prefetch")  # fmt: skip


def is_neutral(name: str) -> bool:
    """Whether a setting is accelerate's and touches neither layout, memory nor step time."""
    return name.split(".")[0] in _NEUTRAL


def read_accelerate(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what an accelerate YAML file says, and the DeepSpeed file that it names."""
    loose = load_loose(path, text, given)
    decided, problems = without_holes(loose.settings, SETTINGS, str(path))
    reading = sort_settings(decided, SETTINGS, is_neutral, str(path))
    reading.problems += problems
    reading.assumed += loose.remarks
    values = reading.values
    if "kind" not in values and "shard" in values:
        values["kind"] = "FSDP"
    values.setdefault("fsdp_version", 1)  # accelerate's default, with any mesh
    _unknown_at_top(path, reading)
    _silent(decided, values, reading)
    own = _setup(path, values, decided, reading)
    return _joined(own, path, values, given) if values.get("file") else own


def _setup(
    path: Path, values: Mapping[str, Any], decided: Mapping[str, Any], reading: Reading
) -> Setup:
    tp, pp = max(1, values.get("tp", 1)), max(1, values.get("pp", 1))
    cp = max(1, values.get("cp_size", 1), values.get("sp_size", 1))
    copies, shard = values.get("replicate", 1), values.get("shard")
    zero = _zero(values, cp)
    options = dict(values) | {
        "cp_size": values.get("cp_size", 1) > 1, "sp_size": values.get("sp_size", 1) > 1,
        "sizes": tuple(values.get(name, 1) for name in _SIZE_NAMES),
        "parallelism": any(name.startswith(_SIZES) for name in decided),
    }  # fmt: skip
    exchange = "all_to_all" if values.get("sp_size", 1) > 1 else "ring"
    precision = values.get("precision")
    hybrid = "HYBRID" in str(values.get("strategy", "")).upper()
    if hybrid:
        copies = values.get("nodes", 1)
    return Setup(
        framework="accelerate", path=str(path),
        software=SOFTWARE.model_copy(update={"name": f"accelerate {exchange}",
                                             "context_exchange": exchange}),
        tp=tp, cp=cp, pp=pp, dp=copies * (shard or 1) if "replicate" in values or shard else None,
        accumulation=values.get("accumulation"), gpus=values.get("gpus"),
        precision=precision if precision in ("bf16", "fp16", "fp8") else None,
        sequence_parallel=bool(values.get("sequence_parallel")) and tp > 1,
        zero=zero, replicas=max(1, copies), options=options, **_offload(values, zero),
        recompute=Recompute.FULL if values.get("recompute")
        else Recompute.SELECTIVE if values.get("selective") else Recompute.NONE,
        **reading.lists(),
    )  # fmt: skip


def _offload(values: Mapping[str, Any], zero: int) -> dict[str, Any]:
    """Return what leaves the GPU. FSDP moves weights, gradients and optimizer together."""
    found: dict[str, Any] = {}
    if values.get("offload_activations") and values.get("recompute"):
        found = {"offload": Offload(1.0, "host")}
    if values.get("offload") and zero:
        return {"offload_optimizer": 1.0, "offload_weights": True, **found}
    weights = zero == 3 and values.get("offload_parameters", "none") != "none"
    leaves = zero > 0 and values.get("offload_optimizer", "none") != "none"
    return {"offload_optimizer": float(leaves or weights), "offload_weights": weights, **found}


def _zero(values: Mapping[str, Any], cp: int) -> int:
    """Return the ZeRO stage; FSDP 2 shards over dp_shard and cp together."""
    kind = str(values.get("kind", "")).upper()
    if kind == "DEEPSPEED":
        return int(values.get("zero", 2))
    if kind == "MEGATRON_LM":
        return int(bool(values.get("distributed_optimizer")))
    if kind != "FSDP" or (values.get("shard", 2) == 1 and cp == 1):
        return 0
    strategy = values.get("strategy")
    if values["fsdp_version"] == 1 and strategy is not None:
        return _STRATEGIES.get(strategy.upper(), 3)
    return 2 if str(values.get("reshard", "true")).lower() in ("false", "shard_grad_op") else 3


def _unknown_at_top(path: Path, reading: Reading) -> None:
    """Accelerate refuses settings that it does not know at the top, and ignores others."""
    for knob in reading.unknown:
        reading.problems.append(
            f"{path}: {knob.name}: accelerate refuses settings it does not know at the top of its "
            "file; remove it (commands/config/config_args.py, accelerate 1.15)"
        )


def _silent(decided: Mapping[str, Any], values: Mapping[str, Any], reading: Reading) -> None:
    if values["fsdp_version"] == 2:
        reading.silent += [
            f"{name} is of FSDP 1 and does nothing with fsdp_version 2"
            for name in _OF_FSDP1
            if f"{_FSDP}{name}" in decided
        ]
    kind = str(values.get("kind", "")).upper()
    for prefix, owner in ((_FSDP, "FSDP"), (_DEEP, "DEEPSPEED")):
        if kind != owner and any(name.startswith(prefix) for name in decided):
            reading.silent.append(f"{prefix[:-1]} does nothing with distributed_type {kind}")


def _joined(own: Setup, path: Path, values: Mapping[str, Any], given: Mapping[str, str]) -> Setup:
    """Return the settings of the DeepSpeed file, with the launcher's own beside them."""
    file = path.parent / values["file"]
    if not file.is_file():
        raise SpecError(f"{path}: deepspeed_config_file: {file} is not there; correct the path")
    other = read_deepspeed(file, read_text(file), given)
    names = ("understood", "neutral", "unknown", "silent", "problems", "assumed", "unpriced")
    lists: dict[str, Any] = {name: (*getattr(own, name), *getattr(other, name)) for name in names}
    return replace(
        other, gpus=own.gpus, tp=max(own.tp, other.tp), cp=max(own.cp, other.cp), dp=own.dp,
        software=own.software if own.cp > 1 else other.software,
        precision=other.precision or own.precision, options={**own.options, **other.options},
        **lists,
    )  # fmt: skip


def write_accelerate(work: Work) -> str:
    """Return the YAML of a job; ``LayoutError`` with every reason why accelerate cannot run it.

    ZeRO-2 and 3 are FSDP 2; ZeRO-1, all-to-all contexts and an optimizer that alone leaves the GPU
    are its DeepSpeed.
    """
    import yaml

    sizes, kind = _sizes(work), _kind(work)
    refuse(accelerate_problems_of(work, kind, sizes))
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": kind,
        "mixed_precision": work.job.precision, "num_machines": work.nodes,
        "num_processes": work.ranks, "machine_rank": 0, "rdzv_backend": "static",
    }  # fmt: skip
    if kind == "FSDP":
        found["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": work.layout.shard.weights > 1,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_activation_checkpointing": work.recompute is Recompute.FULL,
            "fsdp_offload_params": work.layout.offload_weights,
        }
    if kind == "DEEPSPEED":
        found["deepspeed_config"] = _deepspeed(work)
    if kind != "NO" and any(sizes[name] > 1 for name in sizes if name != "dp_replicate_size"):
        found["parallelism_config"] = {
            f"parallelism_config_{name}": size for name, size in sizes.items()
        }
    return yaml.safe_dump(found, sort_keys=False)


def _kind(work: Work) -> str:
    layout = work.layout
    if layout.gpus == 1:
        return "NO"
    exchange = work.job.software.context_exchange == "all_to_all" and layout.cp > 1
    alone = layout.offload_optimizer > 0 and not layout.offload_weights
    if layout.shard.zero_stage() == 1 or exchange or alone:
        return "DEEPSPEED"
    return "FSDP" if layout.shard.optimizer > 1 else "MULTI_GPU"


def _sizes(work: Work) -> dict[str, int]:
    """Return the sizes of accelerate's mesh; FSDP's shards span dp_shard and cp."""
    layout = work.layout
    if _kind(work) == "DEEPSPEED":  # its own groups: only sp stands here
        return {"sp_size": layout.cp, "tp_size": layout.tp}
    copies = layout.dp * layout.cp // max(layout.cp, layout.shard.optimizer)
    return {
        "dp_replicate_size": copies, "dp_shard_size": max(1, layout.dp // copies),
        "tp_size": layout.tp, "cp_size": layout.cp,
    }  # fmt: skip


def _deepspeed(work: Work) -> dict[str, Any]:
    layout = work.layout
    return {
        "zero_stage": layout.shard.zero_stage(),
        "gradient_accumulation_steps": layout.micro_batches(work.job.global_batch),
        "gradient_clipping": 1.0,
        "offload_optimizer_device": "cpu" if layout.offload_optimizer else "none",
        "offload_param_device": "cpu" if layout.offload_weights else "none",
        "deepspeed_multinode_launcher": "standard",
    }


def accelerate_problems_of(work: Work, kind: str, sizes: Mapping[str, int]) -> list[str]:
    """Return every reason why accelerate cannot run a job as ``kind`` on a mesh of ``sizes``."""
    layout, ranks = work.layout, work.layout.dp * work.layout.cp
    shard = layout.shard
    names = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
    options: dict[str, object] = {
        "fsdp_version": 2, "kind": kind, "parallelism": kind in ("FSDP", "MULTI_GPU"),
        "cp_size": sizes.get("cp_size", 1) > 1, "sp_size": sizes.get("sp_size", 1) > 1,
        "sizes": tuple(sizes.get(name, 1) for name in names),
    }  # fmt: skip
    plain = kind == "MULTI_GPU" and layout.tp == layout.cp == 1  # without a mesh
    options["parallelism"] = options["parallelism"] and not plain
    asked = facts_of(work.model, work.job, layout)
    problems = broken(RULES, Facts(**asked, options=options))  # type: ignore[arg-type]
    problems += rank_order(work, "accelerate") + offloaded(work, "accelerate")
    problems += second_shards(work, "accelerate") + uneven_stages(work, "accelerate")
    problems += partial_recompute(work, "accelerate") + method_problems(work, "accelerate")
    if layout.pp > 1 or layout.ep > 1 or layout.etp > 1:
        problems.append("pp, ep and etp: accelerate's YAML has no setting for them; use 1")
    if kind == "DEEPSPEED" and layout.tp > 1:
        problems.append(f"tp={layout.tp} with ZeRO-{shard.zero_stage()} is DeepSpeed's, to which "
                        "accelerate's YAML gives no tp; try ZeRO 2 or 3")  # fmt: skip
    if kind == "DEEPSPEED" and shard != Shard.zero(shard.zero_stage(), ranks):
        problems.append(f"shards over {shard.optimizer} of {ranks} ranks: DeepSpeed takes all")
    if kind == "MULTI_GPU" and layout.cp > 1:
        problems.append(f"cp={layout.cp} needs FSDP 2 in accelerate; try ZeRO 2 or 3")
    if kind == "FSDP" and not _is_mesh(work):
        problems.append(f"shards over {shard.optimizer} of {ranks} ranks are no dp_shard times "
                        f"cp={layout.cp}; shard over all of them")  # fmt: skip
    if layout.offload_optimizer and shard.optimizer == 1:
        problems.append("offload without shards has no setting; shard, or keep all on the GPU")
    if work.recompute is Recompute.SELECTIVE:
        problems.append("recompute selective has no setting; use none or full")
    if work.job.precision not in ("bf16", "fp16"):
        problems.append(f"precision {work.job.precision!r} is not written; use bf16 or fp16")
    return problems


def _is_mesh(work: Work) -> bool:
    """Whether the groups of FSDP are whole rows of (dp_shard, cp)."""
    layout, shard = work.layout, work.layout.shard
    group = shard.optimizer
    same = shard in (Shard.zero(2, group), Shard.zero(3, group))
    return same and group % layout.cp == 0 and layout.dp % (group // layout.cp) == 0


def lost_by_accelerate(work: Work) -> list[str]:
    """Return what the YAML cannot carry: it stands in the training program."""
    layout, job = work.layout, work.job
    lost = [
        f"model {work.model.name!r}, sequences of {job.seq_len} tokens, micro-batch "
        f"{layout.micro_batch}, {layout.micro_batches(job.global_batch)} of them per step"
    ]
    if work.recompute is not Recompute.NONE and _kind(work) != "FSDP":
        lost.append("recompute full: switch on gradient checkpointing in the program")
    if layout.sequence_parallel:
        lost.append("sequence parallel: the model's own tp plan (transformers) decides")
    return lost
