"""torchtitan: TOML of versions up to 0.2, Python recipes and flags of later ones, read.

Flags are ``--section.key value``; a script may name its TOML with ``--job.config_file``. The
writers stand in ``torchtitan_toml`` and ``torchtitan_python``.
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from planner.errors import SpecError
from planner.formats.loose import fill_holes, load_loose, without_holes
from planner.formats.setup import Meaning, Reading, Setup, sort_settings, switch, text_of, whole
from planner.formats.shell import read_script
from planner.formats.torchtitan_python import read_recipe
from planner.layout.layout import Recompute
from planner.layout.rules_torchtitan import FLAVORS, SINGLE
from planner.spec.files import read_text
from planner.spec.huggingface import load_model
from planner.spec.model import ModelSpec
from planner.spec.software import TORCHTITAN, TORCHTITAN_COMPILED

_P = "parallelism."
# torch's names of schedules -> the planner's, where they differ from 1F1B and interleaved 1F1B
SCHEDULES = {"GPipe": "gpipe", "ZBVZeroBubble": "zb_v", "DualPipeV": "dualpipe_v"}
SETTINGS: dict[str, Meaning] = {
    "model.name": Meaning("family", text_of, "model"),
    "model.flavor": Meaning("flavor", text_of, "size"),
    "module": Meaning("family", text_of, "model"),
    "config": Meaning("recipe", text_of, "recipe"),
    "model.converters": Meaning("converters", text_of, "converters"),
    "training.local_batch_size": Meaning("local_batch", whole, "sequences of a rank"),
    "training.batch_size": Meaning("local_batch", whole, "sequences of a rank"),
    "training.global_batch_size": Meaning("global_batch", whole, "global batch"),
    "training.seq_len": Meaning("seq_len", whole, "tokens of a sequence"),
    "training.num_tokens_per_microbatch_per_dp_rank": Meaning(
        "micro_tokens", whole, "tokens of a micro-batch"
    ),
    "training.num_tokens_per_train_step": Meaning("step_tokens", whole, "tokens of a step"),
    "training.enable_cpu_offload": Meaning("offload", switch, "optimizer and weights on the CPU"),
    "training.mixed_precision_param": Meaning("dtype", text_of, "precision"),
    f"{_P}data_parallel_replicate_degree": Meaning("replicate", whole, "copies"),
    f"{_P}data_parallel_shard_degree": Meaning("shard", whole, "ranks that share a copy"),
    f"{_P}fsdp_reshard_after_forward": Meaning("reshard", text_of, "reshard after forward"),
    f"{_P}tensor_parallel_degree": Meaning("tp", whole, "tp"),
    f"{_P}enable_sequence_parallel": Meaning("sequence_parallel", switch, "sequence parallel"),
    f"{_P}enable_async_tensor_parallel": Meaning("async_tp", switch, "tp overlap"),
    "compile.enable_async_tensor_parallel": Meaning("async_tp", switch, "tp overlap"),
    f"{_P}context_parallel_degree": Meaning("cp", whole, "cp"),
    f"{_P}context_parallel_rotate_method": Meaning("rotate", text_of, "context exchange"),
    f"{_P}pipeline_parallel_degree": Meaning("pp", whole, "pp"),
    f"{_P}pipeline_parallel_schedule": Meaning("schedule", text_of, "schedule"),
    f"{_P}pipeline_parallel_layers_per_stage": Meaning("stage_layers", whole, "layers of a stage"),
    f"{_P}pipeline_parallel_first_stage_less_layers": Meaning(
        "first_less", whole, "layers fewer on the first stage"
    ),
    f"{_P}pipeline_parallel_last_stage_less_layers": Meaning(
        "last_less", whole, "layers fewer on the last stage"
    ),
    f"{_P}pipeline_parallel_microbatch_size": Meaning("pipeline_batch", whole, "micro-batch"),
    f"{_P}num_pp_microbatches": Meaning("pipeline_micro_batches", whole, "micro-batches"),
    f"{_P}module_fqns_per_model_part": Meaning("parts", lambda value: value, "stages"),
    f"{_P}expert_parallel_degree": Meaning("ep", whole, "ep"),
    f"{_P}expert_tensor_parallel_degree": Meaning("etp", whole, "etp"),
    "activation_checkpoint.mode": Meaning("recompute_mode", text_of, "recompute", True),
    "activation_checkpoint.selective_ac_option": Meaning("selective", text_of, "recompute every"),
    "compile.enable": Meaning("compile", switch, "torch.compile"),
    "training.compile": Meaning("compile", switch, "torch.compile"),
}
_NEUTRAL = {
    "job", "profiling", "metrics", "model", "optimizer", "lr_scheduler", "training", "checkpoint",
    "compile", "comm", "memory_estimation", "fault_tolerance", "experimental", "validation",
    "quantize", "float8", "mx", "debug", "parallelism", "activation_checkpoint", "profiler",
    "dataloader", "tokenizer", "loss", "validator", "hf_assets_path", "dump_folder",
    "model_spec", "override",
}  # fmt: skip
_UNKNOWN_SECTIONS = {"parallelism", "activation_checkpoint"}
_KNOWN_BUT_NEUTRAL = {
    f"{_P}{name}" for name in (
        "disable_loss_parallel", "enable_compiled_autograd", "context_parallel_load_balancer",
        "enable_fsdp_symm_mem", "spmd_backend", "pipeline_parallel_schedule_csv",
        "pipeline_parallel_split_points", "context_parallel_ptrr_mask_key",
    )
} | {"activation_checkpoint.early_stop", "activation_checkpoint.memory_budget"}  # fmt: skip


def is_neutral(name: str) -> bool:
    """Whether a setting is torchtitan's and touches neither layout, memory nor step time."""
    section = name.split(".")[0]
    if section in _UNKNOWN_SECTIONS:
        return name in _KNOWN_BUT_NEUTRAL or name.startswith("activation_checkpoint.per_op")
    return section in _NEUTRAL


