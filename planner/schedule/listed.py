"""Orders written as lists: the tasks of each rank (``listed``), or only the kinds of its passes.

Passes of one task run together: what it sends leaves when the whole task has ended.
"""

from collections.abc import Sequence

import numpy as np

from planner.schedule.kinds import IntArray
from planner.schedule.passes import Order

FORWARD, BACKWARD, WEIGHT = 0, 1, 2
Pass = tuple[int, int, int]  # F, B or W; micro-batch; chunk
Task = tuple[Pass, ...]
KINDS = 3


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


def code(what: int, chunk: int) -> int:
    """Return the number that ``counted`` knows F, B or W through ``chunk`` by."""
    return KINDS * chunk + what


def counted(
    kind: str,
    stage: IntArray,
    micro_batches: int,
    codes: Sequence[Sequence[int]],
    joined: Sequence[Sequence[bool]] | None = None,
) -> Order:
    """Return the order in which every kind of pass takes the micro-batches one after the other.

    ``codes`` ``[stages, passes]`` has every code of a rank equally often, at least
    ``micro_batches`` times; what is more is left out. ``joined``: in the task of the pass before.
    """
    chunks, stages = stage.shape
    table = np.array(codes, dtype=np.int8)
    planned = table.shape[1] // (KINDS * chunks)
    batches: IntArray = np.empty(table.shape, dtype=np.int64)
    for one in range(KINDS * chunks):
        batches[table == one] = np.tile(np.arange(planned), stages)
    kept = batches < micro_batches
    batches = batches[kept].reshape(stages, -1)
    together = np.zeros(batches.shape, dtype=bool)
    if joined is not None:
        task = np.cumsum(~np.array(joined), axis=1)[kept].reshape(stages, -1)
        together[:, 1:] = task[:, 1:] == task[:, :-1]
    chunk, what = np.divmod(table[kept].astype(np.int64).reshape(stages, -1), KINDS)
    backward = what == BACKWARD
    return Order(
        kind, stages, chunks, micro_batches, 1, backward, what == WEIGHT, batches, chunk,
        backward.argmax(axis=1), together, stage,
    )  # fmt: skip
