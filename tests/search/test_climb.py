"""Stages climb under the simulator: against every possible choice, and on real jobs."""

from itertools import combinations, islice, pairwise, product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Shard
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import peak_memory
from planner.memory.fit import least_recompute
from planner.schedule.kinds import V_SHAPED
from planner.search.climb import Simulator, least_recompute_of
from planner.search.partition import rank_bytes
from planner.search.stages import improved, partition_problem
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.units import GB
from tests.properties.strategies import cluster, job, layout_with, model, small, small_moe

TORCH, MEGATRON = TARGETS["torch"], TARGETS["megatron"]
SCHEDULES = ("", "interleaved", "zb_h1", "zb_v", "v_half", "dualpipe_v")


class Case(NamedTuple):
    """A small pipeline: every choice of stages and recompute can be tried."""

    layers: int
    pp: int
    schedule: str
    head: int  # vocabulary: 8 layers' worth at 256k
    tight: bool
    experts: bool

    def prices(self) -> Prices:
        make = small_moe if self.experts else small
        machines = cluster("dgx-h100", 1)
        asked = job(24, software=TORCH.software)
        return Prices(make(layers=self.layers, vocab=self.head), machines, asked)

    def layout(self) -> Layout:
        chunks = 2 if self.schedule == "interleaved" or self.schedule in V_SHAPED else 1
        named = "" if self.schedule == "interleaved" else self.schedule
        return Layout(tp=2, pp=self.pp, vpp=chunks, sequence_parallel=True, schedule=named)

    def limit(self, prices: Prices) -> float:
        """Return memory for everything, or for half of what no recompute keeps."""
        chunks = self.layout().pp * self.layout().vpp
        problem = partition_problem(prices, self.layout(), 1e15)
        held = split_layers(self.layers, chunks)
        none, full = (rank_bytes(problem, held, again).max() for again in ((0,) * chunks, held))
        allocated = (none + full) / 2 if self.tight else 1e3 * none
        outside = 1e15 - problem.limit_bytes[0] * (1 + TORCH.software.reserve_share)
        return float(allocated * (1 + TORCH.software.reserve_share) + outside)


QUICK_SHAPES = [(8, 4), (7, 4), (5, 4), (8, 3), (8, 2)]


def cases(shapes: list[tuple[int, int]] = QUICK_SHAPES) -> list[Case]:
    found = []
    for (layers, pp), schedule, head, tight in product(
        shapes, SCHEDULES, (32_000, 256_000), (False, True)
    ):
        case = Case(layers, pp, schedule, head, tight, experts=layers == 7)
        if layers >= pp * case.layout().vpp:
            found.append(case)
    return found


def every_split(case: Case) -> list[tuple[int, ...]]:
    chunks = case.pp * case.layout().vpp
    cuts = combinations(range(1, case.layers), chunks - 1)
    return [tuple(b - a for a, b in pairwise((0, *inner, case.layers))) for inner in cuts]


def fastest_s(case: Case, prices: Prices, limit: float) -> float:
    """Return the least simulated step of all stages with all recompute that fits."""
    problem = partition_problem(prices, case.layout(), limit)
    choices = [
        (layers, again)
        for layers in every_split(case)
        for again in product(*(range(count + 1) for count in layers))
        if (case.tight or not any(again))
        and (rank_bytes(problem, layers, again) <= problem.limit_bytes * (1 + 1e-9)).all()
    ]
    simulator = Simulator(prices, case.layout(), Split(*choices[0]))
    layers, again = (np.array(column) for column in zip(*choices, strict=True))
    splits = (Split(*choices[at]) for at in np.argsort(simulator.step_s(layers, again)))
    fitting = (
        one for one in splits
        if peak_memory(prices.model, prices.job, case.layout(), one).device <= limit
    )  # fmt: skip
    return min(estimate_step(prices, case.layout(), one).step_time_s for one in islice(fitting, 5))


OTHER_SHAPES = [
    (layers, pp)
    for layers, pp in product(range(2, 9), range(2, 5))
    if pp <= layers and (layers, pp) not in QUICK_SHAPES
]
WITH_THE_REST = [
    *cases(),
    *(pytest.param(case, marks=pytest.mark.slow) for case in cases(OTHER_SHAPES)),
]


