"""The lower bound never exceeds what is simulated, and is close enough to prune."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split, split_layers
from planner.schedule.kinds import SPLIT, V_SHAPED
from planner.search.bound import lower_bounds_s
from planner.simulate.step import estimate_step
from planner.spec.job import SoftwareSpec
from planner.spec.software import MEGATRON_2022, NANOTRON, TORCH_LAUNCHER
from tests.properties.strategies import (
    cluster,
    job,
    legal_layouts,
    prices,
    quick,
    small,
    splits,
)

SPACES = [
    ("small", "dgx-h100", 2, 32),
    ("small", "dgx-a100", 3, 48),
    ("small-moe", "dgx-h100", 4, 32),
    ("small-moe", "dgx-a100", 2, 32),
    ("llama-3-8b", "dgx-h100", 2, 32),
    ("llama-3-8b", "dgx-a100", 4, 64),
]
WITHIN = 1 + 1e-9
cases = st.sampled_from(SPACES).flatmap(
    lambda space: st.tuples(st.just(prices(*space)), st.sampled_from(legal_layouts(*space)))
)
Case = tuple[Prices, Layout]


def bound(table: Prices, layout: Layout) -> float:
    return float(lower_bounds_s(table, [layout])[0])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space[0]} {space[1]}")
def test_bound_never_exceeds_the_simulated_time(space: tuple[str, str, int, int]) -> None:
    """Every eleventh layout of the space; hypothesis asks for others below."""
    table, some = prices(*space), legal_layouts(*space)[::11]

    bounds = lower_bounds_s(table, list(some))

    times = np.array([estimate_step(table, layout).step_time_s for layout in some])
    assert (bounds <= times * WITHIN).all()
    assert np.median(bounds / times) > 0.7  # else it would prune nothing


@quick
@given(cases, st.data())
def test_bound_holds_whatever_is_recomputed(case: Case, data: st.DataObject) -> None:
    table, layout = case
    layers = split_layers(table.model.layers, layout.pp * layout.vpp)
    again = tuple(data.draw(st.integers(0, count)) for count in layers)

    step = estimate_step(table, layout, Split(layers, again))

    assert bound(table, layout) <= step.step_time_s * WITHIN


@quick
@given(cases, st.data())
def test_bound_holds_for_any_stages(case: Case, data: st.DataObject) -> None:
    table, layout = case
    split = data.draw(splits(table.model.layers, layout.pp * layout.vpp))

    step = estimate_step(table, layout, split)

    assert bound(table, layout) <= step.step_time_s * WITHIN


SCHEDULED = [
    Layout(pp=4, dp=2, schedule=name, vpp=1 + (name in V_SHAPED), micro_batch=micro_batch)
    for name in SPLIT
    for micro_batch in (1, 2)
]  # fmt: skip


@pytest.mark.parametrize("layout", SCHEDULED, ids=Layout.label)
@quick
@given(data=st.data())
def test_bound_holds_for_split_backward_passes(layout: Layout, data: st.DataObject) -> None:
    table = prices("small", "dgx-h100", 1, 32)
    split = data.draw(splits(table.model.layers, layout.pp * layout.vpp))

    step = estimate_step(table, layout, split)

    assert bound(table, layout) <= step.step_time_s * WITHIN


# Two stages and two micro-batches: a longer first stage hides the second behind its own passes.
@pytest.mark.parametrize("layers", [(11, 5), (10, 6)])
def test_bound_holds_for_unequal_stages_of_few_micro_batches(layers: tuple[int, int]) -> None:
    table = prices("small", "dgx-h100", 2)
    layout = Layout(tp=8, pp=2, micro_batch=16, sequence_parallel=True)

    step = estimate_step(table, layout, Split(layers))

    assert bound(table, layout) <= step.step_time_s * WITHIN


@pytest.mark.parametrize("stack", [MEGATRON_2022, NANOTRON, TORCH_LAUNCHER])
def test_bound_holds_for_every_stack(stack: SoftwareSpec) -> None:
    table = Prices(small(), cluster("dgx-h100", 4), job(software=stack))
    some = list(legal_layouts("small", "dgx-h100", 4)[::23])

    times = np.array([estimate_step(table, layout).step_time_s for layout in some])

    assert (lower_bounds_s(table, some) <= times * WITHIN).all()


def test_one_stage_is_bounded_by_its_work() -> None:
    table, layout = prices("small", "dgx-h100", 1), Layout(dp=8)
    costs = [table.layer(layout, False)] * 16 + [table.embedding(layout), table.head(layout)]

    work = sum(cost.forward.total + cost.backward.total for cost in costs)

    assert bound(table, layout) == pytest.approx(4 * work)


def test_stages_fill_and_drain() -> None:
    table, layout = prices("llama-3-8b", "dgx-h100", 1), Layout(pp=4, dp=2)
    layer = table.layer(layout, False)
    seconds = layer.forward.total + layer.backward.total
    ends = [table.embedding(layout), table.head(layout)]
    work = 32 * seconds + sum(cost.forward.total + cost.backward.total for cost in ends)

    assert bound(table, layout) == pytest.approx(work / (1 - (1 - 1 / 16) ** 4))


# Eight layers and a head of at most one layer: the last of four ranks has two layers and the head.
@pytest.mark.parametrize("chunks", [1, 2])
def test_layers_are_indivisible(chunks: int) -> None:
    table = Prices(small(layers=8), cluster("dgx-h100", 1), job(64))
    layout = Layout(pp=4, dp=2, vpp=chunks)
    layer, head = (sum(one.total for one in cost[:2])
                   for cost in (table.layer(layout, False), table.head(layout)))  # fmt: skip
    assert head < layer

    assert bound(table, layout) == pytest.approx(32 * (2 * layer + head) + 3 * layer)


def test_dense_and_expert_layers_are_counted_apart() -> None:
    table, layout = prices("small-moe", "dgx-h100", 1), Layout(dp=8, ep=8)
    dense, moe = (table.layer(layout, kind) for kind in (False, True))
    ends = [table.embedding(layout), table.head(layout)]
    costs = [dense] + [moe] * 15 + ends

    work = sum(cost.forward.total + cost.backward.total for cost in costs)

    assert bound(table, layout) == pytest.approx(4 * work)


def test_no_layouts_have_no_bounds() -> None:
    assert lower_bounds_s(prices("small", "dgx-h100", 1), []).shape == (0,)


def test_bounds_do_not_depend_on_their_company() -> None:
    table, some = prices("small", "dgx-h100", 2), list(legal_layouts("small", "dgx-h100", 2)[::40])

    together = lower_bounds_s(table, some)

    assert together.tolist() == [bound(table, layout) for layout in some]
