"""Layers of each stage, and parameters of each rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Recompute
from planner.layout.local import LocalParameters, layer_local, stage_local
from planner.layout.stages import (
    Split,
    StageLayers,
    balance_layers,
    rank_layers,
    split_layers,
    stage_layers,
)
from planner.model.parameters import layer_parameters, total_parameters
from tests.properties.strategies import model, quick, small, small_moe, splits

# layers, stages, layers of each: equal; both ends one fewer; the remainder after the first
SPLITS = [
    (96, 8, (12,) * 8),
    (126, 16, (7, *(8,) * 14, 7)),  # Llama 3 405B
    (70, 12, (5, *(6,) * 10, 5)),  # BLOOM
    (10, 4, (2, 3, 3, 2)),
    (7, 4, (1, 2, 2, 2)),
    (61, 8, (7, 8, 8, 8, 8, 8, 7, 7)),
    (5, 1, (5,)),
    (4, 4, (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("layers", "chunks", "expected"), SPLITS)
def test_split_layers(layers: int, chunks: int, expected: tuple[int, ...]) -> None:
    assert split_layers(layers, chunks) == expected


@given(st.integers(1, 200), st.integers(1, 64))
def test_stages_hold_all_layers_and_differ_by_one(layers: int, chunks: int) -> None:
    counts = split_layers(layers, chunks)

    assert sum(counts) == layers
    assert len(counts) == chunks
    assert max(counts) - min(counts) <= 1


# nanotron fills a stage until its share of the total is reached
@pytest.mark.parametrize(
    ("sizes", "head", "chunks", "expected"),
    [
        ((1.0,) * 8, 0.0, 4, (2, 2, 2, 2)),
        ((1.0,) * 8, 4.0, 4, (3, 3, 2, 0)),
        ((1.0,) * 8, 1.0, 2, (5, 3)),
        ((1.0, 1.0, 4.0), 0.0, 2, (3, 0)),
    ],
)
def test_balance_layers(
    sizes: tuple[float, ...], head: float, chunks: int, expected: tuple[int, ...]
) -> None:
    assert balance_layers(sizes, head, chunks) == expected


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.floats(0, 50), st.integers(1, 8))
def test_balancing_loses_no_layer(sizes: list[float], head: float, chunks: int) -> None:
    assert sum(balance_layers(tuple(sizes), head, chunks)) == len(sizes)


def test_dense_layers_come_first() -> None:
    stages = stage_layers(small_moe(), 4)

    assert [(stage.dense, stage.moe) for stage in stages] == [(1, 3), (0, 4), (0, 4), (0, 4)]
    assert [stage.embedding for stage in stages] == [True, False, False, False]
    assert [stage.head for stage in stages] == [False, False, False, True]


def test_the_first_layers_of_a_stage_are_recomputed() -> None:
    stages = stage_layers(small_moe(), 2, Split((8, 8), (3, 8)))

    assert stages[0] == StageLayers(0, 5, True, False, 1, 2)
    assert stages[1] == StageLayers(0, 0, False, True, 0, 8)


def test_chunks_of_a_rank_are_added_up() -> None:
    assert rank_layers(small(), 4, 2, 1) == StageLayers(4, 0, False, False)
    assert rank_layers(small(), 4, 2, 0).embedding
    assert rank_layers(small(), 4, 2, 3).head
    assert rank_layers(small(), 1, 1, 0) == StageLayers(16, 0, True, True)


KINDS = [
    (StageLayers(4, 0), Recompute.NONE, ((4, False, "none"),)),
    (
        StageLayers(0, 3, dense_recomputed=2),
        Recompute.NONE,
        ((3, True, "none"), (2, False, "full")),
    ),
    (
        StageLayers(1, 0, moe_recomputed=2),
        "selective",
        ((1, False, "selective"), (2, True, "full")),
    ),
    (StageLayers(0, 0, embedding=True), Recompute.FULL, ()),
]


@pytest.mark.parametrize(("stage", "recompute", "kinds"), KINDS)
def test_kinds_of_layers(
    stage: StageLayers, recompute: str, kinds: tuple[tuple[int, bool, str], ...]
) -> None:
    assert stage.kinds(Recompute(recompute)) == kinds


@quick
@given(splits(16, 8))
def test_any_split_holds_the_model(split: Split) -> None:
    spec = small_moe()
    stages = stage_layers(spec, 8, split)

    assert tuple(stage.layers for stage in stages) == split.layers
    assert sum(stage.moe + stage.moe_recomputed for stage in stages) == spec.moe_layers
    again = [stage.dense_recomputed + stage.moe_recomputed for stage in stages]
    assert tuple(again) == split.recomputed


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "small-moe"])
@pytest.mark.parametrize(("pp", "vpp"), [(1, 1), (4, 1), (2, 2)])
def test_stages_hold_the_parameters_of_the_model(name: str, pp: int, vpp: int) -> None:
    spec = model(name)
    ranks = [rank_layers(spec, pp, vpp, rank) for rank in range(pp)]

    local = [stage_local(spec, held, 1, 1, 1).total for held in ranks]

    assert sum(local) == total_parameters(spec)


def test_a_tied_matrix_is_held_at_both_ends() -> None:
    spec = small(tied_embeddings=True)
    ends = [stage_local(spec, rank_layers(spec, 2, 1, rank), 1, 1, 1).total for rank in range(2)]

    assert sum(ends) == total_parameters(spec) + spec.vocab * spec.hidden
    assert stage_local(spec, rank_layers(spec, 1, 1, 0), 1, 1, 1).total == total_parameters(spec)


@pytest.mark.parametrize(("tp", "copies"), [(1, 1), (8, 1), (16, 2)])
def test_key_value_heads_are_copied_not_split(tp: int, copies: int) -> None:
    spec = small()
    one_head = 2 * spec.head_dim * spec.hidden
    whole = layer_parameters(spec, False)

    local = layer_local(spec, False, tp, 1, 1)

    rest = whole.attention - spec.kv_heads * one_head + whole.mlp
    key_value = spec.kv_heads * copies * one_head / tp
    assert local.dense == pytest.approx(rest / tp + key_value + whole.replicated)


@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (4, 1), (1, 4), (16, 2)])
def test_experts_are_split_by_both_degrees(ep: int, etp: int) -> None:
    spec = small_moe()

    local = layer_local(spec, True, 4, ep, etp)

    assert local.expert * ep * etp == layer_parameters(spec, True).experts
    assert local.dense == layer_local(spec, True, 4, 1, 1).dense


def test_parts_add_up() -> None:
    local = LocalParameters(1, 10).plus(LocalParameters(2, 20), 3)

    assert local == LocalParameters(7, 70)
    assert local.total == 77
