"""Which format a file is in, by what it holds, and the reader of it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from planner.errors import SpecError
from planner.formats.megatron import read_megatron
from planner.formats.setup import Setup
from planner.spec.files import read_text

Reader = Callable[[Path, str, Mapping[str, str]], Setup]

READERS: dict[str, Reader] = {"megatron": read_megatron}
TITLES = {"megatron": "Megatron-LM arguments"}
_MEGATRON = re.compile(r"--(num-layers|tensor-model-parallel-size|pipeline-model-parallel-size)\b")
_SCRIPTS = {".sh", ".bash", ".sbatch", ".slurm", ".args", ".txt", ""}


def detect(path: Path, text: str) -> str | None:
    """Return the name of the format of a file; None where it is none that is read."""
    if path.suffix in _SCRIPTS or text.startswith("#!"):
        return "megatron" if _MEGATRON.search(text) or _calls_training(text) else None
    return None


def _calls_training(text: str) -> bool:
    return re.search(r"pretrain_\w+\.py|\bsource\b|^\s*\. ", text, re.M) is not None


def read_foreign(
    path: Path, given: Mapping[str, str] | None = None, form: str | None = None
) -> Setup:
    """Return what a framework's file says; ``given`` sets its variables, ``form`` its format."""
    text = read_text(path)
    name = form or detect(path, text)
    if name is None:
        hint = "a Python recipe is not read: dump its configuration" if path.suffix == ".py" else (
            f"known are {', '.join(TITLES.values())}"
        )  # fmt: skip
        raise SpecError(f"{path}: the format is not recognised; {hint}")
    return READERS[name](path, text, given or {})
