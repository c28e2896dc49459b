"""Names of families of layouts, and the reason each one lost."""

import re
from functools import cache
from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Shard
from planner.plan import CandidateRecord, Plan
from planner.search.answer import recommend
from planner.search.families import _CAUSES, family, family_bests, lost_families
from planner.search.recommend import Options, Search, search
from planner.search.targets import TARGETS
from planner.units import GIB
from tests.properties.strategies import cluster, job, layout_with, model

NAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "data parallel"),
    ({"dp": 16}, "data parallel"),
    ({"dp": 16, "zero_stage": 1}, "data parallel"),
    ({"dp": 16, "zero_stage": 2}, "data parallel"),
    ({"dp": 16, "zero_stage": 3}, "fully sharded data parallel"),
    ({"dp": 8, "cp": 2, "zero_stage": 3}, "context parallel + fully sharded data parallel"),
    ({"dp": 16, "shard": Shard(8, 8, 8)}, "hybrid sharded data parallel"),
    ({"tp": 8, "dp": 2}, "tensor parallel"),
    ({"tp": 16}, "tensor parallel across nodes"),
    ({"cp": 2, "dp": 8}, "context parallel"),
    ({"ep": 8, "dp": 16}, "expert parallel"),
    ({"ep": 8, "tp": 2, "dp": 8, "pp": 2}, "tensor parallel + expert parallel + pipeline"),
    ({"pp": 2, "dp": 8}, "pipeline"),
    ({"pp": 2, "vpp": 4, "dp": 8}, "interleaved pipeline"),
    ({"tp": 2, "pp": 2, "dp": 4, "zero_stage": 1}, "tensor parallel + pipeline"),
    ({"tp": 2, "cp": 2, "dp": 4}, "tensor parallel + context parallel"),
    ({"cp": 2, "pp": 4, "vpp": 2}, "context parallel + interleaved pipeline"),
    ({"tp": 2, "dp": 8, "zero_stage": 3}, "tensor parallel + fully sharded data parallel"),
    ({"tp": 16, "pp": 2}, "tensor parallel across nodes + pipeline"),
]
ASKED = {
    "torch": ("llama-3-8b", "dgx-h100", 1, 64, 4096),
    "megatron": ("llama-3-8b", "dgx-h100", 2, 64, 8192),
    "moe": ("small-moe", "dgx-a100", 1, 32, 4096),
    "tight": ("llama-3-8b", "l40s-pcie", 1, 32, 4096),
}
asked = pytest.mark.parametrize("name", ASKED)


def layout(zero_stage: int = 0, shard: Shard | None = None, **degrees: Any) -> Layout:
    return Layout(**degrees, shard=shard) if shard else layout_with(zero_stage, **degrees)


@cache
def searched(name: str, budget_s: float = 60.0) -> tuple[Prices, Search, list[CandidateRecord]]:
    spec, machines, nodes, batch, seq_len = ASKED[name]
    target = TARGETS.get(name, TARGETS["megatron"])
    question = job(batch, seq_len, software=target.software)
    options = Options(budget_s=budget_s)
    prices = Prices(model(spec), cluster(machines, nodes), question)
    found = search(prices.model, prices.cluster, question, target, options)
    bests = family_bests(prices, found, target, options)
    winner = min((*found.best, *bests.values()), key=lambda step: step.step_time_s)
    return prices, found, lost_families(prices, found, winner, bests)


def kinds(name: str, layouts: tuple[Layout, ...]) -> set[str]:
    return {family(layout, searched(name)[0].cluster) for layout in layouts}


@pytest.mark.parametrize(("degrees", "name"), NAMES)
def test_a_family_is_named_in_the_words_of_the_field(degrees: dict[str, Any], name: str) -> None:
    assert family(layout(**degrees), cluster("dgx-h100", 2)) == name


def test_a_domain_of_many_nodes_is_no_crossing() -> None:
    wide = layout(tp=8)

    assert family(wide, cluster("gb200-nvl72", 2)) == "tensor parallel"
    assert family(wide, cluster("workstation")) == "tensor parallel across nodes"


