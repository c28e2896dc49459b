"""Step times from the logs of Megatron-LM, torchtitan, DeepSpeed and the launcher.

Each line of interest was read from the frameworks' own source: Megatron-LM
``training/training.py`` (``elapsed time per iteration (ms)``), torchtitan ``components/metrics.py``
(``step: … tps: …``, tokens per second and device; validation prints a line much like it), DeepSpeed
``runtime/pipe/engine.py`` (``iter time (s)``) and ``utils/timer.py`` (``CurrSamplesPerSec``: the
global batch ÷ seconds of the last step). Peaks of memory are read where a log states them.
"""

import re
from collections.abc import Callable
from pathlib import Path

from planner.errors import SpecError
from planner.plan import Plan
from planner.spec.files import read_text
from planner.tune.run import SETTLE, Measured, read_launcher_log
from planner.units import GB, GIB, MIB

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = r"([\d,]+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_MEGATRON = re.compile(r"elapsed time per iteration \(ms\):\s*" + _NUMBER)
_DEEPSPEED = re.compile(r"(?:iter time \(s\)|iter_time \(s\)):\s*" + _NUMBER)
_SAMPLES = re.compile(r"\bCurrSamplesPerSec=" + _NUMBER)
# older torchtitan calls its tokens words
_TITAN = re.compile(r"(?<!validate )\bstep:\s*\d+\b.*?\b[tw]ps:\s*" + _NUMBER)
# peak of one GPU, and its unit: Megatron-LM, Megatron Bridge, DeepSpeed; torchtitan's is reserved
_PEAKS = (
    (re.compile(r"memory \(MB\).*?\| max allocated:\s*" + _NUMBER), MIB),
    (re.compile(r"mem-max-allocated-gigabytes:\s*" + _NUMBER), GB),
    (re.compile(r"\bMaxMemAllocated=" + _NUMBER + "GB"), GIB),
    (re.compile(r"\bstep:\s*\d+\b.*?\bmemory:\s*" + _NUMBER + "GiB"), GIB),
)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _megatron(text: str, plan: Plan) -> list[float]:
    del plan
    return [1e-3 * _number(found) for found in _MEGATRON.findall(text)]


def _deepspeed(text: str, plan: Plan) -> list[float]:
    """Return what the pipeline engine prints, or else what the rate of samples says."""
    if found := _DEEPSPEED.findall(text):
        return [_number(one) for one in found]
    rates = [_number(one) for one in _SAMPLES.findall(text)]
    return [plan.job.global_batch / rate for rate in rates if rate > 0]


def _peak_bytes(text: str) -> float | None:
    """Return the most memory that any GPU of the log had, by the first counter that it states."""
    for pattern, unit in _PEAKS:
        if found := pattern.findall(text):
            return unit * max(_number(one) for one in found)
    return None


def _titan(text: str, plan: Plan) -> list[float]:
    """Return seconds from tokens per second and device."""
    tokens = plan.job.global_batch * plan.job.seq_len / len(plan.rank_map)
    return [tokens / rate for found in _TITAN.findall(text) if (rate := _number(found)) > 0]


FORMATS: dict[str, Callable[[str, Plan], list[float]]] = {
    "megatron": _megatron,
    "deepspeed": _deepspeed,
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
            return Measured(tuple(steps[SETTLE:]), _peak_bytes(text))
        if steps:
            raise SpecError(f"{path}: {len(steps)} steps; {SETTLE} settle first, log more of them")
    known = ", ".join(FORMATS)
    raise SpecError(f"{path}: no line of a step of {known} or the launcher; give what it printed")
