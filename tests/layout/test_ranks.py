"""Groups of ranks of the attention grid and of the folded expert grid."""

import itertools
from math import prod

import pytest
from hypothesis import given

from planner.layout.layout import Layout
from planner.layout.ranks import ATTENTION_AXES, EXPERT_AXES, groups, stride
from tests.properties.strategies import layouts_of, quick

# MoE Parallel Folding (arXiv 2504.14960): 16 ranks, one expert group over the 8 of each stage
FOLDED = Layout(tp=2, cp=2, dp=2, pp=2, ep=8, etp=1)
FOLDED_GROUPS = [
    ("tp", [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]),
    ("cp", [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]),
    ("dp", [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12], [9, 13], [10, 14], [11, 15]]),
    ("pp", [[rank, rank + 8] for rank in range(8)]),
    ("ep", [list(range(8)), list(range(8, 16))]),
    ("etp", [[rank] for rank in range(16)]),
    ("edp", [[rank] for rank in range(16)]),
]
MOE_LAYOUTS = layouts_of("small-moe", "dgx-h100", 4)


@pytest.mark.parametrize(("axis", "expected"), FOLDED_GROUPS)
def test_groups_of_the_folding_paper(axis: str, expected: list[list[int]]) -> None:
    assert sorted(groups(FOLDED, axis)) == expected


def test_gradients_of_attention_meet_over_context_and_data() -> None:
    assert groups(FOLDED, ("cp", "dp"))[:2] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_order_of_axes_does_not_matter() -> None:
    assert groups(FOLDED, ("dp", "cp")) == groups(FOLDED, ("cp", "dp"))


def test_experts_inside_a_node_while_attention_is_split() -> None:
    """The point of folding: cp·ep would need 64 ranks, folded they share 8."""
    layout = Layout(cp=8, ep=8)

    assert groups(layout, "ep") == groups(layout, "cp") == [list(range(8))]


def test_several_copies_of_the_experts() -> None:
    layout = Layout(tp=2, dp=4, ep=2, etp=2)

    assert groups(layout, "etp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert sorted(groups(layout, "ep")) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert sorted(groups(layout, "edp")) == [[0, 4], [1, 5], [2, 6], [3, 7]]


@quick
@given(MOE_LAYOUTS)
def test_every_axis_partitions_the_ranks(layout: Layout) -> None:
    for axis in {*ATTENTION_AXES, *EXPERT_AXES}:
        made = groups(layout, axis)
        assert {len(group) for group in made} == {getattr(layout, axis)}
        assert sorted(rank for group in made for rank in group) == list(range(layout.gpus))


@quick
@given(MOE_LAYOUTS)
def test_both_grids_agree_on_the_stages(layout: Layout) -> None:
    attention = sorted(map(sorted, groups(layout, ("tp", "cp", "dp"))))
    experts = sorted(map(sorted, groups(layout, ("etp", "ep", "edp"))))
    size = layout.gpus // layout.pp

    assert attention == experts
    assert attention[0] == list(range(size))
    assert sorted(groups(layout, "pp")) == [
        list(range(first, layout.gpus, size)) for first in range(size)
    ]


@quick
@given(MOE_LAYOUTS)
def test_stride_is_the_distance_of_neighbours(layout: Layout) -> None:
    for axis in {*ATTENTION_AXES, *EXPERT_AXES}:
        for group in groups(layout, axis):
            steps = {high - low for low, high in itertools.pairwise(group)}
            assert steps <= {stride(layout, axis)}


@quick
@given(MOE_LAYOUTS)
def test_all_axes_of_a_grid_are_all_ranks(layout: Layout) -> None:
    for grid in (ATTENTION_AXES, EXPERT_AXES):
        assert groups(layout, grid) == [list(range(layout.gpus))]
        assert prod(getattr(layout, axis) for axis in grid) == layout.gpus
