"""Which format a file is in, by what it holds, and the reader of it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from planner.errors import SpecError
from planner.formats.accelerate import read_accelerate
from planner.formats.deepspeed import read_deepspeed
from planner.formats.megatron import read_megatron
from planner.formats.nanotron import read_nanotron
from planner.formats.nemo import read_nemo
from planner.formats.neox import read_neox
from planner.formats.setup import Setup
from planner.formats.torchtitan import read_torchtitan
from planner.spec.files import read_text

Reader = Callable[[Path, str, Mapping[str, str]], Setup]

READERS: dict[str, Reader] = {
    "megatron": read_megatron,
    "torchtitan": read_torchtitan,
    "deepspeed": read_deepspeed,
    "accelerate": read_accelerate,
    "nanotron": read_nanotron,
    "nemo": read_nemo,
    "neox": read_neox,
}
TITLES = {
    "megatron": "Megatron-LM arguments",
    "torchtitan": "torchtitan TOML, flags or Python recipes",
    "deepspeed": "DeepSpeed JSON",
    "accelerate": "accelerate YAML",
    "nanotron": "nanotron YAML",
    "nemo": "NeMo or Megatron-Bridge YAML",
    "neox": "GPT-NeoX YAML",
}
_MEGATRON = re.compile(r"--(num-layers|tensor-model-parallel-size|pipeline-model-parallel-size)\b")
_TRAINING = re.compile(r"pretrain_\w+\.py|\bsource\b|^\s*\. ", re.M)
_TORCHTITAN = re.compile(
    r"--(parallelism|training|activation_checkpoint|job)[.]\w+|torchtitan\.train|"
    r"--module \w+ --config"
)
_RECIPE = re.compile(r"\bTrainer\.Config\b|torchtitan\.models\.\w+\.config_registry")
_SCRIPTS = {".sh", ".bash", ".sbatch", ".slurm", ".args", ".txt", ""}
# settings that only this format's YAML holds, most telling first
_YAML = (
    ("nanotron", re.compile(r"^\s*\"?tokens\"?\s*:|batch_accumulation_per_replica", re.M)),
    ("neox", re.compile(r"(^|[\s{\"'])(pipe|model)[-_]parallel[-_]size[\"']?\s*:")),
    ("accelerate", re.compile(r"^(compute_environment|distributed_type|"
                              r"parallelism_config|deepspeed_config):", re.M)),
    ("nemo", re.compile(r"tensor_model_parallel_size|--tensor-model-parallel-size|"
                        r"pipeline_model_parallel_size|expert_model_parallel_size")),
    # a file that only changes what it inherits
    ("nemo", re.compile(r"^defaults:\s*(- )?[\"']?\S+\.ya?ml\b", re.M)),
)  # fmt: skip
_DEEPSPEED = re.compile(
    r'"(zero_optimization|train_batch_size|train_micro_batch_size_per_gpu|'
    r'gradient_accumulation_steps)\s*"\s*:'
)


# trainers whose files are not read: name, what tells them, what to do instead
_UNREAD = (
    ("Megatron-Bridge's Python recipe", r"megatron\.bridge|ConfigContainer",
     "save its configuration (ConfigContainer.to_yaml) and name that file"),
    ("OLMo-core's Python script", r"\bolmo_core\b",
     "state the layout as planner check MODEL --zero 3 does"),
    ("InternEvo's Python configuration", r"\bparallel\s*=\s*dict\(",
     "it shards weights over a group of their own (isp), for which no layout has a field"),
    ("axolotl's YAML", r"(?m)^base_model\s*:", "name the DeepSpeed file that it points to"),
    ("llm-foundry's YAML", r"(?m)^(fsdp_config|max_seq_len)\s*:",
     "state the layout as planner check MODEL --zero 3 does"),
    ("ArcticTraining's YAML", r"(?m)^type\s*:(.*\n)*deepspeed\s*:",
     "write its deepspeed section into a JSON file and name that"),
)  # fmt: skip


def _unread(path: Path, text: str) -> str:
    """Return which trainer's a file is, and what to do; empty for a file of nobody known."""
    if path.suffix not in (".py", ".yaml", ".yml"):
        return ""
    found = (f"{name} is not read: {remedy}" for name, mark, remedy in _UNREAD
             if (path.suffix == ".py") == ("Python" in name) and re.search(mark, text))  # fmt: skip
    return next(found, "")


def detect(path: Path, text: str) -> str | None:
    """Return the name of the format of a file; None where it is none that is read."""
    if path.suffix == ".json" or (text.lstrip().startswith("{") and path.suffix in _SCRIPTS):
        return "deepspeed" if _DEEPSPEED.search(text) else None
    if path.suffix == ".toml":
        known = re.search(r"^\[(parallelism|training|activation_checkpoint|model)\]", text, re.M)
        return "torchtitan" if known else None
    if path.suffix == ".py":
        return "torchtitan" if _RECIPE.search(text) else None
    if path.suffix in (".yaml", ".yml"):
        return next((name for name, mark in _YAML if mark.search(text)), None)
    if path.suffix in _SCRIPTS or text.startswith("#!"):
        if _MEGATRON.search(text):
            return "megatron"
        if _TORCHTITAN.search(text):
            return "torchtitan"
        return "megatron" if _TRAINING.search(text) else None
    return None


def read_foreign(
    path: Path, given: Mapping[str, str] | None = None, form: str | None = None
) -> Setup:
    """Return what a framework's file says; ``given`` sets its variables, ``form`` its format."""
    text = read_text(path)
    name = form or detect(path, text)
    if name is None:
        if other := _unread(path, text):
            raise SpecError(f"{path}: {other}")
        hint = "a Python recipe is not read: dump its configuration" if path.suffix == ".py" else (
            f"known are {', '.join(TITLES.values())}"
        )  # fmt: skip
        raise SpecError(f"{path}: the format is not recognised; {hint}")
    return READERS[name](path, text, given or {})
