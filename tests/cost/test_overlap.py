"""Collectives beside compute: tensor-parallel ones in chunks, and what each kind costs."""

import pytest

from planner.cost.collectives import Group
from planner.cost.layer import Prices
from planner.cost.overlap import (
    SM_SHARE,
    STATE_SHARE,
    beside_s,
    cover_kind,
    in_chunks,
    lost_beside_products,
    lost_share,
)
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

    assert exposed_s(4, layout) == pytest.approx(open_s * (1 / 4 + SM_SHARE * 3 / 4))


@pytest.mark.parametrize(
    ("communication_s", "compute_s", "lost", "added_s"),
    [(2, 3, 0.5, 1), (4, 3, 0.5, 2.5), (4, 3, 0, 1), (2, 3, 1, 2), (2, 0, 0.5, 2), (0, 3, 0.5, 0)],
)
def test_what_compute_does_not_hide(
    communication_s: float, compute_s: float, lost: float, added_s: float
) -> None:
    assert beside_s(communication_s, compute_s, lost) == added_s


# H100: NVLink 450 GB/s, 8 adapters of 50 GB/s; A100: 300 and 8 of 25
@pytest.mark.parametrize("name", ["dgx-a100", "dgx-h100"])
def test_slower_links_cost_compute_less(name: str) -> None:
    """From all of it inside a node down to the SMs, as the bytes of a second become fewer."""
    on = cluster(name, 64)
    inside, rails, alone = (
        lost_share("all_gather", 1e9, Group.place(ranks, stride, on), on)
        for ranks, stride in ((8, 1), (512, 1), (64, 8))
    )
    small = lost_share("all_gather", 1e4, Group.place(512, 1, on), on)

    assert inside == STATE_SHARE > rails > alone > small > SM_SHARE


def test_what_a_profile_measured_beats_both_priors() -> None:
    on = cluster("dgx-h100", 2)
    on = on.model_copy(update={"gpu": on.gpu.model_copy(update={"interference": 0.1})})

    assert lost_beside_products(on.gpu) == 0.1
    assert {lost_share("all_gather", 1e9, Group.place(ranks, 1, on), on) for ranks in (8, 16)} == {
        0.1
    }
