"""DeepSpeed's JSON configuration, read and written.

It holds batch, precision, ZeRO and offload; the model, and what trains it, stand elsewhere.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from planner.formats.loose import load_loose, without_holes
from planner.formats.methods import method_problems
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
from planner.formats.unsupported import (
    offloaded,
    partial_recompute,
    rank_order,
    refuse,
    uneven_stages,
)
from planner.formats.work import Work
from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.layout.rule import Facts, broken, facts_of
from planner.layout.rules_deepspeed import RULES
from planner.spec.software import DEEPSPEED

_ZERO = "zero_optimization."

SETTINGS: dict[str, Meaning] = {
    "train_batch_size": Meaning("stated_batch", whole, "global batch"),
    "train_micro_batch_size_per_gpu": Meaning("micro_batch", whole, "micro-batch"),
    "gradient_accumulation_steps": Meaning("accumulation", whole, "micro-batches of a step"),
    f"{_ZERO}stage": Meaning("zero", whole, "ZeRO"),
    f"{_ZERO}offload_optimizer.device": Meaning("offload_optimizer", text_of, "optimizer on"),
    f"{_ZERO}offload_optimizer.ratio": Meaning("offload_ratio", number, "share offloaded"),
    f"{_ZERO}offload_param.device": Meaning("offload_parameters", text_of, "parameters on"),
    f"{_ZERO}cpu_offload": Meaning("old_offload", switch, "optimizer on the CPU"),
    f"{_ZERO}zero_hpz_partition_size": Meaning("hpz", whole, "second weight shards over ranks"),
    f"{_ZERO}mics_shard_size": Meaning("mics", whole, "shards over ranks"),
    f"{_ZERO}zero_quantized_weights": Meaning("quantized_weights", switch, "8-bit weight gather"),
    f"{_ZERO}zero_quantized_gradients": Meaning(
        "quantized_gradients", switch, "4-bit gradient exchange"
    ),
    f"{_ZERO}overlap_comm": Meaning("overlap", switch, "reduction behind backward"),
    f"{_ZERO}reduce_bucket_size": Meaning("bucket", whole, "elements of a reduction"),
    "bf16.enabled": Meaning("bf16", switch, "bf16"),
    "bfloat16.enabled": Meaning("bf16", switch, "bf16"),
    "fp16.enabled": Meaning("fp16", switch, "fp16"),
    "optimizer.type": Meaning("optimizer", text_of, "optimizer"),
    "tensor_parallel.autotp_size": Meaning("tp", whole, "tp"),
    "sequence_parallel_size": Meaning("cp", whole, "cp by all-to-all"),
    "expert_parallel.autoep_size": Meaning("ep", whole, "ep"),
    "expert_parallel.expert_tensor_parallel_size": Meaning("etp", whole, "etp"),
    "activation_checkpointing.cpu_checkpointing": Meaning(
        "offload_activations", switch, "checkpoints on the CPU"
    ),
    "activation_checkpointing.partition_activations": Meaning(
        "partition_activations", switch, "checkpoints split over tp"
    ),
}
_NEUTRAL_SECTIONS = {
    "optimizer", "scheduler", "fp16", "bf16", "bfloat16", "amp", "gradient_clipping",
    "steps_per_print", "wall_clock_breakdown", "tensorboard", "wandb", "csv_monitor", "comet",
    "comms_logger",
    "flops_profiler", "dump_state", "prescale_gradients", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "autotuning", "checkpoint", "data_types", "aio", "elasticity",
    "communication_data_type", "seq_parallel_communication_data_type", "gradient_predivide_factor",
    "sparse_gradients", "disable_allgather", "activation_checkpointing", "compression_training",
    "data_efficiency", "curriculum_learning", "compile", "pipeline", "hybrid_engine",
    "gradient_accumulation_dtype", "memory_breakdown", "monitor_config", "nebula", "dataloader",
    "torch_autocast", "tensor_parallel", "expert_parallel", "use_node_local_storage",
}  # fmt: skip
_NEUTRAL_ZERO = (
    "stage3_", "allgather_", "reduce_scatter", "contiguous_gradients", "round_robin_gradients",
    "sub_group_size", "offload_", "load_from_fp32_weights", "elastic_checkpoint",
    "memory_efficient",
    "ignore_unused_parameters", "use_multi_rank", "model_persistence", "param_persistence",
    "prefetch_bucket", "max_", "gather_16bit", "override_module", "zeropp_", "mics_", "zero_",
    "leaf_module", "log_trace", "use_all_reduce", "enable_sanity", "save_muon",
)  # fmt: skip


def is_neutral(name: str) -> bool:
    """Whether a setting is DeepSpeed's and touches neither layout, memory nor step time."""
    if name.startswith(_ZERO):
        return name.removeprefix(_ZERO).startswith(_NEUTRAL_ZERO)
    return name.split(".")[0] in _NEUTRAL_SECTIONS


