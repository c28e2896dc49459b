"""The order of nodes in words."""

import pytest

from planner.plan import PlacementRecord, SlowLinkRecord
from planner.report.placement import link_lines, placement_text
from planner.search.placed import SlowLink

PLACED = PlacementRecord(
    communication_s=0.9,
    listed_communication_s=1.0,
    listed_step_time_s=5.0,
    healthy_step_time_s=4.5,
    exact=False,
)

LINES = [
    (("a", "b", 0.0000001, ()), "a - b: broken; avoided, carries nothing"),
    (("a", "b", 0.25, ()), "a - b: 25.0 % of a healthy link; avoided, carries nothing"),
    (
        ("a", "b", 0.25, ("pipeline hops",)),
        "a - b: 25.0 % of a healthy link; carries pipeline hops",
    ),
    (
        ("a", "b", 0.5, tuple("vwxyz")),
        "a - b: 50.0 % of a healthy link; carries v, w, x and 2 more",
    ),
]


@pytest.mark.parametrize(("link", "expected"), LINES)
def test_a_slow_link_is_named_with_what_it_carries(
    link: tuple[str, str, float, tuple[str, ...]], expected: str
) -> None:
    record = SlowLinkRecord(first=link[0], second=link[1], share=link[2], carries=link[3])

    assert link_lines([SlowLink(*link)]) == link_lines([record]) == [expected]


def test_the_gain_is_told_with_both_step_times() -> None:
    text = placement_text(PLACED, ("b", "a")).plain

    assert text.startswith("10.0 % less communication than in the order of the measurement (900 ms")
    assert "the best order found" in text
    assert "takes 5 s, and 4.5 s if no link were slow" in text
    assert text.endswith("hosts: b, a")


def test_no_gain_is_said_plainly() -> None:
    same = PLACED.model_copy(update={"communication_s": 1.0})

    assert placement_text(same, ()).plain.startswith("As listed: no other order of nodes")


def test_many_hosts_are_cut() -> None:
    text = placement_text(PLACED, [f"n{index}" for index in range(40)]).plain

    assert text.endswith("n31, ... (all in --json)")
