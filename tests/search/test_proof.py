"""The bound over any stages is never above a split that fits, and tells where none is better."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import peak_memory
from planner.schedule.kinds import KINDS, V_SHAPED
from planner.search.climb import Simulator
from planner.search.programme import StageProgramme, solved
from planner.search.proof import LayoutBound, any_stages_bounds_s, provable
from planner.search.recommend import search
from planner.search.stages import improved
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.spec.job import SoftwareSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, NANOTRON, TORCH_LAUNCHER
from tests.properties.strategies import (
    cluster,
    job,
    legal_layouts,
    model,
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
    ("mixtral-8x7b", "dgx-h100", 4, 64),
]
LONG = 5.0  # times the step: nothing is cut off
CHAINS = 12


def staged(*space: str | int) -> list[Layout]:
    """Return the layouts of a space that the programme knows."""
    layers = prices(*space).model.layers
    return [one for one in legal_layouts(*space) if provable(one, layers)]


cases = st.sampled_from(SPACES).flatmap(
    lambda space: st.tuples(st.just(prices(*space)), st.sampled_from(staged(*space)))
)
Case = tuple[Prices, Layout]


def bound_s(
    table: Prices, layout: Layout, limit: float, until_s: float, uniform: bool = False
) -> float:
    equal = Split(split_layers(table.model.layers, layout.pp * layout.vpp))
    found = LayoutBound(table, layout, limit, until_s, uniform, [], equal)
    found.refine(CHAINS)
    return found.bound * until_s


def need(table: Prices, layout: Layout, split: Split) -> float:
    return peak_memory(table.model, table.job, layout, split).device


@quick
@given(cases, st.data())
def test_no_split_that_fits_is_faster(case: Case, data: st.DataObject) -> None:
    """The limit is what the split needs to the byte, so memory that counts too much shows."""
    table, layout = case
    split = data.draw(splits(table.model.layers, layout.pp * layout.vpp))
    step = estimate_step(table, layout, split)

    bound = bound_s(table, layout, need(table, layout, split), LONG * step.step_time_s)

    assert bound <= step.step_time_s * (1 + 1e-6)


@quick
@given(cases, st.data())
def test_no_split_is_faster_than_what_is_to_be_beaten(case: Case, data: st.DataObject) -> None:
    """With a time to beat just above the split's own, whole layers and recompute are cut off."""
    table, layout = case
    layers = table.model.layers
    split = data.draw(splits(layers, layout.pp * layout.vpp))
    again = data.draw(st.integers(0, layers))
    even = Split(split.layers, tuple(min(again, count) for count in split.layers))
    step_s = estimate_step(table, layout, even).step_time_s

    for until_s in (step_s * 1.001, step_s * 1.2):
        bound = bound_s(table, layout, need(table, layout, even), until_s, uniform=True)
        assert bound <= step_s * (1 + 1e-6)


SCHEDULED = [
    Layout(pp=4, dp=2, schedule=name, vpp=1 + (name in V_SHAPED), micro_batch=micro_batch)
    for name in KINDS
    for micro_batch in (1, 4)
    if provable(Layout(pp=4, vpp=1 + (name in V_SHAPED), schedule=name), 16)
    and name != "interleaved_1f1b"
]  # fmt: skip


@pytest.mark.parametrize("layout", SCHEDULED, ids=Layout.label)
@quick
@given(data=st.data())
def test_no_split_is_faster_in_any_schedule(layout: Layout, data: st.DataObject) -> None:
    table = prices("small", "dgx-h100", 1, 32)
    split = data.draw(splits(table.model.layers, layout.pp * layout.vpp))
    step = estimate_step(table, layout, split)

    bound = bound_s(table, layout, need(table, layout, split), LONG * step.step_time_s)

    assert bound <= step.step_time_s * (1 + 1e-6)


@pytest.mark.parametrize("stack", [MEGATRON_2022, MEGATRON_CORE, NANOTRON, TORCH_LAUNCHER])
@quick
@given(data=st.data())
def test_no_split_is_faster_in_any_stack(stack: SoftwareSpec, data: st.DataObject) -> None:
    """Blocking transfers, exposed gradients, stalls of slow nodes."""
    table = Prices(small(), cluster("dgx-h100", 4), job(software=stack))
    some = [one for one in legal_layouts("small", "dgx-h100", 4) if provable(one, 16)]
    layout = data.draw(st.sampled_from(some))
    split = data.draw(splits(16, layout.pp * layout.vpp))
    step = estimate_step(table, layout, split)

    bound = bound_s(table, layout, need(table, layout, split), LONG * step.step_time_s)

    assert bound <= step.step_time_s * (1 + 1e-6)