def read_deepspeed(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a DeepSpeed JSON file says; ``auto`` leaves a value open."""
    loose = load_loose(path, text, given)
    setup = setup_of_deepspeed(path, loose.settings)
    silent = tuple(remark for remark in loose.remarks if "ignores it" in remark)
    others = tuple(remark for remark in loose.remarks if remark not in silent)
    return replace(setup, silent=(*silent, *setup.silent), assumed=(*others, *setup.assumed))


def setup_of_deepspeed(path: Path, settings: Mapping[str, Any]) -> Setup:
    """Return the record of flat DeepSpeed settings."""
    decided, problems = without_holes(settings, SETTINGS, str(path))
    reading = sort_settings(decided, SETTINGS, is_neutral, str(path))
    reading.problems += problems
    values = reading.values
    _ignored(path, reading)
    _unpriced(values, reading)
    cp, tp = max(1, values.get("cp", 1)), max(1, values.get("tp", 1))
    zero = values.get("zero", 0)
    exchange = {
        "name": f"deepspeed cp{cp > 1}",
        "context_exchange": "all_to_all" if cp > 1 else "ring",
        "overlap_grad_reduce": values.get("overlap", zero == 3),
    }
    for name, switch_ in (("quantised_weight_gather", "quantized_weights"),
                          ("quantised_gradient_reduction", "quantized_gradients")):  # fmt: skip
        if values.get(switch_):
            exchange |= {name: True, "name": f"{exchange['name']} {switch_}"}
    return Setup(
        framework="deepspeed", path=str(path), software=DEEPSPEED.model_copy(update=exchange),
        tp=tp, cp=cp, ep=max(1, values.get("ep", 1)), etp=max(1, values.get("etp", 1)),
        micro_batch=values.get("micro_batch"), accumulation=_accumulation(values),
        global_batch=values.get("stated_batch"), precision=_precision(values),
        zero=zero, shard_ranks=values.get("mics") if values.get("mics", 0) > 1 else None,
        options=values, **offload_of(values, zero, reading), **reading.lists(),
    )  # fmt: skip


def _precision(values: Mapping[str, Any]) -> str | None:
    if not {"bf16", "fp16"} & set(values):
        return None
    return "bf16" if values.get("bf16") else "fp16" if values.get("fp16") else "fp32"


def _accumulation(values: Mapping[str, Any]) -> int | None:
    """Return the micro-batches of a step; one where the file gives a single batch size."""
    alone = ("micro_batch" in values) != ("stated_batch" in values)
    found: int | None = values.get("accumulation", 1 if alone else None)
    return found


def _ignored(path: Path, reading: Reading) -> None:
    """DeepSpeed refuses unknown settings inside ZeRO and ignores all others in silence."""
    for knob in list(reading.unknown):
        near = get_close_matches(knob.name.strip(), SETTINGS, n=1, cutoff=0.8)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if knob.name.startswith(_ZERO):
            reading.problems.append(
                f"{path}: {knob.name}: DeepSpeed refuses settings it does not know in "
                f"zero_optimization{hint} (runtime/zero/config.py, DeepSpeed 0.19)"
            )
        elif near:
            reading.silent.append(f"{knob.name!r} is not a setting of DeepSpeed{hint}")


def offload_of(values: Mapping[str, Any], zero: int, reading: Reading) -> dict[str, Any]:
    """Return what leaves the GPU: optimizer, weights, the inputs of recomputed layers.

    DeepSpeed does not offload at stage 0, and the whole optimizer where the weights go.
    """
    leaves = values.get("offload_optimizer", "none") != "none" or bool(values.get("old_offload"))
    weights = zero == 3 and values.get("offload_parameters", "none") != "none"
    share = float(values.get("offload_ratio", 1.0)) if zero == 3 else 1.0
    found: dict[str, Any] = {"offload_optimizer": share if leaves and zero else 0.0}
    if weights:
        if not leaves or share < 1:
            reading.assumed.append(
                "with offload_param the estimate has the whole optimizer on the host too"
            )
        found = {"offload_optimizer": 1.0, "offload_weights": True}
    if values.get("offload_activations"):
        reading.assumed.append("cpu_checkpointing: the program calls deepspeed.checkpointing")
        found |= {"recompute": Recompute.FULL, "offload": Offload(1.0, "host")}
    return found


def _unpriced(values: Mapping[str, Any], reading: Reading) -> None:
    cases = {
        "optimizer offload to drives (estimated as to the host)":
            values.get("offload_optimizer") == "nvme",
        "parameter offload to drives (estimated as to the host)":
            values.get("offload_parameters") == "nvme",
        f"optimizer {values.get('optimizer')}":
            "adam" not in values.get("optimizer", "adam").lower(),
    }  # fmt: skip
    reading.unpriced += [what for what, present in cases.items() if present]
    if not values.get("zero", 0) and values.get("offload_optimizer", "none") != "none":
        reading.silent.append("offload_optimizer does nothing at stage 0")
    if values.get("zero", 0) < 3 and values.get("hpz", 1) > 1:
        reading.silent.append("zero_hpz_partition_size does nothing below stage 3")


def _stage(layout: Layout) -> int:
    """Return the ZeRO stage; on one rank, where all are alike, the one that offload needs."""
    if not layout.offload_optimizer or layout.dp * layout.cp > 1:
        return layout.shard.zero_stage()
    return 3 if layout.offload_weights or layout.offload_optimizer < 1 else 2


def write_deepspeed(work: Work) -> str:
    """Return the JSON of a job; ``LayoutError`` with every reason why DeepSpeed cannot run it."""
    layout, job = work.layout, work.job
    shard, ranks = layout.shard, layout.dp * layout.cp
    whole_group = replace(shard, secondary=0) in [Shard.zero(stage, ranks) for stage in range(4)]
    facts = Facts(**facts_of(work.model, job, layout))  # type: ignore[arg-type]
    problems = broken(RULES, facts) + rank_order(work, "DeepSpeed") + offloaded(work, "DeepSpeed")
    problems += uneven_stages(work, "DeepSpeed") + partial_recompute(work, "DeepSpeed")
    problems += method_problems(work, "deepspeed")
    if not whole_group:
        problems.append(f"shards over {shard.optimizer} of {ranks} ranks: DeepSpeed takes all")
    if layout.pp > 1:
        problems.append("a pipeline is code (PipelineModule), not configuration; try pp 1")
    if layout.etp > 1 or job.precision not in ("bf16", "fp16"):
        problems.append(f"etp {layout.etp} or precision {job.precision!r} has no setting")
    refuse(problems)
    zero: dict[str, Any] = {"stage": _stage(layout), "overlap_comm": True,
                            "contiguous_gradients": True}  # fmt: skip
    if layout.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if layout.offload_optimizer < 1:
            zero["offload_optimizer"]["ratio"] = layout.offload_optimizer
    if layout.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    wire = {"zero_quantized_weights": job.software.quantised_weight_gather,
            "zero_quantized_gradients": job.software.quantised_gradient_reduction}  # fmt: skip
    zero |= {name: True for name, switch_ in wire.items() if switch_ and shard.weights > 1}
    if shard.secondary:
        zero["zero_hpz_partition_size"] = shard.secondary
    found: dict[str, Any] = {
        "train_batch_size": job.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.micro_batches(job.global_batch),
        "zero_optimization": zero,
        job.precision: {"enabled": True},
        "gradient_clipping": 1.0,
    }
    degrees = {"tensor_parallel": ("autotp_size", layout.tp),
               "expert_parallel": ("autoep_size", layout.ep)}  # fmt: skip
    found |= {section: {name: value} for section, (name, value) in degrees.items() if value > 1}
    if layout.cp > 1:
        found["sequence_parallel_size"] = layout.cp
    return json.dumps(found, indent=2) + "\n"


def lost_by_deepspeed(work: Work) -> list[str]:
    """Return what the JSON cannot carry: it stands in the training program."""
    lost = [f"model {work.model.name!r}, sequences of {work.job.seq_len} tokens"]
    if work.recompute is not Recompute.NONE:
        lost.append(f"recompute {work.recompute}: switch on gradient checkpointing in the program")
    return lost