@pytest.mark.parametrize("case", WITH_THE_REST, ids=lambda case: "-".join(map(str, case)))
def test_stages_are_within_half_a_percent_of_the_best_simulated(case: Case) -> None:
    prices, layout = case.prices(), case.layout()
    limit = case.limit(prices)
    start = least_recompute(prices.model, prices.job, layout, limit)
    assert start is not None

    best = improved(prices, estimate_step(prices, layout, start), limit, TORCH, 20.0).step

    assert best.step_time_s <= 1.005 * fastest_s(case, prices, limit)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([case for case in cases() if not case.tight]), st.data())
def test_a_batch_is_simulated_as_one_by_one(case: Case, data: st.DataObject) -> None:
    prices, layout = case.prices(), case.layout()
    layers = data.draw(st.sampled_from(every_split(case)))
    again = tuple(data.draw(st.integers(0, count)) for count in layers)
    split = Split(layers, again)
    simulator = Simulator(prices, layout, split)

    found = simulator.step_s(np.array([layers, layers]), np.array([again, again]))

    assert found == pytest.approx(estimate_step(prices, layout, split).step_time_s, rel=1e-9)


@pytest.mark.parametrize("uniform", [False, True])
def test_recompute_of_a_split_is_the_least_that_fits(uniform: bool) -> None:
    case = Case(8, 4, "", 256_000, True, False)
    prices = case.prices()
    problem = partition_problem(prices, case.layout(), case.limit(prices))
    again = least_recompute_of(problem, (2, 2, 2, 2), uniform)

    assert again is not None
    assert max(again) > 0
    assert (rank_bytes(problem, (2, 2, 2, 2), again) <= problem.limit_bytes * (1 + 1e-9)).all()
    fewer = [tuple(max(0, n - (uniform or at == rank)) for at, n in enumerate(again))
             for rank in range(4) if again[rank]]  # fmt: skip
    assert all((rank_bytes(problem, (2, 2, 2, 2), few) > problem.limit_bytes).any()
               for few in fewer)  # fmt: skip
    assert not uniform or len(set(again)) == 1


# model, nodes, batch, sequence, layout, target, share of memory left, least gain over equal stages:
# 126 layers on 16 ranks with and without chunks; 61 layers of two kinds; a head of 4 layers
JOBS = [
    ("llama-3.1-405b", 64, 256, 8192, layout_with(1, tp=8, pp=16, dp=4), TORCH, 1.0, 0.005),
    ("llama-3-8b", 1, 128, 8192, layout_with(1, tp=1, pp=4, dp=2), TORCH, 0.6, 0.03),
    ("deepseek-v3", 32, 1024, 4096, layout_with(1, pp=16, dp=16, ep=16), MEGATRON, 1.0, 0.005),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "nodes", "batch", "length", "layout", "target", "share", "gain"), JOBS,
    ids=[case[0] for case in JOBS],
)  # fmt: skip
def test_three_jobs_run_faster_than_with_equal_stages(
    name: str, nodes: int, batch: int, length: int, layout: Layout, target: object, share: float,
    gain: float,
) -> None:  # fmt: skip
    runner = TORCH if target is TORCH else MEGATRON
    asked = job(batch, length, software=runner.software)
    prices = Prices(model(name), cluster("dgx-h100", nodes), asked)
    limit = share * 76 * GB
    start = least_recompute(prices.model, asked, layout, limit, uniform=runner.uniform_recompute)
    assert start is not None
    equal = estimate_step(prices, layout, start)

    staged = improved(prices, equal, limit, runner, 20.0)
    again = improved(prices, equal, limit, runner, 20.0)

    assert staged.step.step_time_s < (1 - gain) * equal.step_time_s
    assert staged.step.split == again.step.split
    assert staged.solver != "equal"


def test_shards_are_kept() -> None:
    layout = layout_with(1, tp=2, pp=2, dp=2)
    prices = Prices(small(), cluster("dgx-h100", 1), job(32))
    start = estimate_step(prices, layout)

    assert improved(prices, start, 1e15, MEGATRON, 1.0).step.layout.shard == Shard(1, 1, 2)