def test_columns_of_a_split_give_its_stage_times() -> None:
    table = prices("small-moe", "dgx-h100", 4, 32)
    layout = next(one for one in staged("small-moe", "dgx-h100", 4, 32) if one.pp == 4)
    programme = StageProgramme(table, layout, 8e10)
    counts = (3, 5, *(1,) * (layout.pp * layout.vpp - 3))
    counts = (*counts, 16 - sum(counts))

    columns = programme.columns(Split(counts, tuple(min(2, count) for count in counts)))

    assert columns.sum(axis=(0, 1)).tolist() == list(counts)
    assert columns[1].sum(axis=0).tolist() == [min(2, count) for count in counts]
    assert columns.sum(axis=(0, 2)).tolist() == programme.count.tolist()


@pytest.mark.parametrize(("micro_batches", "stages"), [(3, 3), (24, 3), (8, 2)])
def test_the_bound_is_near_the_best_of_all_splits(micro_batches: int, stages: int) -> None:
    table = prices("small", "dgx-h100", 1, micro_batches)
    layout = Layout(tp=2, pp=stages, micro_batch=1, sequence_parallel=True)
    simulator = Simulator(table, layout, Split(split_layers(16, stages)))
    cuts = itertools.combinations(range(1, 16), stages - 1)
    every = np.array([np.diff((0, *cut, 16)) for cut in cuts])
    best_s = simulator.step_s(every, np.zeros_like(every)).min()

    bound = bound_s(table, layout, 1e15, LONG * float(best_s))

    assert 0.93 < bound / best_s <= 1 + 1e-6


def test_chains_that_were_found_only_raise_the_bound() -> None:
    table = prices("small", "dgx-h100", 1, 32)
    layout = Layout(pp=4, dp=2, vpp=2, schedule="zb_v", micro_batch=1)
    until_s = LONG * estimate_step(table, layout).step_time_s
    found = LayoutBound(table, layout, 1e15, until_s, False, [])
    bounds = [found.bound]
    while found.refine(1) and len(bounds) < 30:
        bounds.append(found.bound)

    assert all(low <= high * (1 + 1e-9) for low, high in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0] * 1.02
    assert np.isfinite(bounds).all()


def test_memory_that_no_split_has_is_no_answer() -> None:
    table = prices("llama-3-8b", "dgx-h100", 1, 32)
    layout = Layout(pp=4, dp=2, micro_batch=1)

    assert bound_s(table, layout, 5e9, until_s=100.0) == 100.0


def test_a_solver_that_gives_up_proves_nothing() -> None:
    table = prices("small", "dgx-h100", 1, 32)
    programme = StageProgramme(table, Layout(pp=4, dp=2, micro_batch=1), 8e10)
    solver = programme.solver(programme.plain_chains(), 1.0, None)
    solver.setOptionValue("presolve", "off")
    solver.setOptionValue("simplex_iteration_limit", 0)

    assert solved(solver)[0] == 0.0


SEARCHED = [
    ("small", "dgx-h100", 2, 32, "megatron"),
    ("small", "dgx-h100", 1, 8, "torch"),
    ("small-moe", "dgx-h100", 1, 16, "megatron"),
]


@pytest.mark.parametrize(("name", "machines", "nodes", "batch", "target"), SEARCHED)
def test_bounds_of_a_search_are_below_every_better_split_found(
    name: str, machines: str, nodes: int, batch: int, target: str
) -> None:
    """Bounds only rise, and no climb of any layout ends below its bound."""
    runner = TARGETS[target]
    asked = job(batch, software=runner.software)
    table = Prices(model(name), cluster(machines, nodes), asked)
    found = search(table.model, table.cluster, asked, runner)
    until_s = 1.2 * found.best[0].step_time_s

    bounds = any_stages_bounds_s(table, found, until_s, runner.uniform_recompute, math.inf)

    assert all(bounds[one] >= found.bounds_s[one] for one in bounds)
    assert any(bounds[one] > found.bounds_s[one] * 1.02 for one in bounds)
    for one in [one for one in bounds if one in found.steps][:12]:
        better = improved(table, found.steps[one], found.limit_bytes, runner, 1.0)
        assert min(bounds[one], until_s) <= better.step.step_time_s * (1 + 1e-6)
