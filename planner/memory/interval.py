"""Between which bytes measured runs lie, and what that says about fitting."""

from enum import StrEnum

from planner.memory.estimate import RankMemory


class Verdict(StrEnum):
    """Whether a layout fits, as far as the interval can tell."""

    FITS = "fits"
    TOO_CLOSE = "too close to tell"
    DOES_NOT_FIT = "does not fit"


def memory_interval(memory: RankMemory) -> tuple[float, float]:
    """Return (low, high) device bytes between which nine of ten measured runs lie.

    Context and communicators are known; what torch allocates is as uncertain as the runs of the
    same software have shown (``SoftwareSpec.memory_spread``).
    """
    low, high = memory.spread
    return low * memory.reserved + memory.outside, high * memory.reserved + memory.outside


def verdict(memory: RankMemory, capacity_bytes: float) -> Verdict:
    """Return whether ``memory`` fits into ``capacity_bytes``, or that the interval spans it."""
    low, high = memory_interval(memory)
    if high <= capacity_bytes:
        return Verdict.FITS
    return Verdict.DOES_NOT_FIT if low > capacity_bytes else Verdict.TOO_CLOSE
