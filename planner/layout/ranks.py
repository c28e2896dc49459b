"""Which ranks form which group: the attention grid and the expert grid over the same ranks.

Rank order is innermost first, ``tp-cp-dp-pp`` and ``etp-ep-edp-pp``, as Megatron-Core's default
(``megatron/core/parallel_state.py``; MoE Parallel Folding, arXiv 2504.14960, section 3.2).
"""

from collections.abc import Sequence

import numpy as np

from planner.layout.layout import Layout

ATTENTION_AXES = ("tp", "cp", "dp", "pp")
EXPERT_AXES = ("etp", "ep", "edp", "pp")


def groups(layout: Layout, axes: str | Sequence[str]) -> list[list[int]]:
    """Return the groups of ranks that differ only along ``axes``, in rank order.

    ``axes`` is one name or several of one grid, such as ``("cp", "dp")``.
    """
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    grid = ATTENTION_AXES if set(names) <= set(ATTENTION_AXES) else EXPERT_AXES
    sizes = [getattr(layout, name) for name in grid]
    ranks = np.arange(layout.gpus).reshape(sizes[::-1])
    # numpy's last axis is the innermost, so axis i of the grid is dimension len - 1 - i
    moved = [len(grid) - 1 - grid.index(name) for name in names]
    rest = [axis for axis in range(len(grid)) if axis not in moved]
    columns = np.transpose(ranks, rest + sorted(moved))
    width = int(np.prod([sizes[grid.index(name)] for name in names]))
    return [[int(rank) for rank in group] for group in columns.reshape(-1, width)]


def stride(layout: Layout, axis: str) -> int:
    """Return the distance between neighbours of a group along ``axis``."""
    grid = ATTENTION_AXES if axis in ATTENTION_AXES else EXPERT_AXES
    return int(np.prod([getattr(layout, name) for name in grid[: grid.index(axis)]], dtype=int))
