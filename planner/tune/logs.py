"""Step times from the logs of Megatron-LM, torchtitan, DeepSpeed and the launcher.

Each line of interest was read from the frameworks' own source: Megatron-LM
``training/training.py`` (``elapsed time per iteration (ms)``), torchtitan ``components/metrics.py``
(``step: … tps: …``, tokens per second and device), DeepSpeed ``runtime/engine.py`` and Megatron's
own line under it, ``iter time (s)`` of its pipeline engine.
"""

import re
from collections.abc import Callable
from pathlib import Path

from planner.errors import SpecError
from planner.plan import Plan
from planner.spec.files import read_text
from planner.tune.run import SETTLE, Measured, read_launcher_log

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = r"([\d,]+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_MEGATRON = re.compile(r"elapsed time per iteration \(ms\):\s*" + _NUMBER)
_DEEPSPEED = re.compile(r"(?:iter time \(s\)|iter_time \(s\)):\s*" + _NUMBER)
_TITAN = re.compile(r"\bstep:\s*\d+\b.*?\btps:\s*" + _NUMBER)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _seconds(pattern: re.Pattern[str], scale: float) -> Callable[[str, Plan], list[float]]:
    def read(text: str, plan: Plan) -> list[float]:
        del plan
        return [scale * _number(found) for found in pattern.findall(text)]

    return read


def _titan(text: str, plan: Plan) -> list[float]:
    """Return seconds from tokens per second and device."""
    tokens = plan.job.global_batch * plan.job.seq_len / len(plan.rank_map)
    return [tokens / rate for found in _TITAN.findall(text) if (rate := _number(found)) > 0]


FORMATS: dict[str, Callable[[str, Plan], list[float]]] = {
    "megatron": _seconds(_MEGATRON, 1e-3),
    "deepspeed": _seconds(_DEEPSPEED, 1.0),
    "torchtitan": _titan,
}


def read_log(path: Path, plan: Plan) -> Measured:
    """Return the steps that a log of a run of ``plan`` holds; the first ones settle.

    SpecError where no framework's line of a step is found, or too few.
    """
    text = _COLOUR.sub("", read_text(path))
    if text.lstrip().startswith("{"):
        return read_launcher_log(path)
    for read in FORMATS.values():
        steps = read(text, plan)
        if len(steps) > SETTLE:
            return Measured(tuple(steps[SETTLE:]))
        if steps:
            raise SpecError(f"{path}: {len(steps)} steps; {SETTLE} settle first, log more of them")
    known = ", ".join(FORMATS)
    raise SpecError(f"{path}: no line of a step of {known} or the launcher; give what it printed")
