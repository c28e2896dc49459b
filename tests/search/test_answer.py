"""The answer: a plan whose parts agree with each other, or a "no" whose remedies work."""

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.layout.rules import layout_problems
from planner.layout.rules_torch import torch_target_problems
from planner.plan import CandidateRecord, Plan
from planner.schedule.kinds import rank_of
from planner.search.answer import Change, NoFit, recommend
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import gpu_names, load_gpu
from planner.spec.job import JobSpec
from planner.units import GIB
from tests.properties.strategies import cluster, job, model


class Question(NamedTuple):
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
        return job(self.global_batch, self.seq_len)


ANSWERED = [
    Question("tiny-llama", "workstation", 1, 32, 2048, "torch"),
    Question("gpt2", "dgx-a100", 1, 64, 1024, "torch"),
    Question("llama-3-8b", "dgx-h100", 1, 64, 4096, "torch"),
    Question("llama-3-8b", "dgx-a100", 2, 64, 8192, "torch"),
    Question("llama-3-8b", "l40s-pcie", 2, 32, 4096, "megatron"),
    Question("small-moe", "dgx-h100", 1, 32, 4096, "megatron"),
    Question("llama-3-70b", "dgx-h100", 4, 64, 8192, "megatron"),
]
REFUSED = [
    Question("llama-3-8b", "workstation", 1, 16, 8192, "torch"),
    Question("llama-3-70b", "dgx-h100", 1, 64, 8192, "megatron"),
    Question("llama-3-70b", "l40s-pcie", 1, 32, 4096, "torch"),
    Question("llama-3.1-405b", "dgx-a100", 2, 32, 8192, "megatron"),
]


def name(question: Question) -> str:
    return f"{question.model}-{question.cluster}-{question.target}"


answered = pytest.mark.parametrize("question", ANSWERED, ids=name)
refused = pytest.mark.parametrize("question", REFUSED, ids=name)


def ask(question: Question, machines: ClusterSpec, job: JobSpec, **options: Any) -> Plan | NoFit:
    target = TARGETS[question.target]
    asked = Options(**{"offload": False} | options)
    return recommend(model(question.model), machines, job, target, asked)


@cache
def plan(question: Question, **options: Any) -> Plan:
    found = ask(question, question.machines, question.job, **options)
    assert isinstance(found, Plan)
    return found


@cache
def no(question: Question) -> NoFit:
    found = ask(question, question.machines, question.job)
    assert isinstance(found, NoFit)
    return found


PARTS = ("weights", "gradients", "optimizer", "secondary")


def layout_of(plan: Plan) -> Layout:
    """Read the layout of a plan back."""
    record = plan.layout.model_dump()
    shard = Shard(*(record.pop(f"shard_{part}") for part in PARTS))
    offload = Offload(record.pop("offload_fraction"), record.pop("offload_target"))
    parts = {"shard": shard, "offload": offload, "recompute": Recompute(record["recompute"])}
    return Layout(**record | parts)


@answered
def test_a_plan_survives_its_json(question: Question) -> None:
    found = plan(question)

    assert Plan.model_validate_json(found.model_dump_json()) == found


@answered
def test_a_plan_repeats_what_was_asked_with_the_software_of_its_target(question: Question) -> None:
    found = plan(question)
    software = TARGETS[question.target].software

    assert (found.model, found.cluster) == (model(question.model), question.machines)
    assert found.job == question.job.model_copy(update={"software": software})
    assert layout_of(found).gpus == question.machines.gpus


@answered
def test_a_plan_is_legal_and_can_be_run(question: Question) -> None:
    found, layout = plan(question), layout_of(plan(question))
    problems = layout_problems(found.model, found.cluster, found.job, layout)
    if question.target == "torch":
        problems += torch_target_problems(found.model, found.job, layout)

    assert problems == []


@answered
def test_stages_hold_every_layer_once(question: Question) -> None:
    found = plan(question)
    held = [
        layer
        for stage in found.stages
        for layer in range(stage.first_layer, stage.first_layer + stage.layers)
    ]

    assert held == list(range(found.model.layers))
    assert [stage.stage for stage in found.stages] == list(
        range(found.layout.pp * found.layout.vpp)
    )
    assert all(0 <= stage.recompute_layers <= stage.layers > 0 for stage in found.stages)


@answered
def test_the_first_stage_embeds_and_the_last_has_the_head(question: Question) -> None:
    stages = plan(question).stages

    assert [stage.stage for stage in stages if stage.embedding] == [0]
    assert [stage.stage for stage in stages if stage.head] == [len(stages) - 1]


@answered
def test_the_rank_map_is_a_permutation(question: Question) -> None:
    assert sorted(plan(question).rank_map) == list(range(question.machines.gpus))


@answered
def test_parts_add_up_to_the_step(question: Question) -> None:
    estimate = plan(question).estimate

    assert sum(estimate.parts_s.values()) == pytest.approx(estimate.step_time_s)
    assert all(seconds >= -1e-9 for seconds in estimate.parts_s.values())
    assert estimate.step_time_low_s < estimate.step_time_s < estimate.step_time_high_s


