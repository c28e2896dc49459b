"""The partition problem of a layout against the simulator and the memory model, and its use."""

from typing import Any

import numpy as np
import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import peak_memory, rank_memory
from planner.memory.fit import least_recompute
from planner.search.partition import PartitionProblem, objective_s, rank_bytes
from planner.search.stages import improved, partition_problem
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.software import TORCH_LAUNCHER
from planner.units import GIB
from tests.properties.strategies import cluster, job, layout_with, model

MEGATRON, TORCH = TARGETS["megatron"], TARGETS["torch"]
ROOMY = 1e15


def prices_of(
    name: str, machines: str, nodes: int, batch: int, seq_len: int = 4096, target: str = "megatron"
) -> Prices:
    asked = job(batch, seq_len, software=TARGETS[target].software)
    return Prices(model(name), cluster(machines, nodes), asked)


def equal_stages(prices: Prices, layout: Layout, again: int = 0) -> Split:
    """Return equal stages that recompute ``again`` layers each."""
    layers = split_layers(prices.model.layers, layout.pp * layout.vpp)
    return Split(layers, tuple(min(again, count) for count in layers))


def objective(prices: Prices, layout: Layout, split: Split) -> float:
    problem = partition_problem(prices, layout, ROOMY)
    return objective_s(problem, split.layers, split.recomputed or ())


def start(prices: Prices, layout: Layout, limit: float, uniform: bool = False) -> StepEstimate:
    split = least_recompute(prices.model, prices.job, layout, limit, uniform)
    assert split is not None
    return estimate_step(prices, layout, split)


def most_bytes(prices: Prices, step: StepEstimate) -> float:
    ranks = range(step.layout.pp)
    return max(
        rank_memory(prices.model, prices.job, step.layout, rank, step.split).device
        for rank in ranks
    )


# model, machines, nodes, batch, degrees, and how far the objective may be from the simulated step:
# transfers, gradients and the optimizer are not in it, and with chunks it is itself a model
AGREEMENT: list[tuple[str, str, int, int, dict[str, int], float]] = [
    ("llama-3-8b", "dgx-h100", 1, 64, {"pp": 2, "dp": 4}, 0.05),
    ("llama-3-8b", "dgx-h100", 1, 64, {"pp": 4, "tp": 2}, 0.02),
    ("llama-3-8b", "dgx-h100", 2, 128, {"pp": 8, "dp": 2}, 0.05),
    ("llama-3-8b", "dgx-h100", 1, 64, {"pp": 4, "tp": 2, "vpp": 2}, 0.03),
    ("llama-3-8b", "dgx-h100", 1, 64, {"pp": 4, "tp": 2, "vpp": 4}, 0.09),
    ("llama-3-70b", "dgx-h100", 8, 128, {"pp": 8, "tp": 8}, 0.02),
    ("llama-3-70b", "dgx-h100", 4, 64, {"pp": 4, "tp": 8, "vpp": 5}, 0.05),
    ("small-moe", "dgx-h100", 1, 64, {"pp": 2, "dp": 4, "ep": 4}, 0.05),
    ("gpt2", "dgx-a100", 1, 64, {"pp": 2, "dp": 4}, 0.12),
]


@pytest.mark.parametrize(("name", "machines", "nodes", "batch", "degrees", "within"), AGREEMENT)
@pytest.mark.parametrize("again", [0, 2])
def test_the_objective_is_near_the_simulated_step(
    name: str,
    machines: str,
    nodes: int,
    batch: int,
    degrees: dict[str, Any],
    within: float,
    again: int,
) -> None:
    prices, layout = prices_of(name, machines, nodes, batch), layout_with(1, **degrees)
    split = equal_stages(prices, layout, again)
    simulated = estimate_step(prices, layout, split).step_time_s

    assert objective(prices, layout, split) == pytest.approx(simulated, rel=within)


def test_the_objective_orders_uneven_stages_as_the_simulator_does() -> None:
    prices, layout = prices_of("llama-3-8b", "dgx-h100", 1, 64), layout_with(1, pp=4, tp=2)
    splits = [Split(layers, (0,) * 4) for layers in ((8, 8, 8, 8), (9, 9, 9, 5), (5, 9, 9, 9))]
    objectives = [objective(prices, layout, split) for split in splits]
    simulated = [estimate_step(prices, layout, split).step_time_s for split in splits]

    assert np.argsort(objectives).tolist() == np.argsort(simulated).tolist()


