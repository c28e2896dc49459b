"""What each pipeline rank runs, in order, and what it keeps meanwhile: no times, no bytes.

A pass is forward (F), backward (B) or weight gradient (W). Where a schedule has W passes, B is the
input gradient alone; elsewhere B is the whole backward pass. Passes that run as one task are
joined: a whole backward pass among split ones (B and W), a forward pass beside a backward pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.schedule.kinds import KINDS

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Passes of every rank in the order in which the rank runs them.

    ``backward``, ``weight``, ``micro_batch`` and ``chunk`` have the shape ``[stages, passes of a
    rank]``, which is two or, with W, three for each chunk and micro-batch, and so has ``joined``,
    true where a pass belongs to the task of the pass before it. ``warm_up`` holds the forward
    passes before the first backward pass of each rank, ``stage`` the virtual stage of each chunk of
    each rank, ``[chunks, stages]``. ``micro_batches`` run through every chunk: half of the step's
    where two pipelines cross.
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
    joined: NDArray[np.bool_]
    stage: IntArray

    def __post_init__(self) -> None:
        """Make the arrays read-only: orders are shared."""
        arrays = (self.backward, self.weight, self.micro_batch, self.chunk, self.warm_up)
        for array in (*arrays, self.joined, self.stage):
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
        return np.asarray(self.stage[self.chunk, ranks])

    def transfers(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return sending pass, receiving pass and the virtual stage in front of each boundary.

        Passes are counted over all ranks, ``rank * length + place``; forward transfers come first.
        The last stage of a pipeline hands on to none.
        """
        stage, count = self.virtual_stage(), self.stages * self.chunks
        number = np.arange(self.stages * self.length).reshape(self.stages, self.length)
        pipelines = KINDS[self.kind].pipelines if self.kind in KINDS else 1
        here = np.delete(np.arange(count), np.arange(1, pipelines + 1) * (count // pipelines) - 1)
        of_forward, of_backward = np.empty((2, count, self.micro_batches), dtype=np.int64)
        for table, chosen in ((of_forward, self.forward), (of_backward, self.backward)):
            table[stage[chosen], self.micro_batch[chosen]] = number[chosen]
        sender = np.concatenate([of_forward[here], of_backward[here + 1]]).ravel()
        receiver = np.concatenate([of_forward[here + 1], of_backward[here]]).ravel()
        return sender, receiver, np.tile(here.repeat(self.micro_batches), 2)


def kept_peak(order: Order, pass_bytes: FloatArray) -> FloatArray:
    """Return the most that each rank keeps at once for its backward passes, shape ``[stages]``.

    ``pass_bytes`` has the shape ``[stages, chunks]``: what one forward pass of a chunk leaves in
    memory until the last pass of the same chunk and micro-batch, B or W, has ended.
    """
    ranks = np.arange(order.stages)[:, None]
    change = kept_change(order) * pass_bytes[ranks, order.chunk]
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
    change = kept_change(order)[..., None] * (order.chunk[..., None] == np.arange(order.chunks))
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


def kept_change(order: Order) -> IntArray:
    """Return 1 where a pass begins to keep, -1 where the last of its backward passes lets go."""
    ends = order.weight if order.splits_backward else order.backward
    return order.forward.astype(np.int64) - ends
