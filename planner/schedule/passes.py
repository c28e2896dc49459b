"""What each pipeline rank runs, in order, and what it keeps meanwhile: no times, no bytes.

A pass is forward (F), backward (B) or weight gradient (W). Where a schedule has W passes, B is the
input gradient alone; elsewhere B is the whole backward pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
V_SHAPED = ("zb_v",)


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Passes of every rank in the order in which the rank runs them.

    ``backward``, ``weight``, ``micro_batch`` and ``chunk`` have the shape ``[stages, passes of a
    rank]``, which is two or, with W, three for each chunk and micro-batch; ``warm_up`` holds the
    forward passes before the first backward pass of each rank.
    """

    kind: str
    stages: int
    chunks: int
    micro_batches: int
    group: int
    backward: NDArray[np.bool_]
    weight: NDArray[np.bool_]
    micro_batch: IntArray
    chunk: IntArray
    warm_up: IntArray

    def __post_init__(self) -> None:
        """Make the arrays read-only: orders are shared."""
        for array in (self.backward, self.weight, self.micro_batch, self.chunk, self.warm_up):
            array.flags.writeable = False

    @property
    def passes(self) -> int:
        """Forward passes of one rank, one for each chunk and micro-batch."""
        return self.micro_batches * self.chunks

    @property
    def length(self) -> int:
        """All passes of one rank."""
        return int(self.backward.shape[1])

    @property
    def splits_backward(self) -> bool:
        """Whether weight gradients are passes of their own."""
        return self.length > 2 * self.passes

    @property
    def forward(self) -> NDArray[np.bool_]:
        """Forward passes, shape as ``backward``."""
        return ~(self.backward | self.weight)

    def virtual_stage(self) -> IntArray:
        """Return the virtual stage of each pass, shape as ``chunk``."""
        ranks = np.arange(self.stages)[:, None]
        return np.asarray(stage_of(self.kind, self.stages, self.chunks)[self.chunk, ranks])


def stage_of(kind: str, stages: int, chunks: int) -> IntArray:
    """Return the virtual stage that each chunk of each rank holds, ``[chunks, stages]``.

    ``chunk * stages + rank``; a V-shaped schedule walks back, so that its first rank holds the
    first and the last stage (Qi et al. 2024, arXiv 2405.15362).
    """
    table = np.arange(chunks * stages).reshape(chunks, stages)
    if kind in V_SHAPED:
        table[1::2] = table[1::2, ::-1]
    return table


def rank_of(kind: str, stages: int, chunks: int) -> IntArray:
    """Return the rank that holds each virtual stage, ``[chunks * stages]``."""
    return np.argsort(stage_of(kind, stages, chunks), axis=None) % stages


def kept_peak(order: Order, pass_bytes: FloatArray) -> FloatArray:
    """Return the most that each rank keeps at once for its backward passes, shape ``[stages]``.

    ``pass_bytes`` has the shape ``[stages, chunks]``: what one forward pass of a chunk leaves in
    memory until the last pass of the same chunk and micro-batch, B or W, has ended.
    """
    ranks = np.arange(order.stages)[:, None]
    change = _change(order) * pass_bytes[ranks, order.chunk]
    peak: FloatArray = np.cumsum(change, axis=1).max(axis=1)
    return peak


def in_flight(order: Order) -> IntArray:
    """Return the most chunk passes that each rank keeps at once, shape ``[stages]``.

    1F1B keeps ``min(m, p - i)`` on rank ``i``; interleaved 1F1B ``2 (p - i - 1) + (v - 1) g + 1``
    of a ``v``-th of the layers, ``g`` being the group; GPipe ``m``.
    """
    return kept_peak(order, np.ones((order.stages, order.chunks))).round().astype(np.int64)


def kept_moments(order: Order) -> IntArray:
    """Return how many passes of each virtual stage are kept when its rank may be fullest.

    Shape ``[moments, stages * chunks]``. A rank with one chunk has one such moment; with chunks of
    unequal layers it may be fullest at any moment whose counts no other moment exceeds.
    """
    change = _change(order)[..., None] * (order.chunk[..., None] == np.arange(order.chunks))
    by_rank = [_fullest(kept) for kept in np.cumsum(change, axis=1)]
    most = max(len(moments) for moments in by_rank)
    padded = [moments[np.arange(most) % len(moments)] for moments in by_rank]
    return np.stack(padded, axis=-1).reshape(most, -1)


def _fullest(kept: IntArray) -> IntArray:
    """Return the rows of ``kept`` ``[time, chunks]`` where a weighted sum can have its maximum."""
    after_forward = np.diff(kept.sum(axis=1), append=0) < 0
    peaks = kept[after_forward]
    # on a straight line from one moment to another the maximum is at an end
    turns = (np.diff(peaks, axis=0, prepend=-1) != np.diff(peaks, axis=0, append=-1)).any(axis=1)
    corners = np.unique(peaks[turns], axis=0)
    reached = (corners[None, :, :] >= corners[:, None, :]).all(axis=2)
    # no row but itself reaches it in every column
    return np.asarray(corners[reached.sum(axis=1) == 1])


def _change(order: Order) -> IntArray:
    """Return 1 where a pass begins to keep, -1 where the last of its backward passes lets go."""
    ends = order.weight if order.splits_backward else order.backward
    return order.forward.astype(np.int64) - ends
