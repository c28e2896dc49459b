"""Orders written as lists: the tasks of each rank, every task one or more passes.

Passes of one task run together: what it sends leaves when the whole task has ended.
"""

from collections.abc import Sequence

import numpy as np

from planner.schedule.kinds import IntArray
from planner.schedule.passes import Order

FORWARD, BACKWARD, WEIGHT = 0, 1, 2
Pass = tuple[int, int, int]  # F, B or W; micro-batch; chunk
Task = tuple[Pass, ...]


def listed(
    kind: str, stage: IntArray, micro_batches: int, ranks: Sequence[Sequence[Task]]
) -> Order:
    """Return the order of these tasks; ``stage`` ``[chunks, stages]`` is what each chunk holds.

    ``micro_batches`` counts those of each chunk; passes of others are left out. An order can lose
    whole micro-batches: what is left waits for less.
    """
    chunks, stages = stage.shape
    rows, joined = [], []
    for tasks in ranks:
        kept = [
            (*one, number > 0)
            for task in tasks
            for number, one in enumerate(p for p in task if p[1] < micro_batches)
        ]
        rows.append([entry[:3] for entry in kept])
        joined.append([entry[3] for entry in kept])
    table = np.array(rows, dtype=np.int64).reshape(stages, -1, 3)
    what, batches, chunk = (np.ascontiguousarray(table[..., column]) for column in range(3))
    return Order(
        kind,
        stages,
        chunks,
        micro_batches,
        1,
        what == BACKWARD,
        what == WEIGHT,
        batches,
        chunk,
        (what == BACKWARD).argmax(axis=1),
        np.array(joined, dtype=bool),
        stage,
    )
