"""The order of forward and backward passes on each pipeline rank, as data: no times, no bytes.

Every order is a warm-up of forward passes, then forward and backward in turn, then the backward
passes that are left; schedules differ in the length of the warm-up, in which chunk comes next and,
where the backward pass is split (``zero_bubble``), in how long its weight gradients wait.

Sources: Narayanan et al. 2021 (PTD-P, arXiv 2104.04473), section 2.2; Megatron-LM
``core/pipeline_parallel/schedules.py`` (``get_pp_rank_microbatches``, ``get_schedule_table``).
"""

from functools import lru_cache

import numpy as np

from planner.errors import LayoutError
from planner.schedule.dual_pipe import dual_pipe
from planner.schedule.kinds import CROSSED, SPLIT, IntArray, V, kind_of, stage_of
from planner.schedule.passes import Order
from planner.schedule.v_shaped import v_shaped
from planner.schedule.zero_bubble import with_weight_passes


def one_f_one_b(stages: int, micro_batches: int) -> Order:
    """Return 1F1B (PipeDream-flush): rank ``i`` warms up with ``stages - 1 - i`` passes."""
    return order("1f1b", stages, micro_batches)


def gpipe(stages: int, micro_batches: int) -> Order:
    """Return all forward passes, then all backward passes, both in order of micro-batch."""
    return order("gpipe", stages, micro_batches)


def interleaved(stages: int, micro_batches: int, chunks: int, group: int | None = None) -> Order:
    """Return Megatron's interleaved 1F1B: ``group`` micro-batches of one chunk, then the next.

    ``group`` is ``stages`` unless given. Illegal groups raise ``LayoutError``, see
    ``group_problem``.
    """
    return order("interleaved_1f1b", stages, micro_batches, chunks, group)


@lru_cache(maxsize=256)
def order(
    kind: str,
    stages: int,
    micro_batches: int,
    chunks: int = 1,
    group: int | None = None,
    delay: int | None = None,
) -> Order:
    """Return the order of the schedule called ``kind``, one of ``SCHEDULES``; shared, read-only.

    ``delay`` is how many weight-gradient passes the last rank of ``zb_2p`` holds back
    (``zero_bubble``); other schedules have their own.
    """
    group = checked_group(kind, stages, micro_batches, chunks, group)
    if kind.startswith("dualpipe"):
        return dual_pipe(kind, stages, micro_batches)
    if kind_of(kind).placement == V:
        return v_shaped(kind, stages, micro_batches)
    after = np.arange(stages)[::-1]
    warm_up = {
        "interleaved_1f1b": 2 * after + (chunks - 1) * group,
        "gpipe": np.full(stages, micro_batches),
        "zb_h2": 2 * after,
        "zb_2p": 2 * after,
    }
    made = _merge(kind, micro_batches, chunks, group, warm_up.get(kind, after))
    return with_weight_passes(made, delay) if kind in SPLIT else made


def checked_group(
    kind: str, stages: int, micro_batches: int, chunks: int, group: int | None = None
) -> int:
    """Return the micro-batches that run through one chunk before the next chunk's turn.

    Raises ``LayoutError`` if the schedule cannot run with these numbers.
    """
    if problem := _shape_problem(kind, stages, micro_batches, chunks):
        raise LayoutError(problem)
    if kind != "interleaved_1f1b":
        return 1
    group = min(stages, micro_batches) if group is None else group
    if problem := group_problem(stages, micro_batches, group):
        raise LayoutError(problem)
    return group