def read_torchtitan(path: Path, text: str, given: Mapping[str, str]) -> Setup:
    """Return what a TOML file says, or a script with flags and the TOML that it names."""
    gpus: int | None = None
    remarks: tuple[str, ...] = ()
    if path.suffix == ".toml":
        settings = load_loose(path, text, given).settings
    elif path.suffix == ".py":
        found, said = read_recipe(path, text, given)
        settings, remarks = fill_holes(found, given), tuple(said)
    else:
        settings, gpus, remarks = _flags(path, text, given)
    decided, problems = without_holes(settings, SETTINGS, str(path))
    reading = sort_settings(decided, SETTINGS, is_neutral, str(path))
    reading.problems += problems
    reading.assumed += remarks
    return _setup(path, reading, gpus)


def _flags(
    path: Path, text: str, given: Mapping[str, str]
) -> tuple[dict[str, Any], int | None, tuple[str, ...]]:
    """Return the settings of the command in a script, over those of its TOML file."""
    from planner.formats.launch_line import started_gpus
    from planner.formats.megatron import settings_of

    script = read_script(path, text, given)
    commands = [command.words for command in script.commands
                if any(re.match(r"--(parallelism|training|job|model|module)\b", word)
                       for word in command.words)]  # fmt: skip
    if not commands:
        raise SpecError(f"{path}: no command with torchtitan flags, such as "
                        "'--parallelism.tensor_parallel_degree 8', was found")  # fmt: skip
    words = max(commands, key=len)
    given_flags, twice = settings_of(words)
    flags = {name[2:].replace("-", "_"): value for name, value in given_flags.items()
             if "." in name or name in ("--module", "--config")}  # fmt: skip
    settings: dict[str, Any] = {}
    named = flags.get("job.config_file") or str(script.variables.get("CONFIG_FILE", ""))
    if named:
        file = next((one for one in (path.parent / named, Path(named)) if one.is_file()), None)
        if file is None:
            twice = [*twice, f"{named} is not there to be read"]
        else:
            settings = dict(load_loose(file, read_text(file), given).settings)
    variables = [f"--{name}={value}" for name, value in
                 (("nnodes", script.variables.get("NNODES")),
                  ("nproc-per-node", script.variables.get("NGPU"))) if value]  # fmt: skip
    gpus = started_gpus([*words, *variables])
    return settings | flags, gpus, (*script.remarks, *twice)


