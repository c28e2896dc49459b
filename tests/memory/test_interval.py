"""What the interval of memory says about fitting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.estimate import RankMemory
from planner.memory.interval import Verdict, memory_interval, verdict
from planner.units import GIB
from tests.properties.strategies import quick

sizes = st.floats(0, 200 * GIB)
memories = st.builds(
    RankMemory,
    *[sizes] * 7,
    moment=st.just("loss"),
    reserve_share=st.floats(0, 0.5),
    spread=st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
)


@quick
@given(memories)
def test_the_estimate_lies_inside(memory: RankMemory) -> None:
    low, high = memory_interval(memory)

    assert low <= memory.device <= high
    assert low >= memory.outside


@quick
@given(memories, sizes, sizes)
def test_more_capacity_never_fits_less(memory: RankMemory, one: float, other: float) -> None:
    order = [Verdict.DOES_NOT_FIT, Verdict.TOO_CLOSE, Verdict.FITS]
    few, many = sorted([one, other])

    assert order.index(verdict(memory, few)) <= order.index(verdict(memory, many))


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (1.2 * 100 + 2, Verdict.FITS),
        (1.2 * 100 + 1, Verdict.TOO_CLOSE),
        (0.9 * 100 + 2, Verdict.TOO_CLOSE),
        (0.9 * 100 + 1, Verdict.DOES_NOT_FIT),
    ],
)
def test_verdict_at_the_ends(capacity: float, expected: Verdict) -> None:
    """100 GiB reserved and 1.5 GiB outside."""
    size = 100 * GIB / 1.053
    memory = RankMemory(0, 0, 0, 0, size, 0, 1.5 * GIB, "loss", 0.053, (0.9, 1.2))

    assert verdict(memory, capacity * GIB) is expected
