"""Three real jobs: uneven stages beat the best layout of equal ones; the plan says who proved it.

Uneven layers (one dense, 59 of experts, 16 stages), tight memory (48 GB), GPUs of two kinds.
"""

from typing import NamedTuple

import pytest

from planner.cost.layer import Prices
from planner.layout.space import layouts
from planner.memory.fit import least_recompute
from planner.plan import PartitionRecord, Plan
from planner.search.answer import recommend
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.spec.cluster import ClusterSpec, NodeGroup, load_gpu
from planner.spec.parts import of_groups
from tests.properties.strategies import cluster, job, model

MEGATRON = TARGETS["megatron"]
ROOM = 0.95  # of device memory, as the search keeps free by default


class Job(NamedTuple):
    """A job on like nodes, and the least that uneven stages gain over any layout of equal ones."""

    model: str
    cluster: str
    nodes: int
    global_batch: int
    gain: float


JOBS = [
    pytest.param(
        Job("deepseek-v2", "dgx-h100", 16, 256, 0.02), marks=pytest.mark.slow, id="uneven"
    ),
    pytest.param(Job("llama-3-8b", "l40s-pcie", 2, 64, 0.15), id="tight"),
]


def proved(record: PartitionRecord | None) -> None:
    assert record is not None
    assert record.solver != "equal"
    assert record.status in ("optimal", "time limit")
    assert 0 < record.bound_s <= record.objective_s * (1 + 1e-9)
    assert record.bound_s > 0.95 * record.objective_s


@pytest.mark.parametrize("case", JOBS)
def test_stages_of_the_plan_beat_the_best_equal_ones(case: Job) -> None:
    machines = cluster(case.cluster, case.nodes)
    asked = job(case.global_batch, software=MEGATRON.software)
    equal = search(model(case.model), machines, asked, MEGATRON, Options(offload=False))

    plan = recommend(model(case.model), machines, asked, MEGATRON, Options(offload=False))

    assert isinstance(plan, Plan)
    assert equal.gap == 0
    assert plan.estimate.step_time_s < (1 - case.gain) * equal.best[0].step_time_s
    proved(plan.partition)


def two_kinds() -> ClusterSpec:
    gpus = (load_gpu("H100-SXM-80GB"), load_gpu("A100-SXM-80GB"))
    return of_groups(cluster("dgx-a100"), tuple(NodeGroup(gpu=gpu, nodes=1) for gpu in gpus))


@pytest.mark.slow
def test_two_kinds_of_gpus_beat_the_best_equal_stages() -> None:
    spec, asked = model("llama-3-8b"), job(64, software=MEGATRON.software)
    plan = recommend(spec, two_kinds(), asked, MEGATRON, Options(budget_s=60))
    assert isinstance(plan, Plan)

    equal_s = []
    for groups in (two_kinds().node_groups, two_kinds().node_groups[::-1]):
        machines = of_groups(cluster("dgx-a100"), groups)
        prices = Prices(spec, machines, asked)
        for layout in layouts(spec, machines, asked, MEGATRON.problems):
            limit = ROOM * machines.gpu.memory_bytes  # both kinds have 80 GB
            split = least_recompute(spec, asked, layout, limit, MEGATRON.uniform_recompute)
            if split is not None:
                equal_s.append(estimate_step(prices, layout, split).step_time_s)

    assert len(equal_s) > 100
    assert plan.estimate.step_time_s < 0.8 * min(equal_s)
    assert len({stage.layers for stage in plan.stages}) > 1
    assert plan.partition is not None
    assert plan.partition.equal_step_time_s > 1.2 * plan.estimate.step_time_s
    proved(plan.partition)
