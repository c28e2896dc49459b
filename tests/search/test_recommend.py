"""Search against brute force, what it covers and proves, and the laws of a better cluster."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.space import layouts
from planner.memory.estimate import peak_memory, rank_memory
from planner.memory.fit import least_recompute
from planner.search.recommend import Options, Search, best_first, search
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.units import GB
from tests.properties.strategies import cluster, job, model

few = settings(deadline=None, max_examples=15)
some = settings(deadline=None, max_examples=25)


class Question(NamedTuple):
    """What is asked: a model, machines, a batch, and what runs it."""

    model: str
    cluster: str
    nodes: int
    global_batch: int
    seq_len: int
    target: str

    @property
    def machines(self) -> ClusterSpec:
        return cluster(self.cluster, self.nodes)

    @property
    def job(self) -> JobSpec:
        return job(self.global_batch, self.seq_len, software=TARGETS[self.target].software)


SMALL = [
    Question("tiny-llama", "workstation", 1, 32, 2048, "torch"),
    Question("tiny-llama", "dgx-h100", 2, 32, 2048, "megatron"),
    Question("gpt2", "dgx-a100", 1, 64, 1024, "torch"),
    Question("gpt2", "l40s-pcie", 2, 48, 1024, "megatron"),
    Question("llama-3-8b", "dgx-h100", 1, 64, 4096, "torch"),
    Question("llama-3-8b", "dgx-a100", 1, 16, 8192, "megatron"),
    Question("small-moe", "dgx-h100", 1, 32, 4096, "megatron"),
]
small_questions = pytest.mark.parametrize("question", SMALL, ids=lambda q: f"{q.model}-{q.cluster}")


@cache
def found(question: Question, **options: Any) -> Search:
    return ask(question, question.machines, **options)


def ask(question: Question, machines: ClusterSpec, **options: Any) -> Search:
    target = TARGETS[question.target]
    chosen = Options(**({"offload": False} | options))  # with it: test_offload.py
    return search(model(question.model), machines, question.job, target, chosen)


@cache
def brute_force(question: Question) -> tuple[StepEstimate, ...]:
    """Estimate every legal layout that fits with as little recompute as it can, fastest first."""
    spec, target = model(question.model), TARGETS[question.target]
    prices = Prices(spec, question.machines, question.job)
    limit = 0.95 * question.machines.gpu.memory_bytes
    steps = []
    for layout in layouts(spec, question.machines, question.job, target.problems):
        split = least_recompute(spec, question.job, layout, limit, target.uniform_recompute)
        if split is not None:
            steps.append(estimate_step(prices, layout, split))
    return tuple(sorted(steps, key=lambda step: step.step_time_s))


def fullest_rank(question: Question, step: StepEstimate) -> float:
    ranks = range(step.layout.pp)
    spec = model(question.model)
    return max(
        rank_memory(spec, question.job, step.layout, rank, step.split).device for rank in ranks
    )


@small_questions
def test_winner_is_that_of_brute_force(question: Question) -> None:
    best, every = found(question).best, brute_force(question)

    assert best[0].step_time_s == pytest.approx(every[0].step_time_s)
    assert [step.step_time_s for step in best] == pytest.approx(
        [step.step_time_s for step in every[: len(best)]]
    )


@small_questions
def test_best_is_sorted_distinct_and_as_many_as_asked_for(question: Question) -> None:
    best = found(question).best
    times = [step.step_time_s for step in best]

    assert times == sorted(times)
    assert len({step.layout for step in best}) == len(best) == min(5, len(brute_force(question)))


@small_questions
def test_every_rank_of_every_answer_leaves_the_margin_free(question: Question) -> None:
    answer = found(question)
    limit = 0.95 * question.machines.gpu.memory_bytes

    assert answer.limit_bytes == pytest.approx(limit)
    assert all(fullest_rank(question, step) <= limit for step in answer.steps.values())


@small_questions
def test_the_search_covers_every_layout_and_proves_its_answer(question: Question) -> None:
    answer, target = found(question), TARGETS[question.target]
    legal = layouts(model(question.model), question.machines, question.job, target.problems)

    assert answer.gap == 0
    assert answer.layouts == tuple(legal)
    assert len(answer.layouts) == len(answer.needed_bytes) >= len(answer.fitting)
    assert answer.simulated == len(answer.steps) <= len(answer.fitting)
    assert answer.seconds > 0


@small_questions
def test_what_does_not_fit_fits_with_no_amount_of_recompute(question: Question) -> None:
    answer, target = found(question), TARGETS[question.target]
    spec, limit = model(question.model), answer.limit_bytes
    fitting = set(answer.fitting)

    for layout in answer.layouts:
        split = least_recompute(spec, question.job, layout, limit, target.uniform_recompute)

        assert (split is not None) == (layout in fitting), layout.label()


@small_questions
def test_needed_bytes_are_those_of_full_recompute_and_least_is_their_minimum(
    question: Question,
) -> None:
    answer, spec = found(question), model(question.model)
    needed = [
        peak_memory(spec, question.job, replace(layout, recompute=Recompute.FULL)).device
        for layout in answer.layouts
    ]

    assert list(answer.needed_bytes) == needed
    assert answer.least is not None
    assert answer.least_bytes == min(needed) == needed[answer.layouts.index(answer.least)]


@small_questions
def test_all_layouts_can_be_run_by_the_target(question: Question) -> None:
    target, spec = TARGETS[question.target], model(question.model)
    rules = target.problems or (lambda *_: [])

    assert [
        p for layout in found(question).layouts for p in rules(spec, question.job, layout)
    ] == []


@small_questions
@pytest.mark.parametrize("budget_s", [0.0, 0.005])
def test_a_tiny_budget_gives_an_answer_and_an_honest_gap(
    question: Question, budget_s: float
) -> None:
    answer = ask(question, question.machines, budget_s=budget_s)
    optimum = brute_force(question)[0].step_time_s

    assert answer.best
    assert 0 <= answer.gap < 1
    assert (1 - answer.gap) * answer.best[0].step_time_s <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("keep", [1, 3, 1000])
def test_keep_says_how_many_layouts_are_ranked(keep: int) -> None:
    question = SMALL[2]
    every = [step.step_time_s for step in brute_force(question)]
    best = found(question, keep=keep).best

    assert len(best) == min(keep, len(every))
    assert [step.step_time_s for step in best] == pytest.approx(every[: len(best)])


def test_keeping_fewer_simulates_fewer() -> None:
    one, five = found(SMALL[4], keep=1), found(SMALL[4])

    assert one.simulated < five.simulated < len(five.fitting)


def test_keep_none_only_measures_memory() -> None:
    answer = found(SMALL[0], keep=0)

    assert (answer.best, answer.simulated, answer.gap) == ((), 0, 0.0)
    assert 0 < answer.least_bytes == min(answer.needed_bytes)


def test_no_legal_layout_is_an_empty_answer() -> None:
    seven = cluster("dgx-h100").model_copy(update={"gpus_per_node": 7, "domain_gpus": 7})
    answer = ask(Question("tiny-llama", "dgx-h100", 1, 1, 2048, "megatron"), seven)

    assert (answer.best, answer.layouts, answer.fitting, answer.least) == ((), (), (), None)
    assert answer.least_bytes == 0


def test_best_first_uses_what_was_simulated_before() -> None:
    question = SMALL[4]
    answer, target = found(question), TARGETS[question.target]
    prices = Prices(model(question.model), question.machines, question.job)
    steps = dict(answer.steps)
    best, gap = best_first(prices, list(answer.fitting), answer.limit_bytes, target, 1, 60.0, steps)

    assert (best[0].layout, gap) == (answer.best[0].layout, 0)
    assert steps.keys() == answer.steps.keys()
    assert all(steps[layout] is step for layout, step in answer.steps.items())


def test_a_layout_without_room_for_any_recompute_is_passed_over() -> None:
    question = SMALL[4]
    prices = Prices(model(question.model), question.machines, question.job)
    steps: dict[Layout, StepEstimate] = {}
    best, gap = best_first(
        prices, list(found(question).layouts), 1.0, TARGETS[question.target], 5, 60.0, steps
    )

    assert (best, gap, steps) == ([], 0.0, {})


@given(st.floats(0.0, 0.9))
@some
def test_what_is_to_stay_free_stays_free(keep_free: float) -> None:
    question = SMALL[4]
    capacity = question.machines.gpu.memory_bytes
    answer = ask(question, question.machines, keep_free=keep_free, keep=1)

    assert answer.limit_bytes == pytest.approx((1 - keep_free) * capacity)
    assert all(fullest_rank(question, step) <= answer.limit_bytes for step in answer.best)


def best_time(question: Question, machines: ClusterSpec) -> float:
    best = ask(question, machines, keep=1).best
    return best[0].step_time_s if best else float("inf")


@given(st.sampled_from(SMALL[2:]), st.floats(20, 200), st.floats(1, 3))
@few
def test_more_memory_is_never_slower(question: Question, gigabytes: float, factor: float) -> None:
    def with_memory(size: float) -> ClusterSpec:
        gpu = question.machines.gpu
        resized = gpu.model_copy(update={"memory_bytes": round(size * GB)})
        return question.machines.model_copy(update={"gpu": resized})

    less = best_time(question, with_memory(gigabytes))
    more = best_time(question, with_memory(gigabytes * factor))

    assert more <= less * (1 + 1e-9)


NETWORKED = [
    Question("tiny-llama", "dgx-h100", 2, 32, 2048, "megatron"),
    Question("gpt2", "l40s-pcie", 2, 48, 1024, "torch"),
    Question("small-moe", "dgx-a100", 2, 8, 4096, "megatron"),
]


@given(st.sampled_from(NETWORKED), st.floats(1, 50), st.floats(1, 10))
@few
def test_a_faster_network_is_never_slower(
    question: Question, gigabytes_per_s: float, factor: float
) -> None:
    def with_network(rate: float) -> ClusterSpec:
        assert question.machines.scale_out is not None
        net = question.machines.scale_out.model_copy(update={"nic_bytes_per_s": rate * GB})
        return question.machines.model_copy(update={"scale_out": net})

    slow = best_time(question, with_network(gigabytes_per_s))
    fast = best_time(question, with_network(gigabytes_per_s * factor))

    assert fast <= slow * (1 + 1e-9)


@given(st.floats(5, 200), st.floats(1, 10))
@some
def test_a_faster_fabric_is_never_slower(gigabytes_per_s: float, factor: float) -> None:
    question = Question("gpt2", "l40s-pcie", 1, 48, 1024, "torch")

    def with_fabric(rate: float) -> ClusterSpec:
        link = question.machines.scale_up.model_copy(update={"bytes_per_s": rate * GB})
        gpu = question.machines.gpu.model_copy(update={"collectives": {}})
        return question.machines.model_copy(update={"scale_up": link, "gpu": gpu})

    slow = best_time(question, with_fabric(gigabytes_per_s))
    fast = best_time(question, with_fabric(gigabytes_per_s * factor))

    assert fast <= slow * (1 + 1e-9)


@pytest.mark.parametrize(("question", "more"), [(SMALL[4], 2), (SMALL[6], 2)])
def test_more_nodes_are_never_slower(question: Question, more: int) -> None:
    one = best_time(question, question.machines)
    two = best_time(question, question.machines.model_copy(update={"nodes": more}))

    assert two < one


def test_memory_of_an_answer_is_that_of_its_fullest_rank() -> None:
    question = Question("llama-2-7b", "l40s-pcie", 2, 64, 4096, "torch")

    for step in found(question, keep=60).best:
        assert step.memory.device == pytest.approx(fullest_rank(question, step))
