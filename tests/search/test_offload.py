"""Where the search moves activations off the GPU, and where it does not."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.memory.estimate import peak_memory
from planner.search.changes import single_changes
from planner.search.offload import best_offload, frugal_offload
from planner.search.recommend import Options, Search, fastest_fit, search
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.spec.cluster import ClusterSpec
from planner.units import GB
from tests.properties.strategies import cluster, job, model

TORCH = TARGETS["torch"]
ASKED = job(16, 8192, software=TORCH.software)
LAYOUT = Layout(dp=8, micro_batch=2, shard=Shard.zero(3, 8))


def machines(**changes: Any) -> ClusterSpec:
    return cluster("dgx-h100").model_copy(update=changes)


def host(memory: int, link: float) -> dict[str, Any]:
    found = machines().host
    assert found is not None
    return {"host": found.model_copy(update={"memory_bytes": memory, "gpu_link_bytes_per_s": link})}


def prices(**changes: Any) -> Prices:
    return Prices(model("llama-3-8b"), machines(**changes), ASKED)


def limit_of(found: Prices, layout: Layout, share: float) -> float:
    """Bytes that make a share of what the layout keeps too much."""
    return share * peak_memory(found.model, found.job, layout).device


def test_it_replaces_recompute_where_the_link_is_fast() -> None:
    found = prices()
    limit = limit_of(found, LAYOUT, 0.75)
    recomputing = fastest_fit(found, LAYOUT, limit, TORCH, False)
    best = fastest_fit(found, LAYOUT, limit, TORCH, True)

    assert recomputing is not None
    assert best is not None
    assert sum(recomputing.split.recomputed or ()) > 0
    assert best.layout.offload.fraction > 0
    assert best.step_time_s < recomputing.step_time_s
    assert best.memory.device <= limit


def test_it_does_not_where_the_link_is_slow() -> None:
    found = prices(**host(2000 * GB, 0.2 * GB), ssd=None)
    limit = limit_of(found, LAYOUT, 0.75)
    best = fastest_fit(found, LAYOUT, limit, TORCH, True)

    assert best is not None
    assert best.layout.offload == Offload()
    assert sum(best.split.recomputed or ()) > 0


def test_it_is_not_tried_where_everything_fits() -> None:
    found = prices()
    best = fastest_fit(found, LAYOUT, limit_of(found, LAYOUT, 1.01), TORCH, True)

    assert best is not None
    assert best.layout == LAYOUT
    assert not any(best.split.recomputed or ())


def test_a_full_host_leaves_drives_and_no_drives_leave_nothing() -> None:
    small_host = host(30 * GB, 55 * GB)
    found = prices(**small_host)
    limit = limit_of(found, LAYOUT, 0.75)
    best = best_offload(found, LAYOUT, TORCH, limit)

    assert best is None or best.layout.offload.target == "ssd"
    assert best_offload(prices(**small_host, ssd=None), LAYOUT, TORCH, limit) is None


def test_drives_that_last_less_than_a_year_are_not_chosen() -> None:
    """One write a day for five years is gone in weeks; a hundred a day are not."""
    rated = machines().ssd
    assert rated is not None
    limit = limit_of(prices(), LAYOUT, 0.75)
    durable = rated.model_copy(update={"endurance_bytes": 100 * rated.endurance_bytes})
    only_drives = host(1 * GB, 55 * GB)

    chosen = best_offload(prices(**only_drives, ssd=durable), LAYOUT, TORCH, limit)
    assert chosen is not None
    assert chosen.layout.offload.target == "ssd"
    assert best_offload(prices(**only_drives, ssd=rated), LAYOUT, TORCH, limit) is None


def test_frugal_is_full_recompute_with_inputs_away() -> None:
    assert frugal_offload(LAYOUT, machines()) == replace(
        LAYOUT, recompute=Recompute.FULL, offload=Offload(1.0, "host")
    )
    assert frugal_offload(LAYOUT, machines(host=None, ssd=None)) is None


@cache
def searched(offload: bool) -> Search:
    question = job(32, 32768, software=TORCH.software)
    options = Options(keep=3, offload=offload)
    return search(model("llama-3-8b"), machines(), question, TORCH, options)


def test_the_search_finds_it_and_can_be_told_not_to() -> None:
    with_it, without = searched(True), searched(False)

    assert with_it.best[0].layout.offload.fraction > 0
    assert with_it.best[0].step_time_s < without.best[0].step_time_s
    assert all(step.layout.offload == Offload() for step in without.best)
    assert set(without.fitting) <= set(with_it.fitting)


def test_its_bound_is_proved_with_offload_too() -> None:
    found = searched(True)
    fastest = min(step.step_time_s for step in found.steps.values())

    assert found.gap == 0
    assert found.best[0].step_time_s == fastest


@pytest.mark.parametrize("name", ["torch", "megatron"])
def test_single_changes_name_it_where_the_target_runs_it(name: str) -> None:
    found = Prices(model("llama-3-8b"), machines(), ASKED)
    layout = replace(LAYOUT, shard=Shard.zero(1, 8))
    changes = {change.text: change for change in single_changes(found, layout, TARGETS[name])}

    assert ("activations to host memory" in changes) == (name == "torch")
    if name == "torch":
        change = changes["activations to host memory"]
        assert change.saved_bytes > 0
        assert change.step_time_s == estimate_step(found, change.layout).step_time_s
