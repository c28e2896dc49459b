"""Tensor-parallel collectives beside their products."""

import pytest

from planner.cost.layer import Prices
from planner.cost.overlap import cover_kind, in_chunks
from planner.layout.layout import Layout
from planner.model.operations import Collective, Elementwise, Gemm
from tests.properties.strategies import cluster, job, layout_with, model, software

GATHER = Collective("mlp gather", "all_gather", 1e8, "tp")
REDUCE = Collective("mlp reduce", "reduce_scatter", 1e8, "tp")
UP, DOWN = Gemm("mlp up", 4096, 4096, 4096), Gemm("mlp down", 4096, 4096, 4096)
SWIGLU = Elementwise("swiglu", 1e6)


def exposed_s(chunks: int, layout: Layout, backward: bool = False, **changes: object) -> float:
    """Return the exposed tensor-parallel seconds of one layer of Llama-3-8B."""
    how = software(tp_overlap_chunks=chunks, **changes)
    cost = Prices(model("llama-3-8b"), cluster("dgx-h100"), job(software=how)).layer(layout, False)
    return (cost.backward if backward else cost.forward).tp


def test_a_gather_runs_before_its_product_and_a_reduction_after() -> None:
    gather, _, _, _, reduce = in_chunks([GATHER, UP, SWIGLU, DOWN, REDUCE], 4)

    assert isinstance(gather, Collective)
    assert isinstance(reduce, Collective)
    assert (gather.hidden_behind, gather.open_chunk) == ("up", 0.25)
    assert (reduce.hidden_behind, reduce.open_chunk) == ("down", 0.25)


def test_what_has_no_product_or_is_no_shard_stays_in_the_open() -> None:
    whole = REDUCE._replace(kind="all_reduce")
    other = GATHER._replace(axis="ep")
    scores = UP._replace(weight=False)

    for operations in ([GATHER, SWIGLU], [GATHER, scores], [UP, whole], [other, UP]):
        assert in_chunks(operations, 8) == operations


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mlp up", "up"), ("qkv", "qkv"), ("attention backward", "attention"), ("a wgrad", "wgrad")],
)
def test_names_of_covers(name: str, kind: str) -> None:
    assert cover_kind(name) == kind


@pytest.mark.parametrize("backward", [False, True])
def test_more_chunks_expose_less(backward: bool) -> None:
    layout = layout_with(tp=4, dp=2)
    seconds = [exposed_s(chunks, layout, backward) for chunks in (1, 2, 4, 8)]

    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < 0.75 * seconds[0]
    assert seconds[-1] > 0


def test_without_sequence_parallelism_nothing_changes() -> None:
    layout = layout_with(tp=4, dp=2, sequence_parallel=False)

    assert exposed_s(8, layout) == exposed_s(1, layout) > 0


def test_exposed_by_hand() -> None:
    """Four equal messages shorter than their products: a chunk stays open, the rest slows them."""
    layout = layout_with(tp=2, dp=4)
    open_s = exposed_s(1, layout)

    assert exposed_s(4, layout) == pytest.approx(open_s * (1 / 4 + 0.19 * 3 / 4))
