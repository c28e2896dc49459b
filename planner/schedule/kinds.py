"""The schedules by name, and where each puts the (virtual) stages of the model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import LayoutError
from planner.layout.layout import Layout

IntArray = NDArray[np.int64]
LOOP, V, CROSSED = "loop", "v", "crossed"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a schedule is apart from the order of its passes.

    ``chunks`` are those of each rank, 0 for any number. ``placement``: stages go round the ranks
    (``loop``), down and back (``v``), or down in one chunk and up in the other, each chunk a
    pipeline of its own over the same stages (``crossed``). ``splits``: weight gradients are passes.
    ``own_pace``: no rank waits for the others before its optimizer step.
    """

    chunks: int = 1
    placement: str = LOOP
    splits: bool = False
    own_pace: bool = False

    @property
    def pipelines(self) -> int:
        """Pipelines that share the ranks, each with its part of the micro-batches."""
        return 2 if self.placement == CROSSED else 1


KINDS = {
    "1f1b": Kind(),
    "interleaved_1f1b": Kind(chunks=0),
    "gpipe": Kind(),
    "zb_h1": Kind(splits=True, own_pace=True),
    "zb_h2": Kind(splits=True, own_pace=True),
    "zb_2p": Kind(splits=True, own_pace=True),
    "zb_v": Kind(2, V, splits=True, own_pace=True),
    "v_half": Kind(2, V, splits=True, own_pace=True),
    "v_min": Kind(2, V, splits=True, own_pace=True),
    "dualpipe": Kind(2, CROSSED, splits=True),
    "dualpipe_v": Kind(2, V, splits=True),
}
SCHEDULES = tuple(KINDS)
SPLIT = tuple(name for name, kind in KINDS.items() if kind.splits)
V_SHAPED = tuple(name for name, kind in KINDS.items() if kind.placement == V)


def kind_of(name: str) -> Kind:
    """Return what is known of a schedule; LayoutError where there is none of that name."""
    if name not in KINDS:
        raise LayoutError(f"{name!r} is not a schedule; use one of {', '.join(SCHEDULES)}")
    return KINDS[name]


def schedule_name(layout: Layout) -> str:
    """Return the pipeline schedule of a layout."""
    return layout.schedule or ("1f1b" if layout.vpp == 1 else "interleaved_1f1b")


def chunks_of(layout: Layout) -> int:
    """Return the chunks of a rank: ``vpp`` for each of the pipelines that share it."""
    return layout.vpp * kind_of(schedule_name(layout)).pipelines


def stage_of(kind: str, stages: int, chunks: int) -> IntArray:
    """Return the virtual stage that each chunk of each rank holds, ``[chunks, stages]``.

    ``chunk * stages + rank``; where a chunk walks back, the first rank holds its last stage
    (Qi et al. 2024, arXiv 2405.15362). Crossed pipelines count theirs one after the other.
    """
    table = np.arange(chunks * stages).reshape(chunks, stages)
    if kind_of(kind).placement != LOOP:
        table[1::2] = table[1::2, ::-1]
    return table


def rank_of(kind: str, stages: int, chunks: int) -> IntArray:
    """Return the rank that holds each virtual stage, ``[chunks * stages]``."""
    return np.argsort(stage_of(kind, stages, chunks), axis=None) % stages
