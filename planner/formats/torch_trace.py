"""Reader of a torch profiler trace: kernel seconds of matrix products, by their shapes.

An operator (``aten::mm`` and its kin) holds its input shapes if ``record_shapes=True``; the kernels
that it launched carry its ``External id``. Their durations are added up (a product may be split
over kernels); of several products of one shape the median is taken.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from planner.errors import SpecError
from planner.formats.reading import Reading, first
from planner.spec.measured import GemmMeasurement

# operator: which of its inputs are the two factors
PRODUCTS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::_scaled_mm": (0, 1)}
DTYPES = {
    "c10::BFloat16": "bf16",
    "c10::Half": "fp16",
    "c10::Float8_e4m3fn": "fp8",
    "c10::Float8_e5m2": "fp8",
}
Shape = tuple[int, int, int, str]


def is_torch_trace(text: str) -> bool:
    """Whether a text is a Chrome trace of torch's profiler."""
    return '"traceEvents"' in text and '"schemaVersion"' in text


def read_torch_trace(path: Path, text: str, collective: str | None = None) -> Reading:
    """Return the products of a trace; ``collective`` does not apply."""
    del collective
    data = _parsed(path, text)
    events = [event for event in data["traceEvents"] if isinstance(event, dict)]
    kernel_s = _kernel_seconds(path, events)
    found: dict[Shape, list[float]] = defaultdict(list)
    other = unlinked = 0
    for event in events:
        if event.get("cat") != "cpu_op" or event.get("name") not in PRODUCTS:
            continue
        shape, seconds = _shape(event), kernel_s.get(_id(event))
        if shape is None:
            other += 1
        elif seconds is None:
            unlinked += 1
        else:
            found[shape].append(seconds)
    if not found:
        raise SpecError(f"{path}: {_reason(data, other, unlinked)}")
    gemms = tuple(
        GemmMeasurement(m=m, n=n, k=k, dtype=dtype, seconds=median(times))
        for (m, n, k, dtype), times in sorted(found.items())
    )
    return _reading(path, data, gemms, other)


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        said = f"not valid JSON: {error.msg}"
        raise SpecError(f"{place}: {said}; export the trace again, after the run ended") from None
    if not isinstance(data, dict) or not isinstance(data.get("traceEvents"), list):
        raise SpecError(f"{path}: traceEvents: missing; give what export_chrome_trace wrote")
    return data


def _id(event: dict[str, Any]) -> Any:
    arguments = event.get("args") or {}
    return arguments.get("External id", arguments.get("external id"))


def _kernel_seconds(path: Path, events: list[dict[str, Any]]) -> dict[Any, float]:
    """Return the seconds of the kernels that each operator launched."""
    found: dict[Any, float] = defaultdict(float)
    problems = []
    for index, event in enumerate(events):
        if event.get("cat") != "kernel" or _id(event) is None:
            continue
        micros = event.get("dur")
        if isinstance(micros, bool) or not isinstance(micros, int | float) or micros <= 0:
            place = f"{path}: traceEvents.{index}.dur"
            problems.append(f"{place}: {micros!r} is no duration of a kernel; export it again")
            continue
        found[_id(event)] += micros * 1e-6
    if problems:
        raise SpecError(first(problems))
    return found


def _shape(event: dict[str, Any]) -> Shape | None:
    """Return (m, n, k, dtype) of a product; None where it has no shapes or another dtype."""
    arguments = event.get("args") or {}
    left, right = PRODUCTS[event["name"]]
    try:
        (m, k), (inner, n) = (arguments["Input Dims"][index] for index in (left, right))
        dtype = DTYPES[arguments["Input type"][left]]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    sizes = (m, n, k)
    whole = all(isinstance(size, int) and size > 0 for size in sizes)
    return (m, n, k, dtype) if whole and k == inner else None


def _reason(data: dict[str, Any], other: int, unlinked: int) -> str:
    """Return why a trace holds no measured product, and what would be right."""
    kinds = {event.get("cat") for event in data["traceEvents"] if isinstance(event, dict)}
    if "kernel" not in kinds:
        return "no GPU kernels; profile with activities=[CPU, CUDA] on a GPU"
    if unlinked:
        return (
            f"{unlinked} products, none tied to its kernels by 'External id'; profile without CUDA "
            "graphs, CPU and CUDA activities together"
        )
    if other:
        known = ", ".join(dict.fromkeys(DTYPES.values()))
        return (
            f"{other} products without shapes or in other dtypes than {known}; profile with "
            "record_shapes=True, a run in such a dtype"
        )
    return f"none of {', '.join(PRODUCTS)} was run; profile a training step in eager mode"


def _devices(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    listed = data.get("deviceProperties")
    yield from (one for one in listed or [] if isinstance(one, dict))


def _reading(
    path: Path, data: dict[str, Any], gemms: tuple[GemmMeasurement, ...], other: int
) -> Reading:
    device = next(_devices(data), {})
    group = data.get("distributedInfo")
    group = group if isinstance(group, dict) else {}
    memory = device.get("totalGlobalMem")
    note = f"{other} products without shapes or in other dtypes are not taken over"
    return Reading(
        str(device.get("name", "GPU of a trace")),
        int(group.get("world_size") or 1),
        str(group.get("backend") or "nccl"),
        f"torch trace {path.name}",
        gemms=gemms,
        memory_bytes=memory if isinstance(memory, int) and memory > 0 else None,
        notes=(note,) if other else (),
    )