@answered
def test_speed_follows_from_the_step_time(question: Question) -> None:
    estimate, gpus = plan(question).estimate, question.machines.gpus
    tokens = question.global_batch * question.seq_len

    assert estimate.tokens_per_s_per_gpu == pytest.approx(tokens / estimate.step_time_s / gpus)
    assert 0.01 < estimate.mfu < 0.75
    assert estimate.peak_flops == question.machines.gpu.peak_flops["bf16"]


@answered
def test_memory_of_stages_is_that_of_their_ranks_and_within_the_margin(question: Question) -> None:
    found = plan(question)
    sizes = [stage.memory_bytes for stage in found.stages]
    limit = 0.95 * found.estimate.capacity_bytes

    assert found.estimate.capacity_bytes == question.machines.gpu.memory_bytes
    assert found.estimate.memory_bytes == pytest.approx(max(sizes))
    assert max(sizes) <= limit
    ranks = rank_of(found.schedule, found.layout.pp, found.layout.vpp).tolist()
    assert sizes == [sizes[ranks.index(rank)] for rank in ranks]


@answered
def test_alternatives_are_slower_fit_and_are_four_others(question: Question) -> None:
    found = plan(question)
    times = [found.estimate.step_time_s, *(other.step_time_s or 0 for other in found.alternatives)]

    assert times == sorted(times)
    assert len(found.alternatives) == min(5, found.search.simulated) - 1
    assert all(
        (other.memory_bytes or 0) <= 0.95 * found.estimate.capacity_bytes
        for other in found.alternatives
    )


@answered
def test_an_alternative_says_how_much_slower_it_is(question: Question) -> None:
    found = plan(question)

    for other in found.alternatives:
        slower = re.fullmatch(
            r"([\d.]+)% slower(, recomputes \d+ of \d+ layers)?(, \d+ % of .*)?", other.reason
        )

        assert slower is not None, other.reason
        assert other.step_time_s == pytest.approx(
            found.estimate.step_time_s * (1 + float(slower[1]) / 100), rel=1e-3
        )


@answered
def test_the_search_is_on_record(question: Question) -> None:
    record = plan(question).search

    assert record.gap == 0
    assert 0 < record.simulated <= record.fitting <= record.layouts


@answered
def test_the_plan_is_no_slower_than_what_the_search_found(question: Question) -> None:
    target = TARGETS[question.target]
    asked = question.job.model_copy(update={"software": target.software})
    found = search(model(question.model), question.machines, asked, target)

    assert plan(question).estimate.step_time_s <= found.best[0].step_time_s * (1 + 1e-9)


@pytest.mark.parametrize("question", ANSWERED[:3], ids=name)
def test_the_same_question_has_the_same_answer(question: Question) -> None:
    again = ask(question, question.machines, question.job)
    assert isinstance(again, Plan)
    timed = {"search": plan(question).search}

    assert again.model_copy(update=timed) == plan(question)


@answered
def test_recompute_is_full_only_where_every_layer_is_recomputed(question: Question) -> None:
    found = plan(question)
    again = sum(stage.recompute_layers for stage in found.stages)

    assert (found.layout.recompute == "full") == (again == found.model.layers)


def test_a_smaller_gpu_recomputes_more() -> None:
    again = [
        sum(
            stage.recompute_layers
            for stage in plan(ANSWERED[2], keep_free=free, offload=False).stages
        )
        for free in (0.0, 0.7)
    ]

    assert again[0] < again[1] <= 32


def test_interleaving_is_named_in_the_schedule() -> None:
    for question in ANSWERED:
        found = plan(question)

        plain = "1f1b" if found.layout.vpp == 1 else "interleaved_1f1b"
        assert found.schedule == (found.to_layout().schedule or plain)


@pytest.mark.parametrize("budget_s", [0.0, 0.02])
def test_a_tiny_budget_still_gives_a_plan(budget_s: float) -> None:
    hurried, patient = plan(ANSWERED[3], budget_s=budget_s), plan(ANSWERED[3])

    assert 0 <= hurried.search.gap < 1
    assert hurried.search.simulated < patient.search.simulated
    assert patient.estimate.step_time_s >= hurried.estimate.step_time_s * (1 - hurried.search.gap)


@given(st.floats(0.0, 0.6))
@settings(deadline=None, max_examples=10)
def test_the_share_to_keep_free_is_kept_free(keep_free: float) -> None:
    question = ANSWERED[2]
    found = ask(question, question.machines, question.job, keep_free=keep_free, keep=2)
    assert isinstance(found, Plan)
    limit = (1 - keep_free) * found.estimate.capacity_bytes

    assert found.estimate.memory_bytes <= limit
    assert all((other.memory_bytes or 0) <= limit for other in found.alternatives)


def test_keep_says_how_many_alternatives_there_are() -> None:
    assert plan(ANSWERED[2], keep=1).alternatives == ()
    assert len(plan(ANSWERED[2], keep=3).alternatives) == 2