def _setup(path: Path, reading: Reading, gpus: int | None) -> Setup:
    values = reading.values
    tp, cp, pp, ep, etp = (max(1, values.get(name, 1)) for name in ("tp", "cp", "pp", "ep", "etp"))
    model = _model(values, reading)
    stages, vpp = _stages(values, model, pp, reading)
    copies, shard = values.get("replicate", 1), values.get("shard", -1)
    micro, accumulation = _batch(values, pp, reading)
    mode = values.get("recompute_mode", "selective")
    layers, kind = _recompute(mode, str(values.get("selective", "2")), model, stages, pp * vpp)
    seq_len = values.get("seq_len", 2048 if "micro_tokens" not in values else None)
    batch = values.get("global_batch")
    if values.get("step_tokens") and seq_len:
        batch = values["step_tokens"] // seq_len
    _silent(values, reading)
    software = TORCHTITAN_COMPILED if values.get("compile") else TORCHTITAN
    options = dict(values) | {"pipeline_micro_batches": accumulation}
    return Setup(
        framework="torchtitan", path=str(path), software=software,
        model=model, tp=tp, cp=cp, pp=pp, vpp=vpp, ep=ep, etp=etp,
        dp=copies * shard if shard > 0 else None, micro_batch=micro,
        accumulation=None if batch and batch > 0 else accumulation,
        global_batch=batch if batch and batch > 0 else None, seq_len=seq_len,
        precision=_precision(values), sequence_parallel=values.get("sequence_parallel", True)
        and tp > 1, zero=_zero(values, pp, cp), replicas=max(1, copies), recompute=kind,
        recompute_layers=layers, stages=stages, gpus=gpus, options=options,
        schedule=SCHEDULES.get(values.get("schedule", ""), "") if pp > 1 else "",
        offload_optimizer=float(bool(values.get("offload"))),
        offload_weights=bool(values.get("offload")) and pp == 1, **reading.lists(),
    )  # fmt: skip


def _model(values: Mapping[str, Any], reading: Reading) -> ModelSpec | None:
    """Return the shipped model that family and flavor (or the recipe's name) mean."""
    family = values.get("family", "llama3").lower().rsplit(".", 1)[-1]
    flavor = values.get("flavor", "").lower()
    recipe = values.get("recipe", "").lower()
    for (name, size), shipped in FLAVORS.items():
        if (name, size) == (family, flavor) or recipe == f"{name}_{size.replace('-', '_')}":
            return load_model(shipped)
    said = f"{family} {flavor or recipe}".strip()
    reading.assumed.append(f"model {said!r} does not ship with planner; --model states it")
    return None


