"""Exchanges of sharded tensors: groups, formats, and that nothing is lost on the way."""

import pytest

from planner.cost.sharded import (
    copied_bytes,
    gradient_copies,
    layer_exchanges,
    step_exchanges,
    weight_refresh,
)
from planner.layout.layout import Layout, Shard
from planner.layout.local import LocalParameters
from tests.properties.strategies import cluster, software

DGX = cluster("dgx-h100", 8)
LOCAL = LocalParameters(dense=1e9, expert=2e8)
HOW = software()
QUANTISED = software(quantised_weight_gather=True, quantised_gradient_reduction=True)


@pytest.mark.parametrize("shard", [Shard(), Shard.zero(1, 64)])
def test_whole_gradients_exchange_nothing_within_a_step(shard: Shard) -> None:
    assert layer_exchanges(LOCAL, Layout(dp=64, shard=shard), DGX, HOW) == ()


def test_a_pipeline_keeps_everything_until_the_end() -> None:
    layout = Layout(pp=2, dp=32, shard=Shard.zero(3, 32))

    assert layer_exchanges(LOCAL, layout, DGX, HOW) == ()
    assert {one.phase for one in step_exchanges(LOCAL, layout, DGX, HOW)} == {"step"}


@pytest.mark.parametrize(("shard", "sizes"), [
    (Shard.zero(2, 64), {"gradients": 64}),
    (Shard.zero(3, 64), {"weights": 64, "gradients": 64}),
    (Shard(8, 8, 8), {"weights": 8, "gradients": 8}),
    (Shard(2, 8, 64), {"weights": 2, "gradients": 8}),
])  # fmt: skip
def test_groups_are_those_of_the_shards(shard: Shard, sizes: dict[str, int]) -> None:
    dense = LocalParameters(dense=1e9)
    found = layer_exchanges(dense, Layout(dp=64, shard=shard), DGX, HOW)

    assert {one.tensor: one.group.ranks for one in found} == sizes


def test_the_second_copy_serves_the_backward_pass() -> None:
    found = layer_exchanges(LOCAL, Layout(dp=64, shard=Shard(64, 64, 64, 8)), DGX, HOW)
    ranks = {(one.tensor, one.phase): one.group.ranks for one in found}

    assert ranks["weights", "forward"] == 64
    assert ranks["weights", "backward"] == 8


def test_quantised_formats_send_a_half_and_a_quarter_and_pay_for_it() -> None:
    layout = Layout(dp=64, shard=Shard.zero(3, 64))
    plain = layer_exchanges(LocalParameters(1e9), layout, DGX, software(reduce_bytes=2))
    quantised = layer_exchanges(LocalParameters(1e9), layout, DGX, QUANTISED)

    assert [one.message_bytes for one in plain] == [2e9, 2e9, 2e9]
    assert [one.message_bytes for one in quantised] == [1e9, 1e9, 0.5e9, 0.5e9 / 8]
    assert all(one.converted_bytes > 0 for one in quantised)
    assert all(one.converted_bytes == 0 for one in plain)


# weights, gradients, optimizer over ranks; reduction after the last pass; refreshed weights
TAILS = [
    (Shard(8, 8, 8), "all_reduce", 8, None),
    (Shard(2, 8, 64), "reduce_scatter", 8, 32),
    (Shard.zero(3, 64), "all_reduce", 1, None),
    (Shard.zero(1, 64), "reduce_scatter", 64, 64),
    (Shard(), "all_reduce", 64, None),
]


@pytest.mark.parametrize(("shard", "kind", "copies", "refresh"), TAILS)
def test_what_is_left_for_the_end_of_a_step(
    shard: Shard, kind: str, copies: int, refresh: int | None
) -> None:
    layout = Layout(dp=64, shard=shard)
    found, parts, _ = gradient_copies(LOCAL, layout, DGX, HOW)
    again = weight_refresh(LOCAL, layout, DGX)

    assert (found, parts.dense_group.ranks) == (kind, copies)
    assert (again.dense_group.ranks if again else None) == refresh


def test_inside_one_domain_nothing_crosses() -> None:
    found = layer_exchanges(LOCAL, Layout(dp=8, shard=Shard.zero(3, 8)), DGX, QUANTISED)

    assert found
    assert all(one.crossing_bytes == 0 for one in found)


# bytes per parameter: gathered weights read and written; gradients of 2 bytes read, of 4 written
COPIES = [
    (Layout(dp=64, shard=Shard.zero(3, 64)), True, 4, 10),
    (Layout(dp=64, shard=Shard.zero(2, 64)), True, 0, 6),
    (Layout(dp=64, shard=Shard.zero(1, 64)), True, 0, 0),
    (Layout(dp=32, pp=2, shard=Shard.zero(3, 32)), True, 0, 0),
    (Layout(dp=64, shard=Shard.zero(3, 64)), False, 0, 0),
]


@pytest.mark.parametrize(("layout", "copies", "forward", "backward"), COPIES)
def test_what_fsdp2_copies(layout: Layout, copies: bool, forward: int, backward: int) -> None:
    found = copied_bytes(LOCAL, layout, software(copies_gathered=copies, reduce_bytes=4))

    assert found == pytest.approx((forward * LOCAL.total, backward * LOCAL.total))
