"""Ranks that share cores, as processes on a CPU may: one that waits frees its core for the others.

A profile's seconds are those of a rank while all ranks compute. Where there are more ranks than
cores these take turns, so a pipeline's bubble is no idle time as long as others have work.
"""

import numpy as np
from numpy.typing import NDArray


def on_shared_cores_s(work_s: NDArray[np.float64], alone_s: float, ranks_per_core: float) -> float:
    """Return the seconds of a step whose ranks have ``work_s`` ``[ranks]`` of their own to do.

    ``alone_s`` is the step in which nobody takes over a core that is free. The cores have the work
    of all to do, and no chain of passes is faster than on cores of its own.
    """
    return max(alone_s / ranks_per_core, float(np.mean(work_s)))


def summing_to(total_s: float, parts_s: dict[str, float]) -> dict[str, float]:
    """Return the parts of one rank's step with ``pipeline``, what it waits for other stages.

    The busiest rank's parts may be more than the step, where it had cores of other ranks: they
    shrink alike.
    """
    own_s = sum(parts_s.values())
    if own_s > total_s * (1 + 1e-9):
        return {name: part * total_s / own_s for name, part in parts_s.items()} | {"pipeline": 0.0}
    return parts_s | {"pipeline": total_s - own_s}