def _stages(
    values: Mapping[str, Any], model: ModelSpec | None, pp: int, reading: Reading
) -> tuple[tuple[int, ...], int]:
    """Return the layers of each stage and the stages of a rank, as torchtitan splits them."""
    if pp == 1:
        return (), 1
    parts = values.get("parts")
    if isinstance(parts, Sequence) and not isinstance(parts, str) and parts:
        counts = tuple(sum(str(name).startswith("layers.") for name in part) for part in parts)
        return counts, max(1, len(counts) // pp)
    vpp = 1 if values.get("schedule", "1F1B") in SINGLE else 2
    if model is None:
        return (), vpp
    ends = (values.get("first_less", 1), values.get("last_less", 1))
    counted = model.layers + sum(ends)
    if values.get("stage_layers"):
        chunks = ceil(counted / values["stage_layers"])
        if chunks % pp:
            reading.problems.append(
                f"T19: pipeline_parallel_layers_per_stage {values['stage_layers']} makes {chunks} "
                f"stages, which pp={pp} does not divide; try {ceil(counted / (pp * vpp))} "
                "(torchtitan/distributed/pipeline_parallel.py)"
            )
            return (), vpp
        vpp = chunks // pp
    chunks = pp * vpp
    each, extra = divmod(counted, chunks)
    if each < max(*ends, 1):
        return (), vpp
    sizes = [each + (index < extra) for index in range(chunks)]
    sizes[0] -= ends[0]
    sizes[-1] -= ends[1]
    return tuple(sizes), vpp


def _batch(values: Mapping[str, Any], pp: int, reading: Reading) -> tuple[int | None, int]:
    """Return the micro-batch in sequences, and those of one pass of a rank."""
    if "micro_tokens" in values:
        length = values.get("seq_len")
        if not length:
            reading.assumed.append("the batch is in tokens: --seq-len and --micro-batch state it")
            return None, values.get("pipeline_micro_batches", 1)
        return max(1, values["micro_tokens"] // length), values.get("pipeline_micro_batches", 1)
    local = values.get("local_batch", 8)
    if pp == 1:
        return local, 1
    micro = max(1, values.get("pipeline_batch", 1))
    if local % micro:
        reading.problems.append(
            f"T20: local_batch_size {local} is not a multiple of pipeline_parallel_microbatch_size "
            f"{micro}; try {-(-local // micro) * micro} (torch/distributed/pipelining)"
        )
    return micro, max(1, local // micro)


def _recompute(
    mode: str, selective: str, model: ModelSpec | None, stages: Sequence[int], chunks: int
) -> tuple[int | None, Recompute]:
    """Return the layers of a stage recomputed in full, and what the others do."""
    if mode == "full":
        return None, Recompute.FULL
    if mode == "selective" and selective == "op":
        return None, Recompute.SELECTIVE
    if mode == "selective" and selective.isdigit() and int(selective) > 0 and model:
        most = max(stages) if stages else ceil(model.layers / chunks)
        return most // int(selective), Recompute.NONE
    return None, Recompute.NONE


def _zero(values: Mapping[str, Any], pp: int, cp: int) -> int:
    """Return the ZeRO stage: under a pipeline weights and gradients stay whole by default."""
    if values.get("shard", -1) == 1 and cp == 1:
        return 0
    reshard = values.get("reshard", "default")
    if pp > 1:
        return 3 if reshard == "always" else 1
    return 2 if reshard == "never" else 3


def _precision(values: Mapping[str, Any]) -> str:
    converters = values.get("converters", "")
    if "mx" in converters:
        return "mxfp8"
    if "float8" in converters:
        return "fp8"
    return "fp32" if values.get("dtype") == "float32" else "bf16"


def _silent(values: Mapping[str, Any], reading: Reading) -> None:
    tp, pp, cp = (values.get(name, 1) for name in ("tp", "pp", "cp"))
    cases = {
        "enable_async_tensor_parallel does nothing with tp 1": values.get("async_tp") and tp == 1,
        "pipeline_parallel_schedule does nothing with pp 1": "schedule" in values and pp == 1,
        "pipeline_parallel_microbatch_size does nothing with pp 1":
            "pipeline_batch" in values and pp == 1,
        "context_parallel_rotate_method does nothing with cp 1": "rotate" in values and cp == 1,
        "selective_ac_option does nothing unless the mode is selective": "selective" in values
        and values.get("recompute_mode", "selective") != "selective",
    }  # fmt: skip
    reading.silent += [sentence for sentence, holds in cases.items() if holds]
    schedule = values.get("schedule", "1F1B")
    unpriced = {
        "recompute by memory budget": values.get("recompute_mode") == "memory_budget",
        f"schedule {schedule} (estimated as 1F1B)": pp > 1
        and schedule not in ("1F1B", "Interleaved1F1B", *SCHEDULES),
        "tensor-parallel overlap": values.get("async_tp") and tp > 1,
    }
    reading.unpriced += [what for what, present in unpriced.items() if present]