@pytest.mark.parametrize("again", [0, 3, 8])
@pytest.mark.parametrize("degrees", [{"pp": 2, "dp": 4}, {"pp": 4, "tp": 2}, {"pp": 8}])
def test_bytes_of_a_rank_are_no_less_than_the_memory_model_says(
    degrees: dict[str, int], again: int
) -> None:
    prices, layout = prices_of("llama-3-8b", "dgx-h100", 1, 64), layout_with(1, **degrees)
    split = equal_stages(prices, layout, again)
    problem = partition_problem(prices, layout, ROOMY)
    found = rank_bytes(problem, split.layers, split.recomputed or ())
    expected = [
        rank_memory(prices.model, prices.job, layout, rank, split).allocated
        for rank in range(layout.pp)
    ]

    assert (found >= np.array(expected) * (1 - 1e-9)).all()
    assert found == pytest.approx(expected, rel=0.15)


def test_chunks_of_a_rank_share_its_working_bytes() -> None:
    prices = prices_of("llama-3-8b", "dgx-h100", 1, 64)
    layout = layout_with(1, pp=4, tp=2, vpp=4)
    split = equal_stages(prices, layout, 2)
    found = rank_bytes(partition_problem(prices, layout, ROOMY), split.layers, (2,) * 16)
    expected = rank_memory(prices.model, prices.job, layout, 0, split).allocated

    assert found[0] == pytest.approx(expected, rel=0.03)


def test_a_problem_has_one_price_for_each_layer_and_stage() -> None:
    prices = prices_of("small-moe", "dgx-h100", 1, 32)
    problem = partition_problem(prices, layout_with(1, pp=2, vpp=4, dp=4, ep=2), 70 * GIB)

    assert (problem.stages, problem.chunks, problem.micro_batches) == (2, 4, 8)
    assert len(problem.forward_s) == prices.model.layers == 16
    assert problem.stage_s.shape == problem.stage_bytes.shape == (8,)
    assert problem.limit_bytes.shape == (2,)


def test_only_the_first_dense_layer_of_a_mixture_differs() -> None:
    problem = partition_problem(
        prices_of("small-moe", "dgx-h100", 1, 32), layout_with(1, pp=2, dp=4, ep=2), ROOMY
    )

    for values in (problem.forward_s, problem.kept_bytes, problem.static_bytes):
        assert len(set(values[1:])) == 1
        assert values[0] != values[1]


def test_only_the_ends_cost_more_than_their_layers() -> None:
    layout = layout_with(1, pp=4, tp=2)
    problem = partition_problem(prices_of("llama-3-8b", "dgx-h100", 1, 64), layout, ROOMY)

    assert problem.stage_s[1:3].tolist() == [0, 0]
    assert problem.stage_s[3] > problem.stage_s[0] > 0
    assert problem.stage_bytes[1] == problem.stage_bytes[2]
    assert min(problem.stage_bytes[0], problem.stage_bytes[3]) > problem.stage_bytes[1]


def test_recompute_costs_a_forward_pass_and_keeps_one_tensor() -> None:
    layout = layout_with(1, pp=4, tp=2)
    problem = partition_problem(prices_of("llama-3-8b", "dgx-h100", 1, 64), layout, ROOMY)
    hidden = 4096 * 4096 // 2  # tokens x width over tp

    assert problem.recompute_s == pytest.approx(problem.forward_s)
    assert problem.kept_recompute_bytes == pytest.approx(2 * hidden)
    assert (problem.kept_bytes > 10 * problem.kept_recompute_bytes).all()


def test_the_first_rank_keeps_the_most_micro_batches() -> None:
    problem = partition_problem(
        prices_of("llama-3-8b", "dgx-h100", 1, 64), layout_with(1, pp=4, tp=2), ROOMY
    )

    assert problem.moments.max(axis=0).tolist() == [4, 3, 2, 1]


# model, machines, nodes, batch, sequence, target, degrees, share of memory that stays free
IMPROVED: list[tuple[str, str, int, int, int, str, dict[str, int], float]] = [
    ("llama-3-70b", "dgx-a100", 8, 256, 4096, "torch", {"tp": 4, "pp": 4, "dp": 4}, 0.05),
    ("llama-3-70b", "dgx-a100", 8, 256, 4096, "torch", {"tp": 2, "pp": 8, "dp": 4}, 0.05),
    ("llama-3-70b", "dgx-h100", 8, 128, 8192, "megatron", {"tp": 8, "pp": 4, "dp": 2}, 0.2),
    ("llama-3-8b", "dgx-h100", 1, 64, 8192, "megatron", {"pp": 8}, 0.3),
    ("llama-3-8b", "dgx-h100", 1, 64, 8192, "torch", {"pp": 4, "tp": 2, "vpp": 2}, 0.05),
    ("llama-2-7b", "l40s-pcie", 2, 64, 4096, "torch", {"pp": 8, "dp": 2}, 0.05),
    ("small-moe", "dgx-a100", 1, 64, 8192, "megatron", {"pp": 4, "dp": 2, "ep": 2}, 0.5),
]
cases = pytest.mark.parametrize("case", IMPROVED, ids=lambda case: f"{case[0]}-{case[5]}")


