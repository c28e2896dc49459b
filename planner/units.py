"""Unit constants and the conversions a person sees: text to numbers, numbers to text.

Inside the package every quantity is a plain number in a base unit and its name ends with that unit:
``_bytes``, ``_s``, ``_flops``, ``_bytes_per_s``, ``_flops_per_s``, ``_fraction``.
"""

import math
import re

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

# Case tells a bit from a byte (Gb, GB), so units are matched as written, with the usual variants.
_SIZES: dict[str, float] = {"B": 1, "kB": KB, "KB": KB, "MB": MB, "GB": GB, "TB": TB}
_SIZES |= {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_RATES = {f"{unit}/s": scale for unit, scale in _SIZES.items()}
_RATES |= {
    f"{prefix}{bit}": scale / 8
    for prefix, scale in (("M", MB), ("G", GB), ("T", TB))
    for bit in ("bit/s", "b/s", "bps")
}
_FLOPS = {
    f"{prefix}{name}": scale
    for prefix, scale in (("G", 1e9), ("T", 1e12), ("P", 1e15))
    for name in ("FLOP/s", "FLOPS", "FLOPs")
}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(
    r"\s*(?P<value>-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[a-zµ/]*)\s*", re.I
)


def _parse(value: object, scales: dict[str, float], kind: str, example: str) -> float:
    """Return ``value`` in the base unit; text without a unit is refused, a number is not."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a {kind}; write {example}")
    if isinstance(value, int | float):
        number = float(value)
    else:
        match = _NUMBER.fullmatch(value)
        if match is None or match["unit"] not in scales:
            hint = _other_case(match["unit"], scales) if match else ""
            raise ValueError(
                f"{value!r} is not a {kind}; write a number and a unit, like {example}{hint}"
            )
        number = float(match["value"]) * scales[match["unit"]]
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite {kind}; write {example}")
    return number


def _other_case(unit: str, scales: dict[str, float]) -> str:
    """Return a hint when only the case of a unit is wrong."""
    near = sorted({known for known in scales if known.lower() == unit.lower()})
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def parse_bytes(value: object) -> int:
    """Return the bytes written as ``"80 GB"`` or ``"64GiB"``; a plain number is already bytes."""
    return round(_parse(value, _SIZES, "size", "'80 GB' or '64 GiB'"))


def parse_rate(value: object) -> float:
    """Return bytes per second written as ``"450 GB/s"`` or ``"400 Gbit/s"``."""
    return _parse(value, _RATES, "data rate", "'450 GB/s' or '400 Gbit/s'")


def parse_flops(value: object) -> float:
    """Return floating-point operations per second written as ``"989 TFLOP/s"``."""
    return _parse(value, _FLOPS, "compute rate", "'989 TFLOP/s'")


def parse_seconds(value: object) -> float:
    """Return seconds written as ``"5 us"``, ``"1.5 ms"`` or ``"10 min"``."""
    return _parse(value, _TIMES, "duration", "'5 us' or '1.5 ms'")


def parse_count(value: object) -> float:
    """Return a number written as ``"2T"``, ``"300B"`` or ``"2000000"``."""
    return _parse(value, _COUNTS, "number", "'300B' or '2T'")


def format_bytes(size_bytes: float) -> str:
    """Return a size in GiB, the unit in which GPU memory is compared."""
    return f"{size_bytes / GIB:.1f} GiB"


def format_size(size_bytes: float) -> str:
    """Return a size in the largest unit that leaves a whole number."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:g} {unit}"
    return f"{size_bytes:g} B"


def format_s(seconds: float) -> str:
    """Return a duration with three significant digits and a readable unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def format_count(number: float) -> str:
    """Return a count such as a parameter number: ``70.6B``, ``1.3B``, ``124M``."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:g}"
