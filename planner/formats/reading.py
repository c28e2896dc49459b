"""What a reader of foreign measurements returns, in the terms of a profile."""

from dataclasses import dataclass, field

from planner.spec.measured import (
    AttentionMeasurement,
    GemmMeasurement,
    KernelMeasurement,
    LinkCurve,
)

MOST_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Reading:
    """Measurements of one file; ``notes`` say what it holds that a profile does not take."""

    device: str
    world_size: int
    backend: str
    source: str
    links: tuple[LinkCurve, ...] = ()
    gemms: tuple[GemmMeasurement, ...] = ()
    attention: tuple[AttentionMeasurement, ...] = ()
    kernels: tuple[KernelMeasurement, ...] = ()
    memory_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())


def first(problems: list[str]) -> list[str]:
    """Return the first complaints, and how many more there are: a log may hold thousands."""
    rest = len(problems) - MOST_PROBLEMS
    more = [f"and {rest} more of this kind"] if rest > 0 else []
    return problems[:MOST_PROBLEMS] + more