def run(case: tuple[Any, ...]) -> tuple[Prices, StepEstimate, StepEstimate, float]:
    name, machines, nodes, batch, seq_len, target, degrees, free = case
    prices = prices_of(name, machines, nodes, batch, seq_len, target)
    limit = (1 - free) * prices.cluster.gpu.memory_bytes
    runner = TARGETS[target]
    before = start(prices, layout_with(1, **degrees), limit, runner.uniform_recompute)
    return prices, before, improved(prices, before, limit, runner, 2.0).step, limit


@cases
def test_better_stages_are_never_slower(case: tuple[Any, ...]) -> None:
    _, before, after, _ = run(case)

    assert after.step_time_s <= before.step_time_s
    assert after.layout == before.layout


@cases
def test_better_stages_hold_all_layers_within_the_limit(case: tuple[Any, ...]) -> None:
    prices, _, after, limit = run(case)
    again = after.split.recomputed or ()

    assert sum(after.split.layers) == prices.model.layers
    assert all(0 <= some <= held > 0 for some, held in zip(again, after.split.layers, strict=True))
    assert most_bytes(prices, after) <= limit


@cases
def test_megatron_recomputes_equally_many_layers_everywhere(case: tuple[Any, ...]) -> None:
    _, _, after, _ = run(case)
    again = after.split.recomputed or ()
    most = max(again)

    if case[5] == "megatron":
        assert again == tuple(min(most, held) for held in after.split.layers)


def test_a_tight_pipeline_gains_from_uneven_stages() -> None:
    gains = []
    for case in IMPROVED:
        _, before, after, _ = run(case)
        gains.append(1 - after.step_time_s / before.step_time_s)

    assert max(gains) > 0.005
    assert sum(gain > 0 for gain in gains) >= 2


def test_the_simulator_has_the_last_word() -> None:
    prices, _, after, _ = run(IMPROVED[0])
    again = estimate_step(prices, after.layout, after.split)

    assert again.step_time_s == after.step_time_s
    assert after.memory == peak_memory(prices.model, prices.job, after.layout, after.split)


def test_without_a_pipeline_there_is_nothing_to_cut() -> None:
    prices = prices_of("llama-3-8b", "dgx-h100", 1, 64)
    before = start(prices, layout_with(3, dp=8), 76 * GIB)

    after = improved(prices, before, 76 * GIB, MEGATRON, 1.0)

    assert (after.step, after.found, after.solver) == (before, None, "equal")


def test_a_step_that_no_partition_fits_stays_as_it_was() -> None:
    prices, layout = prices_of("llama-3-8b", "dgx-h100", 1, 64), layout_with(1, pp=4, tp=2)
    before = start(prices, layout, 76 * GIB)
    staged = improved(prices, before, 8 * GIB, TORCH, 1.0)
    after, found = staged.step, staged.found

    assert after is before
    assert found is not None
    assert not found.feasible
    assert found.shortfall_bytes > 0


def test_a_problem_is_one_record_with_all_that_the_partition_needs() -> None:
    layout = layout_with(1, pp=4, tp=2)
    problem = partition_problem(prices_of("llama-3-8b", "dgx-h100", 1, 64), layout, 76 * GIB)

    assert isinstance(problem, PartitionProblem)
    assert (problem.limit_bytes < 76 * GIB).all()  # the driver's context is outside
    assert problem.tail_s == 0


@pytest.mark.parametrize("degrees", [{"pp": 2, "dp": 4}, {"pp": 4, "tp": 2}, {"pp": 4, "vpp": 2}])
def test_what_torch_keeps_is_in_the_bytes_of_a_rank(degrees: dict[str, int]) -> None:
    """Receive buffers and the whole gradient of a split table."""
    degrees = {"tp": 1, "dp": 1} | degrees
    prices = Prices(
        model("llama-3-8b"), cluster("dgx-h100", 1), job(64, 4096, software=TORCH_LAUNCHER)
    )
    layout = layout_with(1, **degrees)
    split = equal_stages(prices, layout, 2)
    found = rank_bytes(
        partition_problem(prices, layout, ROOMY), split.layers, split.recomputed or ()
    )

    expected = [
        rank_memory(prices.model, prices.job, layout, rank, split).allocated
        for rank in range(layout.pp)
    ]

    assert (found >= np.array(expected) * (1 - 1e-9)).all()
    assert found == pytest.approx(expected, rel=0.15)