def group_problem(stages: int, micro_batches: int, group: int) -> str | None:
    """Return why ``group`` micro-batches per chunk cannot run, or ``None``.

    Megatron asks for ``stages <= group <= micro_batches`` and a last group that is full or holds
    at least ``stages``. With fewer micro-batches than stages only one group of all of them works
    (``torch.distributed.pipelining.ScheduleInterleaved1F1B`` runs that, Megatron refuses it).
    """
    least = min(stages, micro_batches)
    if not least <= group <= micro_batches:
        return (
            f"micro-batch group {group} is not between {least} (stages) and "
            f"{micro_batches} (micro-batches of a step); use {legal_group(stages, micro_batches)}"
        )
    rest = micro_batches % group
    if 0 < rest < stages:
        return (
            f"{micro_batches} micro-batches in groups of {group} leave a last group of {rest}, "
            f"fewer than the {stages} stages; use {legal_group(stages, micro_batches)}"
        )
    return None


def legal_group(stages: int, micro_batches: int) -> int:
    """Return the smallest legal group of micro-batches for the interleaved schedule."""
    groups = range(min(stages, micro_batches), micro_batches)
    full_or_large = (g for g in groups if not 0 < micro_batches % g < stages)
    return next(full_or_large, micro_batches)


def _shape_problem(kind: str, stages: int, micro_batches: int, chunks: int) -> str | None:
    has = kind_of(kind).chunks
    if min(stages, micro_batches, chunks) < 1:
        return (
            f"stages={stages}, micro_batches={micro_batches} and chunks={chunks} must be 1 or more"
        )
    if has and chunks != has:
        held = "one chunk" if has == 1 else f"{has} chunks"
        other = "interleaved_1f1b" if has == 1 else f"chunks={has}"
        return f"{kind} has {held} per rank, not {chunks}; use {other}"
    if not has and chunks > 1 and stages == 1:
        return f"one stage cannot be interleaved into {chunks} chunks; use chunks=1"
    if kind_of(kind).placement == CROSSED and (stages % 2 or micro_batches % 2):
        return (
            f"{kind} needs an even number of stages and of micro-batches, not {stages} and "
            f"{micro_batches}; half of either run in each direction"
        )
    return None


def _merge(kind: str, micro_batches: int, chunks: int, group: int, warm_up: IntArray) -> Order:
    """Place forward and backward passes: warm-up ``[stages]``, one of each in turn, the rest."""
    stages, passes = len(warm_up), micro_batches * chunks
    warm_up = np.minimum(warm_up, passes)
    micro_batch, chunk = _table(micro_batches, chunks, group)
    number = np.arange(passes)
    warm = warm_up[:, None]
    # forward k stands at k in the warm-up, later every second place; backward k mirrors that
    forward_at = np.where(number < warm, number, 2 * number - warm)
    backward_at = np.where(number < passes - warm, 2 * number + warm + 1, passes + number)
    backward = np.zeros((stages, 2 * passes), dtype=bool)
    batches, chunk_of = np.empty((2, stages, 2 * passes), dtype=np.int64)
    np.put_along_axis(backward, backward_at, True, axis=1)
    for at, chunks_at in ((forward_at, chunk), (backward_at, chunks - 1 - chunk)):
        np.put_along_axis(batches, at, np.broadcast_to(micro_batch, at.shape), axis=1)
        np.put_along_axis(chunk_of, at, np.broadcast_to(chunks_at, at.shape), axis=1)
    return Order(
        kind, stages, chunks, micro_batches, group,
        backward, np.zeros_like(backward), batches, chunk_of, warm_up,
        np.zeros_like(backward), stage_of(kind, stages, chunks),
    )  # fmt: skip


def _table(micro_batches: int, chunks: int, group: int) -> tuple[IntArray, IntArray]:
    """Return micro-batch and chunk of each forward pass of a rank, two arrays ``[passes]``.

    Sorted by group, then chunk, then micro-batch, as Megatron's ``get_schedule_table``.
    """
    micro_batch, chunk = np.meshgrid(np.arange(micro_batches), np.arange(chunks))
    by_group = np.lexsort((micro_batch.ravel(), chunk.ravel(), micro_batch.ravel() // group))
    return micro_batch.ravel()[by_group], chunk.ravel()[by_group]
