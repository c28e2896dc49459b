"""V-shaped schedules: two chunks per rank, the second walks back from the last rank to the first.

Qi et al. 2024, arXiv 2405.15362 (Pipeline Parallelism with Controllable Memory) and 2401.10241,
section 6. ``zb_v``: no bubble where F, B and W are equal, with the memory of 1F1B. ``v_half`` and
``v_min`` repeat one block of passes every six units of time. How far a pass is behind that of the
rank before it sets how long a pass is kept: half and a third of the memory of 1F1B, for a half and
two thirds of its bubble.
"""

from collections import deque
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.kinds import IntArray, stage_of
from planner.schedule.listed import BACKWARD, FORWARD, WEIGHT, Pass, code, counted
from planner.schedule.passes import Order

PERIOD = 6  # F, B and W of two chunks, one unit each
REPEATS = 3  # of p + 3 micro-batches the second already runs like every later one (see the tests)
# units from a rank to the next, for F down, F back, B down and B back: a pass is kept for the time
# of all four, so their sum is 6 for half of 1F1B's memory and 4 for a third (2405.15362, 3)
STEPS = {"v_half": (2, 1, 2, 1), "v_min": (1, 1, 1, 1)}
BLOCK = ((FORWARD, 0), (FORWARD, 1), (BACKWARD, 1), (BACKWARD, 0))


def v_shaped(kind: str, stages: int, micro_batches: int) -> Order:
    """Return ``zb_v``, ``v_half`` or ``v_min``.

    ``zb_v`` is made for ``2 p - 1`` micro-batches or more; of fewer, some are left out.
    """
    place = stage_of(kind, stages, 2)
    if kind == "zb_v":
        planned = max(micro_batches, 2 * stages - 1)
        codes = [_zb_v_codes(rank, stages, planned) for rank in range(stages)]
        return counted(kind, place, micro_batches, codes)
    few = min(micro_batches, stages + REPEATS)
    codes = [[code(what, chunk) for what, _, chunk in row] for row in _squeezed(kind, stages, few)]
    return _lengthened(counted(kind, place, few, codes), micro_batches)


def _zb_v_codes(rank: int, stages: int, micro_batches: int) -> list[int]:
    """Return the codes of a rank: warm-up, steady state, B alone, B and W, W alone."""
    after = stages - rank
    first, second = (
        [code(what, chunk) for what in (FORWARD, BACKWARD, WEIGHT)] for chunk in (0, 1)
    )
    started, returned = 2 * after - 1 + rank, stages  # forward passes of either chunk so far
    warm_up = first[:1] * (2 * after - 1) + [second[0], first[0]] * rank + second * after
    steady = [*first, *second] * (micro_batches - started)
    steady += [*first[1:], *second] * (started - returned)
    ends = [first[1], second[1]] * rank + first[1:] * after
    return warm_up + steady + ends + second[2:] * rank + first[2:] * rank


def _block(kind: str, stages: int) -> IntArray:
    """Return when each rank runs F down, F back, B down and B back of the first micro-batch.

    ``[4, stages]`` in units. No two passes of a rank may fall on the same unit of a period: the
    passes wait as little as possible where the V turns.
    """
    forth = np.arange(stages)
    for waits in sorted(product(range(PERIOD), repeat=3), key=sum):
        starts, last = [], 0
        for number, (step, wait) in enumerate(zip(STEPS[kind], (0, *waits), strict=True)):
            along = forth if number % 2 == 0 else forth[::-1]
            begin = last + wait + (number > 0)
            starts.append(begin + step * along)
            last = begin + step * (stages - 1)
        units = np.sort(np.stack(starts) % PERIOD, axis=0)
        if (np.diff(units, axis=0) > 0).all():
            return np.stack(starts)
    raise AssertionError(f"no block of {kind} fits {stages} stages")


def _squeezed(kind: str, stages: int, micro_batches: int) -> list[list[Pass]]:
    """Return the blocks of all micro-batches, each pass as early as its order and input allow.

    W runs where its rank would wait, or where another forward pass would keep too much.
    """
    orders = _block_orders(kind, stages, micro_batches)
    limit = peak_chunk_passes(stages, 2, micro_batches, 0, schedule=kind)
    place = stage_of(kind, stages, 2).tolist()
    ended: dict[tuple[int, int, int], int] = {}  # F or B, micro-batch, virtual stage
    ranks: list[list[Pass]] = [[] for _ in range(stages)]
    waiting: list[deque[Pass]] = [deque() for _ in range(stages)]
    kept, now, left = [0] * stages, 0, 6 * micro_batches * stages
    while left:
        for rank, (passes, weights) in enumerate(zip(ranks, waiting, strict=True)):
            queue = orders[rank]
            chosen = queue[0] if queue else None
            if chosen:
                what, batch, chunk = chosen
                stage = place[chunk][rank]
                before = stage - 1 if what == FORWARD else stage + 1
                ready = not 0 <= before < 2 * stages
                ready = ready or ended.get((what, batch, before), now + 1) <= now
                full = what == FORWARD and kept[rank] >= limit and bool(weights)
                if ready and not full:
                    queue.popleft()
                    ended[what, batch, stage] = now + 1
                    if what == BACKWARD:
                        weights.append((WEIGHT, batch, chunk))
                    kept[rank] += what == FORWARD
                    passes.append(chosen)
                    left -= 1
                    continue
            if weights:
                passes.append(weights.popleft())
                kept[rank] -= 1
                left -= 1
        now += 1
    return ranks


def _lengthened(short: Order, micro_batches: int) -> Order:
    """Return ``short`` with the passes of one period, up to B of its second micro-batch, repeated.

    A pass that is repeated runs the next micro-batch every time, and so do those behind it.
    """
    more = micro_batches - short.micro_batches
    if not more:
        return short
    last = short.backward & (short.micro_batch == 1) & (short.chunk == 0)
    repeats_at = last.argmax(axis=1)[:, None] + 1
    place = np.arange(short.length + PERIOD * more)
    later = np.clip((place - repeats_at) // PERIOD + 1, 0, more)
    source = place - PERIOD * later

    def longer(array: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(array, source, axis=1)

    return replace(
        short,
        micro_batches=micro_batches,
        backward=longer(short.backward),
        weight=longer(short.weight),
        micro_batch=longer(short.micro_batch) + later,
        chunk=longer(short.chunk),
        joined=longer(short.joined),
    )


def _block_orders(kind: str, stages: int, micro_batches: int) -> list[deque[Pass]]:
    """Return F and B of each rank by the time at which the repeated block runs them."""
    starts = _block(kind, stages)
    batches = np.arange(micro_batches)
    orders = []
    for rank in range(stages):
        times = starts[:, rank, None] + PERIOD * batches
        by_time = np.argsort(times, axis=None)
        orders.append(
            deque(
                (BLOCK[number // micro_batches][0], number % micro_batches,
                 BLOCK[number // micro_batches][1])
                for number in by_time.tolist()
            )
        )  # fmt: skip
    return orders
