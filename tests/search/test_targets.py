"""Targets: found by name, priced with their own software, and bound by their own rules."""

import re
from typing import Any

import pytest

from planner.errors import SpecError
from planner.layout.layout import Shard
from planner.layout.rules_torch import torch_target_problems
from planner.layout.space import layouts
from planner.layout.stages import Split
from planner.search.targets import TARGETS, Target, target
from planner.spec.software import MEGATRON_CORE, TORCH_LAUNCHER
from tests.properties.strategies import cluster, job, layout_with, model

BOTH = (TARGETS["torch"], TARGETS["megatron"])


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_found_by_its_name(name: str) -> None:
    assert target(name) is TARGETS[name]
    assert target(name).name == name


@pytest.mark.parametrize("name", ["", "Torch", "deepspeed"])
def test_an_unknown_target_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        SpecError, match=r"--target: .* is not a target; use one of torch, megatron"
    ):
        target(name)


def test_each_target_is_priced_with_its_own_software() -> None:
    assert target("torch").software is TORCH_LAUNCHER
    assert target("megatron").software is MEGATRON_CORE


def test_torchtitan_recomputes_all_layers_or_none() -> None:
    some, none = Split((4, 4), (0, 1)), Split((4, 4), (0, 0))
    settable = target("torchtitan").settable

    assert settable(some) == Split((4, 4), (4, 4))
    assert settable(none) == none
    assert target("torch").settable(some) == some


def test_only_megatron_recomputes_equally_many_layers_everywhere() -> None:
    assert [name for name, known in TARGETS.items() if known.uniform_recompute] == ["megatron"]


def test_the_torch_target_asks_the_rules_of_the_launcher() -> None:
    assert target("torch").problems is torch_target_problems


def problems(known: Target, name: str = "llama-3-8b", **degrees: Any) -> list[str]:
    assert known.problems is not None
    question = job(64, 4096, software=known.software)
    return known.problems(model(name), question, layout_with(**degrees))


@pytest.mark.parametrize(("zero_stage", "legal"), [(0, True), (1, True), (2, False), (3, False)])
def test_megatron_shards_no_more_than_the_optimizer(zero_stage: int, legal: bool) -> None:
    found = problems(target("megatron"), zero_stage=zero_stage, dp=8)

    assert (found == []) == legal
    assert all("ZeRO-1" in problem for problem in found)


@pytest.mark.parametrize(
    ("degrees", "rule"),
    [
        ({"tp": 16}, "kv_heads"),
        ({"pp": 2, "dp": 4, "zero_stage": 3}, "zero|shard|FSDP|ZeRO"),
    ],
)
def test_torch_refuses_what_its_program_cannot_run(degrees: dict[str, Any], rule: str) -> None:
    found = problems(target("torch"), **degrees)

    assert len(found) == 1
    assert re.search(rule, found[0])


@pytest.mark.parametrize("degrees", [{"dp": 8}, {"tp": 2, "dp": 4}, {"pp": 2, "dp": 4}])
def test_torch_and_megatron_run_plain_layouts(degrees: dict[str, Any]) -> None:
    assert [problems(known, zero_stage=1, **degrees) for known in BOTH] == [[], []]


@pytest.mark.parametrize("degrees", [{"ep": 8}, {"cp": 2, "dp": 4, "ep": 4}, {"pp": 2, "dp": 4}])
def test_torch_and_megatron_run_experts_and_long_sequences(degrees: dict[str, int]) -> None:
    whole = {"dp": 8} | degrees

    found = [problems(known, "small-moe", zero_stage=1, **whole) for known in BOTH]

    assert found == [[], []]


def test_torch_refuses_a_second_prediction() -> None:
    assert "L3: " in problems(target("torch"), "deepseek-v3", dp=8)[0]
    assert not problems(target("megatron"), "deepseek-v3", dp=8)


@pytest.mark.parametrize("name", TARGETS)
def test_the_space_of_a_target_holds_only_what_it_runs(name: str) -> None:
    known = target(name)
    question = job(64, 4096, software=known.software)
    spec, machines = model("llama-3-8b"), cluster("dgx-h100", 2)
    own = layouts(spec, machines, question, known.problems)
    every = layouts(spec, machines, question)

    assert set(own) < set(every)
    assert known.problems is not None
    assert {layout for layout in every if not known.problems(spec, question, layout)} == set(own)


def test_a_target_without_rules_runs_everything() -> None:
    free = Target("free", MEGATRON_CORE, None, False)
    question = job(64, 4096)
    spec, machines = model("llama-3-8b"), cluster("dgx-h100")

    assert layouts(spec, machines, question, free.problems) == layouts(spec, machines, question)


def test_hybrid_sharding_is_of_torch_alone() -> None:
    def hybrid(name: str) -> bool:
        known = target(name)
        question = job(64, 4096, software=known.software)
        found = layouts(model("llama-3-8b"), cluster("dgx-h100", 2), question, known.problems)
        return any(layout.shard == Shard(8, 8, 8) for layout in found)

    assert (hybrid("torch"), hybrid("megatron")) == (True, False)
