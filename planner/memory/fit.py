"""The least recompute that makes a layout fit."""

from dataclasses import replace

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import rank_memory
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def _with(layers: tuple[int, ...], layout: Layout, rank: int, count: int) -> Split:
    """Recompute ``count`` layers in each chunk of ``rank``."""
    again = [0] * len(layers)
    for chunk in range(rank, len(layers), layout.pp):
        again[chunk] = min(count, layers[chunk])
    return Split(layers, tuple(again))


def least_recompute(
    model: ModelSpec, job: JobSpec, layout: Layout, limit_bytes: float, uniform: bool = False
) -> Split | None:
    """Return equal stages with the fewest layers recomputed in full that fit, or None.

    ``layout.recompute`` is what the other layers do. ``uniform``: the same number on every rank
    (Megatron's ``--recompute-num-layers``), that of the fullest.
    """
    layers = split_layers(model.layers, layout.pp * layout.vpp)
    base = replace(layout, recompute=Recompute.NONE) if layout.recompute == "full" else layout
    counts = []
    for rank in range(layout.pp):
        low, high = 0, max(layers[rank :: layout.pp])

        def fits(count: int, rank: int = rank) -> bool:
            split = _with(layers, base, rank, count)
            return rank_memory(model, job, base, rank, split).device <= limit_bytes

        if not fits(high):
            if not fits(0):  # a layer recomputed alone may need more than it saves
                return None
            high = 0
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        counts.append(low)
    if uniform:
        counts = [max(counts)] * layout.pp
    again = tuple(min(counts[i % layout.pp], count) for i, count in enumerate(layers))
    return Split(layers, again)
