"""How long a job takes that fails now and then, and how often it should save a checkpoint.

Failures are a Poisson process, the job restarts from its last checkpoint, and a restart may fail
too (Young 1974; Daly, "A higher order estimate of the optimum checkpoint interval for restart
dumps", Future Generation Computer Systems 22, 2006).
"""

from dataclasses import dataclass
from math import exp, expm1, sqrt

from planner.errors import NoPlanError

# e^20 failures for each piece of work saved: no answer but "never"
LARGEST_EXPONENT = 20.0


@dataclass(frozen=True, slots=True)
class Wall:
    """Seconds of a whole run by what they go to; they add up to ``total_s``."""

    work_s: float
    checkpoints_s: float
    detection_s: float
    restart_s: float
    repeated_s: float
    interruptions: float

    @property
    def total_s(self) -> float:
        """Seconds from start to end."""
        lost = self.detection_s + self.restart_s + self.repeated_s
        return self.work_s + self.checkpoints_s + lost


def optimal_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return the seconds of work between two checkpoints that make the run shortest.

    Daly 2006, equation 37: Young's ``sqrt(2 stall mtbf)`` and its next two orders; where a stall
    is longer than twice the time between failures, that time.
    """
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return sqrt(2 * stall_s * mtbf_s) * (1 + sqrt(ratio) / 3 + ratio / 9) - stall_s


def wall_time(
    work_s: float,
    interval_s: float,
    stall_s: float,
    detect_s: float,
    restart_s: float,
    mtbf_s: float,
) -> Wall:
    """Return the expected seconds of a run of ``work_s`` undisturbed seconds.

    Daly 2006, equation 20: ``mtbf e^(R/mtbf) (e^((interval + stall)/mtbf) - 1)`` for each interval,
    with ``R`` = detection and restart. What is lost is split among detection, restart and repeated
    work (half an interval) in proportion.

    Raises:
        NoPlanError: interruptions come so often that the run never ends.
    """
    recovery_s, piece_s = detect_s + restart_s, interval_s + stall_s
    if (recovery_s + piece_s) / mtbf_s > LARGEST_EXPONENT:
        raise NoPlanError(
            f"an interruption every {mtbf_s:.0f} s leaves no time for {piece_s:.0f} s between "
            f"checkpoints and {recovery_s:.0f} s to recover; save more often, recover faster or "
            "use fewer GPUs"
        )
    pieces = work_s / interval_s
    total_s = pieces * mtbf_s * exp(recovery_s / mtbf_s) * expm1(piece_s / mtbf_s)
    lost_s = total_s - pieces * piece_s
    each_s = recovery_s + piece_s / 2
    return Wall(
        work_s,
        pieces * stall_s,
        lost_s * detect_s / each_s,
        lost_s * restart_s / each_s,
        lost_s * piece_s / 2 / each_s,
        total_s / mtbf_s,
    )
