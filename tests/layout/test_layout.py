"""Degrees, sharding and names of a layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Recompute, Shard
from tests.properties.strategies import degrees


def test_one_gpu_is_the_default() -> None:
    layout = Layout()

    assert layout.gpus == layout.edp == 1
    assert layout.shard.zero_stage() == 0
    assert layout.label() == "mb1 zero0"


@given(degrees, degrees, degrees, degrees)
def test_degrees_multiply_to_the_gpus(tp: int, cp: int, pp: int, dp: int) -> None:
    layout = Layout(tp=tp, cp=cp, pp=pp, dp=dp)

    assert layout.gpus == tp * cp * pp * dp


@given(degrees, degrees, degrees, degrees, degrees, degrees)
def test_both_grids_hold_the_same_ranks(
    tp: int, cp: int, pp: int, dp: int, ep: int, etp: int
) -> None:
    layout = Layout(tp=tp, cp=cp, pp=pp, dp=dp, ep=ep, etp=etp)
    if tp * cp * dp % (ep * etp) == 0:
        assert layout.etp * layout.ep * layout.edp * layout.pp == layout.gpus


@pytest.mark.parametrize(
    ("global_batch", "dp", "micro_batch", "count"), [(64, 4, 2, 8), (64, 64, 1, 1), (24, 3, 4, 2)]
)
def test_micro_batches(global_batch: int, dp: int, micro_batch: int, count: int) -> None:
    assert Layout(dp=dp, micro_batch=micro_batch).micro_batches(global_batch) == count


# stage, the shard it spells over 8 ranks
ZERO = [(0, (1, 1, 1)), (1, (1, 1, 8)), (2, (1, 8, 8)), (3, (8, 8, 8))]


@pytest.mark.parametrize(("stage", "sizes"), ZERO)
def test_zero_stages_are_spellings_of_a_shard(stage: int, sizes: tuple[int, int, int]) -> None:
    shard = Shard.zero(stage, 8)

    assert (shard.weights, shard.gradients, shard.optimizer) == sizes
    assert shard.zero_stage() == stage


@given(st.integers(0, 3), st.integers(2, 512))
def test_a_shard_says_its_zero_stage(stage: int, group: int) -> None:
    shard = Shard.zero(stage, group)

    assert shard.zero_stage() == stage
    assert shard.weights <= shard.gradients <= shard.optimizer


def test_sharding_over_one_rank_is_none() -> None:
    assert {Shard.zero(stage, 1) for stage in range(4)} == {Shard()}


LABELS = [
    (Layout(tp=8, pp=4, dp=2, shard=Shard(1, 1, 2)), "tp8 pp4 dp2 mb1 zero1"),
    (Layout(dp=64, micro_batch=4, shard=Shard(8, 8, 8)), "dp64 mb4 hsdp8"),
    (Layout(dp=64, shard=Shard(64, 64, 64, 8)), "dp64 mb1 zero3-hpz8"),
    (Layout(dp=64, shard=Shard(2, 8, 64)), "dp64 mb1 shard2-8-64"),
    (Layout(dp=64, shard=Shard(1, 1, 8)), "dp64 mb1 zero1"),
    (Layout(dp=8, shard=Shard.zero(3, 8)), "dp8 mb1 zero3"),
    (Layout(tp=2, ep=8, dp=4, etp=1), "tp2 dp4 ep8 mb1 zero0"),
    (Layout(pp=8, vpp=3, recompute=Recompute.FULL), "pp8 vpp3 mb1 zero0 recompute-full"),
]


@pytest.mark.parametrize(("layout", "label"), LABELS)
def test_label(layout: Layout, label: str) -> None:
    assert layout.label() == label