@asked
def test_every_other_family_is_named_once(name: str) -> None:
    prices, found, lost = searched(name)
    labels = [record.label for record in lost]
    winner = family(found.best[0].layout, prices.cluster)

    assert len(set(labels)) == len(labels)
    assert set(labels) == kinds(name, found.layouts) - {winner}


@asked
def test_a_reason_has_a_percentage_or_the_memory_it_lacks(name: str) -> None:
    slower = re.compile(
        r".*mb\d+ zero\d( offload-\w+-[\d.]+%)?: \d+% slower: [\d.]+ (s|ms|us) more for \w.*"
    )
    large = re.compile(r"does not fit: .*mb\d+ zero\d needs at least [\d.]+ GiB of [\d.]+ GiB")

    for record in searched(name)[2]:
        pattern = large if record.step_time_s is None else slower

        assert pattern.fullmatch(record.reason), record.reason


@asked
def test_the_percentage_is_that_of_the_times(name: str) -> None:
    _, found, lost = searched(name)

    for record in lost:
        if record.step_time_s is not None:
            percent = int(re.findall(r"(\d+)% slower", record.reason)[0])
            ratio = record.step_time_s / found.best[0].step_time_s

            assert 100 * (ratio - 1) == pytest.approx(percent, abs=0.51)


@asked
def test_the_fastest_family_comes_first_and_what_does_not_fit_last(name: str) -> None:
    lost = searched(name)[2]
    fitting = [record.step_time_s for record in lost if record.step_time_s is not None]
    sizes = [record.memory_bytes for record in lost if record.step_time_s is None]

    assert fitting == sorted(fitting)
    assert sizes == sorted(sizes, key=lambda size: size or 0)
    assert [record.step_time_s is None for record in lost] == sorted(
        record.step_time_s is None for record in lost
    )


@asked
def test_a_family_that_lost_on_time_fits(name: str) -> None:
    _, found, lost = searched(name)

    for record in lost:
        fits = (record.memory_bytes or 0) <= found.limit_bytes

        assert fits == (record.step_time_s is not None), record


def test_some_family_does_not_fit_where_memory_is_small() -> None:
    _, found, lost = searched("tight")
    large = [record for record in lost if record.step_time_s is None]

    assert large
    assert all(f"of {found.limit_bytes / GIB:.1f} GiB" in record.reason for record in large)


@asked
def test_the_best_of_a_family_is_the_best_that_was_simulated_of_it(name: str) -> None:
    prices, found, lost = searched(name)
    least: dict[str, float] = {}
    for step in found.steps.values():
        kind = family(step.layout, prices.cluster)
        least[kind] = min(step.step_time_s, least.get(kind, float("inf")))

    for record in lost:
        if record.step_time_s is not None:
            assert record.step_time_s <= least.get(record.label, float("inf")) * (1 + 1e-9)


def test_naming_the_losers_leaves_the_search_as_it_was() -> None:
    prices, found, _ = searched("torch")
    before = dict(found.steps)
    family_bests(prices, found, TARGETS["torch"], Options())

    assert found.steps == before


@asked
def test_every_part_of_a_step_can_be_a_reason(name: str) -> None:
    assert all(step.parts_s.keys() == _CAUSES.keys() for step in searched(name)[1].best)


@asked
def test_no_loser_is_faster_than_the_winner_however_short_the_budget(name: str) -> None:
    spec, machines, nodes, batch, seq_len = ASKED[name]
    target = TARGETS.get(name, TARGETS["megatron"])
    question = job(batch, seq_len)

    plan = recommend(model(spec), cluster(machines, nodes), question, target, Options(budget_s=0.0))

    assert isinstance(plan, Plan)
    times = [record.step_time_s for record in plan.lost if record.step_time_s is not None]
    assert min(times) >= plan.estimate.step_time_s
