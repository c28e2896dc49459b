"""The search uses the host's memory where nothing else fits, and only there."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.memory.estimate import peak_memory
from planner.memory.host import host_problems
from planner.search.answer import NoFit, recommend
from planner.search.changes import single_changes
from planner.search.faster import faster_changes
from planner.search.recommend import Options, Search, search
from planner.search.targets import TARGETS
from planner.spec.cluster import ClusterSpec
from tests.properties.strategies import cluster, job, model

ONE_NODE = cluster("dgx-h100")


@cache
def found(name: str, target: str = "torch", machines: ClusterSpec = ONE_NODE) -> Search:
    runner = TARGETS[target]
    asked = job(64, 4096, software=runner.software)
    return search(model(name), machines, asked, runner, Options(keep=3, budget_s=5.0, offload=True))


def test_a_model_that_fits_stays_on_its_gpus() -> None:
    assert all(layout.offload_optimizer == 0 for layout in found("llama-3-8b").layouts)


@pytest.mark.parametrize("target", ["torch", "megatron"])
def test_70_billion_on_eight_h100_need_the_host(target: str) -> None:
    answer = found("llama-3-70b", target)

    assert answer.best
    assert all(layout.offload_optimizer > 0 for layout in answer.fitting)
    for step in answer.best:
        assert step.memory.device <= answer.limit_bytes
        assert step.parts_s["offload"] > 0
        asked = job(64, 4096, software=TARGETS[target].software)
        assert host_problems(model("llama-3-70b"), ONE_NODE, asked, step.layout) == []


def test_a_target_that_splits_keeps_the_share_that_fits_on_the_gpu() -> None:
    """Megatron-Core takes any share, FSDP all or nothing."""
    shares = {layout.offload_optimizer for layout in found("llama-3-70b", "megatron").fitting}

    assert {layout.offload_optimizer for layout in found("llama-3-70b").fitting} == {1.0}
    assert any(0 < share < 1 for share in shares)


def test_a_smaller_share_would_not_fit() -> None:
    answer = found("llama-3-70b", "megatron")
    asked = job(64, 4096, software=TARGETS["megatron"].software)
    parts = [layout for layout in answer.fitting if layout.offload_optimizer < 1][:10]

    assert parts
    for layout in parts:
        frugal = replace(layout, recompute=Recompute.FULL)
        less = replace(frugal, offload_optimizer=layout.offload_optimizer - 0.05)
        sizes = [peak_memory(model("llama-3-70b"), asked, one).device for one in (frugal, less)]
        assert sizes[0] <= answer.limit_bytes < sizes[1]


def no_host() -> ClusterSpec:
    return ONE_NODE.model_copy(update={"host": None})


def small_host() -> ClusterSpec:
    assert ONE_NODE.host is not None
    host = ONE_NODE.host.model_copy(update={"memory_bytes": 10**11})
    return ONE_NODE.model_copy(update={"host": host})


@pytest.mark.parametrize(
    ("machines", "options"),
    [(ONE_NODE, {"offload": False}), (no_host(), {}), (small_host(), {})],
    ids=["not wanted", "no host described", "too small a host"],
)
def test_without_a_host_nothing_fits(machines: ClusterSpec, options: dict[str, Any]) -> None:
    asked = job(64, 4096)
    answer = recommend(model("llama-3-70b"), machines, asked, TARGETS["torch"], Options(**options))

    assert isinstance(answer, NoFit)


def test_the_host_is_among_the_single_changes() -> None:
    target = TARGETS["torch"]
    prices = Prices(model("llama-3-8b"), ONE_NODE, job(64, 4096, software=target.software))
    layout = Layout(dp=8)
    texts = [change.text for change in single_changes(prices, layout, target)]

    assert "optimizer on the host" in texts


def test_back_on_the_gpu_is_faster_where_it_fits() -> None:
    target = TARGETS["torch"]
    prices = Prices(model("llama-3-8b"), ONE_NODE, job(64, 4096, software=target.software))
    layout = Layout(tp=2, dp=4, sequence_parallel=True, offload_optimizer=1.0)
    texts = [change.text for change in faster_changes(prices, layout, target, count=9)]

    assert any(text.startswith("optimizer on the GPU") for text in texts)
