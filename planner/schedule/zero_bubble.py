"""Zero-bubble schedules: weight gradients (W) are passes of their own, run where a rank would wait.

Qi et al. 2024 (Zero Bubble Pipeline Parallelism, ICLR, arXiv 2401.10241). ``zb_h1`` and ``zb_h2``
(section 2, figures 2 and 3) run F and B as 1F1B does, ``zb_h2`` with a warm-up nearly twice as
long; the last rank holds back ``p - 1`` or ``2 (p - 1)`` weight gradients, the others their share.
On balanced stages that leaves a bubble of ``(p - 1) (F + B - W)`` and ``(p - 1) (F + B - 2 W)``.
``zb_2p`` is ``zb_h2`` with as much held back as the times ask for: with ``(p - 1) (F + B) / W`` no
bubble is left. ``zb_v`` (section 6) walks down the ranks with its first chunk and back with its
second: no bubble where F, B and W are equal, with the memory of 1F1B.

A bubble is counted from a rank's first pass to its last: ranks begin a step one after the other
and end it so, which holds while the optimizer waits for nobody (post-validation, section 4).
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from planner.schedule.passes import V_SHAPED, IntArray, Order

SPLIT = ("zb_h1", "zb_h2", "zb_2p", "zb_v")
__all__ = ["SPLIT", "V_SHAPED", "v_shaped", "with_weight_passes"]
FORWARD, BACKWARD, WEIGHT = 0, 1, 2
Pass = tuple[int, int, int]  # F, B or W; micro-batch; chunk


def held_back(kind: str, stages: int, delay: int | None = None) -> IntArray:
    """Return how many weight gradients each rank holds back, ``[stages]``.

    ``delay`` is the last rank's number for ``zb_2p``, that of ``zb_h2`` unless given.
    """
    last = stages - 1 if kind == "zb_h1" else 2 * (stages - 1)
    if kind == "zb_2p" and delay is not None:
        last = delay
    return np.arange(stages) * last // max(stages - 1, 1)


def with_weight_passes(order: Order, delay: int | None = None) -> Order:
    """Return an order of one chunk with W passes: W of ``k`` follows B of ``k + held back``.

    Where that B does not exist, it follows the last one.
    """
    stages, count = order.stages, order.micro_batches
    number = np.broadcast_to(np.arange(count), (stages, count))
    after = np.minimum(number + held_back(order.kind, stages, delay)[:, None], count - 1)
    backward_at = np.nonzero(order.backward)[1].reshape(stages, count)
    weight_at = np.take_along_axis(backward_at, after, axis=1)
    here = np.broadcast_to(np.arange(2 * count), (stages, 2 * count))
    # a stable sort puts W behind the B it follows, and equal ones in order of micro-batch
    by_place = np.argsort(np.concatenate([here, weight_at], axis=1), axis=1, kind="stable")
    batches = np.concatenate([order.micro_batch, number], axis=1)
    backward = np.concatenate([order.backward, np.zeros((stages, count), dtype=bool)], axis=1)
    return Order(
        order.kind, stages, 1, count, order.group,
        np.take_along_axis(backward, by_place, axis=1),
        by_place >= 2 * count,
        np.take_along_axis(batches, by_place, axis=1),
        np.zeros((stages, 3 * count), dtype=np.int64),
        order.warm_up,
    )  # fmt: skip


def v_shaped(kind: str, stages: int, micro_batches: int) -> Order:
    """Return ``zb_v``, made for ``2 p - 1`` micro-batches or more; of fewer, some are left out.

    Laws checked by tests: executable, no bubble for equal F, B, W, at most ``2 p`` chunk passes
    kept on each rank.
    """
    planned = max(micro_batches, 2 * stages - 1)
    ranks = [
        [made for made in _v_passes(rank, stages, planned) if made[1] < micro_batches]
        for rank in range(stages)
    ]
    table = np.array(ranks, dtype=np.int64)
    what, batches, chunks = (np.ascontiguousarray(table[..., column]) for column in range(3))
    warm_up = (what == BACKWARD).argmax(axis=1)
    return Order(
        kind,
        stages,
        2,
        micro_batches,
        1,
        what == BACKWARD,
        what == WEIGHT,
        batches,
        chunks,
        warm_up,
    )


def _v_passes(rank: int, stages: int, micro_batches: int) -> Iterator[Pass]:
    """Yield the passes of one rank, each micro-batch of a chunk in turn."""
    done: Counter[tuple[int, int]] = Counter()
    for what, chunk in _v_pattern(rank, stages, micro_batches):
        yield what, done[what, chunk], chunk
        done[what, chunk] += 1


def _v_pattern(rank: int, stages: int, micro_batches: int) -> list[tuple[int, int]]:
    """Return (what, chunk): warm-up, steady state, B alone, B and W, W alone."""
    after = stages - rank
    first, second = ([(what, chunk) for what in (FORWARD, BACKWARD, WEIGHT)] for chunk in (0, 1))
    started, returned = 2 * after - 1 + rank, stages  # forward passes of either chunk so far
    warm_up = first[:1] * (2 * after - 1) + [second[0], first[0]] * rank + second * after
    steady = [*first, *second] * (micro_batches - started)
    steady += [*first[1:], *second] * (started - returned)
    ends = [first[1], second[1]] * rank + first[1:] * after
    return warm_up + steady + ends + second[2:] * rank + first[2:] * rank