@refused
def test_no_says_what_is_missing(question: Question) -> None:
    answer, limit = no(question), 0.95 * question.machines.gpu.memory_bytes

    assert answer.limit_bytes == pytest.approx(limit)
    assert answer.shortfall_bytes == answer.needed_bytes - answer.limit_bytes > 0
    assert re.search(r"mb1 zero\d", answer.label)


@refused
def test_no_names_the_smallest_shortfall(question: Question) -> None:
    spec, target = model(question.model), TARGETS[question.target]
    asked = question.job.model_copy(update={"software": target.software})
    found = search(spec, question.machines, asked, target, Options(keep=0, offload=False))

    assert no(question).needed_bytes == min(found.needed_bytes)
    assert no(question).label == found.least.label() if found.least else False


@refused
def test_at_most_three_changes_each_of_more_than_a_factor_of_one(question: Question) -> None:
    changes = no(question).changes

    assert 1 <= len(changes) <= 3
    assert len(set(changes)) == len(changes)
    assert all(change.factor > 1 for change in changes)


NODES = re.compile(r"use (\d+) nodes? \((\d+) GPUs\)(?: with (\S+) GPUs)?")
TOKENS = re.compile(r"train on sequences of (\d+) tokens")


def after(change: Change, machines: ClusterSpec, asked: JobSpec) -> tuple[ClusterSpec, JobSpec]:
    """Return the question that a change proposes."""
    if shorter := TOKENS.fullmatch(change.text):
        return machines, asked.model_copy(update={"seq_len": int(shorter[1])})
    more = NODES.fullmatch(change.text)
    assert more is not None, change.text
    gpu = load_gpu(more[3]) if more[3] else machines.gpu
    bigger = machines.model_copy(update={"nodes": int(more[1]), "gpu": gpu})
    assert bigger.gpus == int(more[2])
    return bigger, asked


@refused
def test_every_change_makes_it_fit(question: Question) -> None:
    for change in no(question).changes:
        machines, asked = after(change, question.machines, question.job)

        assert isinstance(ask(question, machines, asked, keep=1, budget_s=0.0), Plan), change


@refused
def test_the_factor_is_how_much_more_it_takes(question: Question) -> None:
    for change in no(question).changes:
        machines, asked = after(change, question.machines, question.job)
        memory = machines.gpus * machines.gpu.memory_bytes
        before = question.machines.gpus * question.machines.gpu.memory_bytes

        assert change.factor == pytest.approx(memory / before * question.seq_len / asked.seq_len), (
            change
        )


@refused
def test_more_of_the_same_machines_come_first_and_the_rest_in_order(question: Question) -> None:
    own: list[Change] = []
    others: list[Change] = []
    for change in no(question).changes:
        more = NODES.fullmatch(change.text)
        (own if more and not more[3] else others).append(change)
    factors = [change.factor for change in others]

    assert [*own, *others] == list(no(question).changes)
    assert len(own) == (question.machines.scale_out is not None)
    assert factors == sorted(factors)


@refused
def test_half_of_a_proposed_number_of_nodes_is_too_few(question: Question) -> None:
    for change in no(question).changes:
        machines, asked = after(change, question.machines, question.job)
        if machines.nodes == question.machines.nodes:
            continue
        half = machines.model_copy(update={"nodes": machines.nodes // 2})

        assert isinstance(ask(question, half, asked, keep=1, budget_s=0.0), NoFit), change


def test_a_shorter_sequence_is_proposed_where_activations_are_too_large() -> None:
    question = Question("tiny-llama", "workstation", 1, 8, 2**23, "torch")
    answer = no(question)

    assert [change.text for change in answer.changes if TOKENS.fullmatch(change.text)]
    assert not any(
        "nodes" in change.text and "with" not in change.text for change in answer.changes
    )


def test_without_a_legal_layout_there_is_no_label() -> None:
    seven = cluster("dgx-h100").model_copy(update={"gpus_per_node": 7, "domain_gpus": 7})
    answer = ask(Question("tiny-llama", "", 1, 1, 2048, "megatron"), seven, job(1, 2048))

    assert isinstance(answer, NoFit)
    assert (answer.label, answer.needed_bytes) == ("no legal layout", 0.0)


def test_the_largest_gpu_that_ships_has_no_larger_one() -> None:
    largest = max((load_gpu(known) for known in gpu_names()), key=lambda gpu: gpu.memory_bytes)
    machines = cluster("dgx-b200").model_copy(update={"gpu": largest})
    question = Question("deepseek-v3", "dgx-b200", 1, 64, 4096, "megatron")
    answer = ask(question, machines, question.job)

    assert isinstance(answer, NoFit)
    assert [change.text for change in answer.changes if "with" in change.text] == []


def test_shortfall_is_needed_less_limit() -> None:
    answer = NoFit("tp8 mb1 zero1", 100.0 * GIB, 76.0 * GIB, ())

    assert answer.shortfall_bytes == 24 * GIB


def test_a_record_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        CandidateRecord.model_validate({"label": "pipeline", "reason": "slow", "speed": 1})
