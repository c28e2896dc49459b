"""Pipette (DATE 2024): the critical path of 1F1B, placement on uneven links, plans that fit.

Its latency model is ``n/p [p (f + b) + T_pp] + (p - 1)(f + b)`` for ``n >= p`` micro-batches on
``p`` stages, ``T_pp`` the hops of one micro-batch there and back; AMP counts ``T_pp`` once. The
simulator executes the schedule and knows neither.
"""

import numpy as np
import pytest

from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.placement import critical_s
from planner.search.targets import TARGETS
from planner.simulate.pipeline import pipeline_time
from planner.spec.nodes import NodeLinks
from tests.properties.strategies import cluster, job, model

FORWARD_S, BACKWARD_S = 1.0, 2.0
PASS_S = FORWARD_S + BACKWARD_S
# stages, micro-batches, seconds of a hop
CASES = [(p, n, hop_s) for p, n in ((2, 64), (4, 16), (4, 64), (8, 64), (8, 256), (16, 64))
         for hop_s in (0.01, 0.1, 0.3)]  # fmt: skip


def simulated_s(
    stages: int, micro_batches: int, hops_s: list[float], overlap: bool = True
) -> float:
    forward, backward = [FORWARD_S] * stages, [BACKWARD_S] * stages
    run = pipeline_time("1f1b", stages, 1, micro_batches, forward, backward, hops_s, overlap)
    return float(run.total_s)


def pipette_s(stages: int, micro_batches: int, hops_s: list[float]) -> float:
    there_and_back_s = 2 * sum(hops_s)
    rounds = micro_batches / stages
    return rounds * (stages * PASS_S + there_and_back_s) + (stages - 1) * PASS_S


def amp_s(stages: int, micro_batches: int, hops_s: list[float]) -> float:
    return (micro_batches + stages - 1) * PASS_S + 2 * sum(hops_s)


@pytest.mark.parametrize(("stages", "micro_batches", "hop_s"), CASES)
def test_the_step_is_pipettes_critical_path(stages: int, micro_batches: int, hop_s: float) -> None:
    hops_s = [hop_s] * (stages - 1)
    found_s = simulated_s(stages, micro_batches, hops_s)
    path_s = pipette_s(stages, micro_batches, hops_s)

    assert path_s <= found_s * (1 + 1e-9)
    assert found_s <= path_s + 2 * sum(hops_s), "no more than filling and draining once"
    assert found_s - amp_s(stages, micro_batches, hops_s) > found_s - path_s


@pytest.mark.parametrize(("stages", "micro_batches", "hop_s"), CASES)
def test_blocking_sends_only_add_to_it(stages: int, micro_batches: int, hop_s: float) -> None:
    hops_s = [hop_s] * (stages - 1)

    blocking_s = simulated_s(stages, micro_batches, hops_s, overlap=False)

    assert blocking_s >= simulated_s(stages, micro_batches, hops_s)


@pytest.mark.parametrize("slow", range(7))
def test_one_slow_hop_counts_for_every_micro_batch_which_the_paper_leaves_out(slow: int) -> None:
    """Two neighbours hold two micro-batches at a time, so one crossing of each is not hidden."""
    even, uneven = [0.05] * 7, [0.05] * 7
    uneven[slow] = 1.05

    more_s = simulated_s(8, 64, uneven) - simulated_s(8, 64, even)

    assert more_s == pytest.approx(64 * (1.05 - 7 / 8 * 2 * 0.05), rel=0.1)
    assert pipette_s(8, 64, uneven) - pipette_s(8, 64, even) < 0.3 * more_s


@pytest.mark.parametrize("seed", range(12))
def test_what_placement_minimises_is_what_hops_add_to_the_step(seed: int) -> None:
    hops_s = np.random.default_rng(seed).uniform(0.01, 0.6, 7).tolist()
    counted_s = float(critical_s(2 * 64 * np.array(hops_s)))

    added_s, blocking_s = (
        simulated_s(8, 64, hops_s, overlap) - (64 + 7) * PASS_S for overlap in (True, False)
    )

    assert added_s == pytest.approx(counted_s, rel=0.2)
    assert blocking_s >= added_s


# Pipette's point about memory: a configuration that does not fit is never proposed
FIT = [
    ("llama-3-8b", "dgx-a100", 2, 64),
    ("llama-3-70b", "dgx-a100", 4, 64),
    ("gpt2", "dgx-h100", 2, 64),
]


@pytest.mark.parametrize(("name", "machines", "nodes", "batch"), FIT)
@pytest.mark.parametrize("seed", range(2))
def test_uneven_links_gain_and_the_plan_fits(
    name: str, machines: str, nodes: int, batch: int, seed: int
) -> None:
    rates = np.random.default_rng(seed).uniform(2e9, 25e9, (nodes + 2, nodes + 2))
    hosts = tuple(f"n{index}" for index in range(nodes + 2))
    links = NodeLinks(hosts=hosts, bytes_per_s=tuple(map(tuple, rates.tolist())))
    spec = cluster(machines, nodes).model_copy(update={"node_links": links})

    plan = recommend(model(name), spec, job(batch, 1024), TARGETS["torch"])

    assert isinstance(plan, Plan)
    assert plan.placement is not None
    assert plan.estimate.memory_bytes <= 0.95 * spec.gpu.memory_bytes
    assert plan.estimate.step_time_s <= plan.placement.listed_step_time_s
    assert plan.placement.healthy_step_time_s <= plan.estimate.step_time_s
    assert plan.placement.communication_s < plan.placement.listed_communication_s
