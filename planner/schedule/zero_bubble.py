"""Zero-bubble schedules: weight gradients (W) are passes of their own, run where a rank would wait.

Qi et al. 2024 (Zero Bubble Pipeline Parallelism, ICLR, arXiv 2401.10241). ``zb_h1`` and ``zb_h2``
(section 2, figures 2 and 3) run F and B as 1F1B does, ``zb_h2`` with a warm-up nearly twice as
long; the last rank holds back ``p - 1`` or ``2 (p - 1)`` weight gradients, the others their share.
On balanced stages that leaves a bubble of ``(p - 1) (F + B - W)`` and ``(p - 1) (F + B - 2 W)``.
``zb_2p`` is ``zb_h2`` with as much held back as the times ask for: with ``(p - 1) (F + B) / W`` no
bubble is left.

A bubble is counted from a rank's first pass to its last: ranks begin a step one after the other
and end it so, which holds while the optimizer waits for nobody (post-validation, section 4).
"""

import numpy as np

from planner.schedule.kinds import IntArray
from planner.schedule.passes import Order


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
        np.zeros((stages, 3 * count), dtype=bool),
        order.stage,
    )  # fmt: skip
