"""Where tokens go: loads, placement, copies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.experts import placed, zipf_exponent, zipf_loads
from planner.cost.imbalance import unbalanced
from planner.launcher.copies import materialised
from planner.model.operations import Collective, Elementwise, Gemm
from planner.spec.job import RoutingSpec

quick = settings(deadline=None, max_examples=60)
grids = st.sampled_from([(8, 4), (32, 16), (64, 32), (64, 8)])
exponents = st.floats(0, 2)


def test_even_loads_are_balanced() -> None:
    even = placed((1 / 16,) * 16, 8)

    assert (even.fullest, even.exchanged, even.sparsity) == (pytest.approx(1), pytest.approx(1), 0)


def test_one_hot_expert_by_hand() -> None:
    """Four experts on four ranks, half of the tokens for the first."""
    loads = (0.5, 0.2, 0.2, 0.1)
    static = placed(loads, 4, node=2)
    copied = placed(loads, 4, (4, 1, 1, 1), node=2)

    assert static.fullest == pytest.approx(4 * 0.5)
    assert static.exchanged == pytest.approx(0.5 * 0.75 / (0.25 * 0.75))
    assert copied.fullest == pytest.approx(4 * (0.5 / 4 + 0.2))
    assert copied.exchanged == pytest.approx(0.2 * 0.75 / (0.25 * 0.75))
    assert copied.sparsity == pytest.approx(3 / 4)


@quick
@given(grid=grids, exponent=exponents, seed=st.integers(0, 9))
def test_no_rank_has_less_than_the_mean_or_more_than_all(
    grid: tuple[int, int], exponent: float, seed: int
) -> None:
    experts, ranks = grid
    loads = zipf_loads(experts, exponent, seed)

    assert sum(loads) == pytest.approx(1)
    assert 1 - 1e-9 <= placed(loads, ranks).fullest <= ranks


@pytest.mark.parametrize(("experts", "ranks"), [(64, 32), (32, 16)])
@pytest.mark.parametrize("fullest", [1.5, 2.5, 5.18])
def test_an_exponent_is_found_for_a_skew(experts: int, ranks: int, fullest: float) -> None:
    loads = zipf_loads(experts, zipf_exponent(experts, ranks, fullest))

    assert placed(loads, ranks).fullest == pytest.approx(fullest, rel=1e-6)


@quick
@given(grid=grids, exponent=exponents, hidden=st.integers(0, 64), slots=st.integers(0, 64))
def test_copies_stay_within_time_and_room(
    grid: tuple[int, int], exponent: float, hidden: int, slots: int
) -> None:
    experts, ranks = grid
    loads = zipf_loads(experts, exponent)
    hidden = min(hidden, experts)
    copies = materialised(loads, ranks, hidden, slots)
    extra = sum(copies) - experts

    assert all(1 <= count <= ranks for count in copies)
    assert extra <= ranks * slots
    if hidden <= slots:  # time is short: the most loaded, everywhere
        assert extra == hidden * (ranks - 1)
        assert min((load for load, count in zip(loads, copies, strict=True) if count > 1),
                   default=1) >= max((load for load, count in zip(loads, copies, strict=True)
                                      if count == 1), default=0) - 1e-12  # fmt: skip


@quick
@given(exponent=st.floats(0.3, 2), slots=st.integers(0, 8))
def test_more_slots_never_unbalance_the_fullest_expert(exponent: float, slots: int) -> None:
    loads = zipf_loads(64, exponent)
    few, many = (materialised(loads, 32, 64, count) for count in (slots, slots + 1))

    def worst(copies: tuple[int, ...]) -> float:
        return max(load / count for load, count in zip(loads, copies, strict=True))

    assert worst(many) <= worst(few) <= max(loads)


def test_operations_of_the_fullest_rank() -> None:
    up = Gemm("experts up", 100, 8, 8, 4, grouped=True)
    operations = [
        Gemm("router", 100, 4, 8),
        Collective("dispatch", "all_to_all", 1000, "ep"),
        up,
        Elementwise("swiglu", 600),
        up._replace(name="experts down"),
        Elementwise("unpermute", 800),
    ]

    router, dispatch, first, act, last, rest = unbalanced(
        operations, RoutingSpec(fullest_rank=3, exchanged=2)
    )

    assert (router, rest) == (operations[0], operations[5])
    assert isinstance(dispatch, Collective)
    assert isinstance(first, Gemm)
    assert isinstance(last, Gemm)
    assert isinstance(act, Elementwise)
    assert (dispatch.message_bytes, first.m, last.m, act.moved_bytes) == (2000, 300, 300, 1800)
    assert unbalanced(operations, RoutingSpec()) == operations
