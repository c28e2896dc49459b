"""Between which bytes measured runs lie, and what that says about fitting."""

from enum import StrEnum

from planner.memory.estimate import RankMemory

# Measured ÷ estimated of 1,313 runs that print memory: 83 % lie between the two (``planner
# validate`` on the files of docs/accuracy.md). The median is 1.07: what frameworks, collectives and
# kernels allocate beside the model is under-estimated more often than not.
LOW, HIGH = 0.85, 1.35


class Verdict(StrEnum):
    """Whether a layout fits, as far as the interval can tell."""

    FITS = "fits"
    TOO_CLOSE = "too close to tell"
    DOES_NOT_FIT = "does not fit"


def memory_interval(memory: RankMemory) -> tuple[float, float]:
    """Return (low, high) device bytes between which about four of five measured runs lie.

    Context and communicators are known; only what torch allocates is uncertain.
    """
    return (
        LOW * memory.reserved + memory.outside,
        HIGH * memory.reserved + memory.outside,
    )


def verdict(memory: RankMemory, capacity_bytes: float) -> Verdict:
    """Return whether ``memory`` fits into ``capacity_bytes``, or that the interval spans it."""
    low, high = memory_interval(memory)
    if high <= capacity_bytes:
        return Verdict.FITS
    return Verdict.DOES_NOT_FIT if low > capacity_bytes else Verdict.TOO_CLOSE
