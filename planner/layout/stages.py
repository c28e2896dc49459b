"""Which layers each pipeline stage holds when nothing better is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.layout.layout import Recompute
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Split:
    """Layers of each (virtual) stage, first to last, and how many of them are recomputed in full.

    The recomputed ones are the first of their stage. Without ``recomputed`` the layout's kind of
    recompute holds for all layers.
    """

    layers: tuple[int, ...]
    recomputed: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StageLayers:
    """Layers of one (virtual) stage, or of all stages of one rank.

    ``dense`` and ``moe`` count the layers that follow the layout's recompute, the other two those
    recomputed in full whatever the layout says.
    """

    dense: int
    moe: int
    embedding: bool = False
    head: bool = False
    dense_recomputed: int = 0
    moe_recomputed: int = 0

    @property
    def layers(self) -> int:
        """All layers."""
        return self.dense + self.moe + self.dense_recomputed + self.moe_recomputed

    @property
    def has_experts(self) -> bool:
        """Whether any layer is one of experts."""
        return self.moe + self.moe_recomputed > 0

    def kinds(self, recompute: Recompute) -> tuple[tuple[int, bool, Recompute], ...]:
        """Return (count, holds experts, recompute) of each kind of layer present."""
        kinds = (
            (self.dense, False, recompute),
            (self.moe, True, recompute),
            (self.dense_recomputed, False, Recompute.FULL),
            (self.moe_recomputed, True, Recompute.FULL),
        )
        return tuple(kind for kind in kinds if kind[0])


@lru_cache(maxsize=4096)
def stage_layers(
    model: ModelSpec, chunks: int, split: Split | None = None
) -> tuple[StageLayers, ...]:
    """Return the layers of each of ``chunks`` (virtual) stages, in pipeline order."""
    counts = split.layers if split else split_layers(model.layers, chunks)
    again = (split.recomputed if split else None) or (0,) * chunks
    stages, first = [], 0
    for index, (count, recomputed) in enumerate(zip(counts, again, strict=True)):
        middle = first + recomputed
        moe_again = sum(model.is_moe_layer(layer) for layer in range(first, middle))
        moe = sum(model.is_moe_layer(layer) for layer in range(middle, first + count))
        stages.append(
            StageLayers(
                count - recomputed - moe,
                moe,
                index == 0,
                index == chunks - 1,
                recomputed - moe_again,
                moe_again,
            )
        )
        first += count
    return tuple(stages)


@lru_cache(maxsize=16384)
def rank_layers(
    model: ModelSpec, pp: int, vpp: int, rank: int, split: Split | None = None
) -> StageLayers:
    """Return all layers that pipeline rank ``rank`` holds in its ``vpp`` chunks."""
    return together(stage_layers(model, pp * vpp, split)[rank::pp])


def together(mine: Sequence[StageLayers]) -> StageLayers:
    """Return the layers of several stages of one rank."""
    return StageLayers(
        sum(stage.dense for stage in mine),
        sum(stage.moe for stage in mine),
        any(stage.embedding for stage in mine),
        any(stage.head for stage in mine),
        sum(stage.dense_recomputed for stage in mine),
        sum(stage.moe_recomputed for stage in mine),
    )


@lru_cache(maxsize=4096)
def split_layers(layers: int, chunks: int) -> tuple[int, ...]:
    """Return the layers of each of ``chunks`` (virtual) stages, first to last.

    Equal where it divides. Where embedding and head counted as a layer each make it divide
    (Megatron's ``--account-for-embedding-in-pipeline-split``; BLOOM, Llama 3 405B), the two ends
    hold one layer fewer. Otherwise the remainder goes to the stages after the first.
    """
    if layers % chunks == 0:
        return (layers // chunks,) * chunks
    if (layers + 2) % chunks == 0 and chunks > 1:
        each = (layers + 2) // chunks
        return (each - 1, *(each,) * (chunks - 2), each - 1)
    base, extra = divmod(layers, chunks)
    return tuple(base + (1 <= index <= extra) for index in range(chunks))


@lru_cache(maxsize=4096)
def balance_layers(
    layer_sizes: tuple[float, ...], head_size: float, chunks: int
) -> tuple[int, ...]:
    """Return the layers of each stage when blocks are dealt by size, the output matrix as a block.

    Fills a stage until it reaches its share of the total (nanotron ``build_and_set_rank``,
    ``get_block_compute_costs``: the matrices of a layer, the output matrix, nothing else).
    """
    target = (sum(layer_sizes) + head_size) / chunks
    counts, filled, used = [0] * chunks, 0.0, 0
    for size in layer_sizes:
        counts[used] += 1
        filled += size
        if filled >= target * (used + 1) and used < chunks - 1:
            used += 1
    return tuple(counts)
