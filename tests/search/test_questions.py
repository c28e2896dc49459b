"""Fewest GPUs, longest sequence, another number of nodes: the search asked other questions."""

import pytest

from planner.layout.limits import Limits
from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.questions import Tried, _least, max_seq, min_gpus, part_of, replan
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from tests.properties.strategies import cluster, job, model

TORCH, MEGATRON = TARGETS["torch"], TARGETS["megatron"]
OPTIONS = Options(keep=1)


@pytest.mark.parametrize(
    ("name", "target", "fewest"),
    [("tiny-llama", TORCH, 1), ("gpt2", TORCH, 1), ("llama-3-8b", TORCH, 2)],
)
def test_fewest_gpus_fit_and_one_fewer_does_not(name: str, target: object, fewest: int) -> None:
    seq_len = 1024 if name == "gpt2" else 4096
    found = min_gpus(model(name), cluster("dgx-h100", 2), job(32, seq_len), TORCH, OPTIONS)

    assert found.size == fewest
    assert found.plan is not None
    assert len(found.plan.rank_map) == fewest
    assert found.plan.estimate.memory_bytes <= found.limit_bytes
    assert all(not one.fits for one in found.tried if one.size < fewest)


def test_nothing_fits_up_to_the_nodes_there_are() -> None:
    found = min_gpus(model("llama-3.1-405b"), cluster("dgx-h100", 2), job(32), TORCH, OPTIONS)

    assert found.plan is None
    assert found.size == 0
    assert found.tried[-1].size == 16


def asked(fits: set[int]) -> tuple[list[int], object]:
    seen: list[int] = []

    def ask(size: int) -> Tried:
        seen.append(size)
        return Tried(size, 1.0, size in fits)

    return seen, ask


# sizes there are, sizes that fit, the least that is found
LEAST = [
    (range(1, 9), {5, 6, 7, 8}, 5),
    (range(1, 9), {6, 8}, 6),  # 7 has no legal layout
    (range(1, 2), {1}, 1),
    (range(1, 65), {33, 64}, 33),
    (range(1, 65), {64}, 64),
    (range(1, 9), set(), None),
]


@pytest.mark.parametrize(("sizes", "fits", "least"), LEAST)
def test_doubling_does_not_skip_the_least(sizes: range, fits: set[int], least: int | None) -> None:
    seen, ask = asked(fits)
    tried = _least(list(sizes), ask)  # type: ignore[arg-type]

    assert min((one.size for one in tried if one.fits), default=None) == least
    assert len(seen) == len(set(seen)) == len(tried)


# GPUs of a DGX H100 pod, and nodes, GPUs of a node and of a domain of the part
PARTS = [(1, (1, 1, 1)), (4, (1, 4, 4)), (8, (1, 8, 8)), (24, (3, 8, 8)), (3, None), (12, None)]


@pytest.mark.parametrize(("gpus", "expected"), PARTS)
def test_a_part_of_a_node_or_whole_nodes(gpus: int, expected: tuple[int, ...] | None) -> None:
    part = part_of(cluster("dgx-h100", 4), gpus)

    found = part and (part.nodes, part.gpus_per_node, part.domain_gpus)
    assert found == expected


@pytest.mark.parametrize("limits", [Limits(), Limits(most=(("cp", 1),))])
def test_longest_sequence_fits_and_an_eighth_more_does_not(limits: Limits) -> None:
    spec, machines = model("llama-3-8b"), cluster("dgx-h100", 1)
    options = Options(keep=1, limits=limits)
    found = max_seq(spec, machines, job(8), TORCH, options)

    assert found.plan is not None
    assert found.plan.job.seq_len == found.size
    assert found.plan.estimate.memory_bytes <= found.limit_bytes
    longer = next(one for one in found.tried if one.size > found.size)
    assert not longer.fits
    assert longer.size <= 1.26 * found.size
    asked_again = job(8, longer.size, software=TORCH.software)
    assert not search(spec, machines, asked_again, TORCH, options).fitting


def test_learned_positions_end_the_sequence() -> None:
    found = max_seq(model("gpt2"), cluster("dgx-h100", 1), job(8), TORCH, OPTIONS)

    assert found.size == model("gpt2").positions


@pytest.fixture(scope="module")
def plan() -> Plan:
    spec, machines = model("llama-3-8b"), cluster("dgx-h100", 2)
    options = Options(keep=1, limits=Limits(fixed=(("tp", 4), ("pp", 2))))
    found = recommend(spec, machines, job(64, 4096), MEGATRON, options)
    assert isinstance(found, Plan)
    return found


def test_replan_keeps_job_and_cluster_and_uses_all_nodes(plan: Plan) -> None:
    found = replan(plan, 4, MEGATRON, OPTIONS)

    assert isinstance(found.best, Plan)
    assert found.best.job == plan.job
    assert len(found.best.rank_map) == 32
    assert found.best.cluster.nodes == 4
    assert found.same_cut is not None
    cut = found.same_cut.layout
    assert (cut.tp, cut.pp, cut.vpp) == (4, 2, plan.layout.vpp)
    assert found.best.estimate.step_time_s <= found.same_cut.estimate.step_time_s
    assert found.best.estimate.step_time_s < plan.estimate.step_time_s


def test_replan_says_where_the_old_cut_is_impossible(plan: Plan) -> None:
    deep = plan.layout.model_copy(update={"pp": 32})
    found = replan(plan.model_copy(update={"layout": deep}), 1, MEGATRON, OPTIONS)

    assert isinstance(found.best, Plan)
    assert found.same_cut is None
