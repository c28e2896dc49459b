"""Seconds that offload adds, what it moves, and what that does to the drives."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.errors import LayoutError
from planner.layout.layout import Layout, Offload
from planner.layout.stages import StageLayers
from planner.simulate.offload import (
    YEAR_S,
    Rates,
    exposed_s,
    free_fraction,
    offload_facts,
    offload_rates,
    step_bytes,
)
from planner.simulate.step import estimate_step
from planner.simulate.timeline import step_timeline
from planner.simulate.waterfall import waterfall
from planner.spec.cluster import ClusterSpec
from planner.units import GB
from tests.properties.strategies import cluster, job, layouts_of, quick, small

LAYOUTS = layouts_of("small", "dgx-h100", 2)
H100 = cluster("dgx-h100", 2)
STAGE = StageLayers(16, 0, embedding=True, head=True)


def away(layout: Layout, fraction: float = 1.0, target: str = "host") -> Layout:
    return replace(layout, offload=Offload(fraction, target))


def linked(bytes_per_s: float) -> Prices:
    """Prices where a GPU reaches its host at another rate."""
    host = H100.host
    assert host is not None
    slower = host.model_copy(update={"gpu_link_bytes_per_s": bytes_per_s})
    return Prices(small(), H100.model_copy(update={"host": slower}), job(64))


@given(layout=LAYOUTS, fraction=st.floats(0.05, 1.0), target=st.sampled_from(["host", "ssd"]))
@quick
def test_offload_never_shortens_a_step_and_its_parts_add_up(
    layout: Layout, fraction: float, target: str
) -> None:
    prices = Prices(small(), H100, job(32))
    before, after = (estimate_step(prices, one) for one in (layout, away(layout, fraction, target)))

    assert after.step_time_s >= before.step_time_s * (1 - 1e-12)
    assert after.parts_s["offload"] >= 0
    assert sum(after.parts_s.values()) == pytest.approx(after.step_time_s)


def test_timeline_and_waterfall_name_it() -> None:
    prices, layout = linked(5 * GB), away(Layout(pp=2, dp=8))
    step = estimate_step(prices, layout)
    timeline = step_timeline(prices, layout)

    assert timeline.step_time_s == pytest.approx(step.step_time_s)
    assert min(causes["offload"] for causes in timeline.causes_s) > 0
    assert waterfall(prices, step).parts_s["offload"] > 0


def test_a_copy_that_is_shorter_than_its_layer_costs_nothing() -> None:
    layout = away(Layout(dp=16))

    assert exposed_s(linked(10_000 * GB), layout, STAGE) == (0, 0)


def test_what_a_layer_does_not_cover_is_exposed() -> None:
    """Fifteen of sixteen layers; each copy runs behind one layer."""
    prices, layout = linked(1 * GB), away(Layout(dp=16))
    layer = prices.layer(layout, False)
    each_s = step_bytes(prices.model, prices.job, layout, None)[0] / 4 / 15 / GB

    forward, backward = exposed_s(prices, layout, STAGE)

    assert forward == pytest.approx(15 * (each_s - layer.forward.total))
    assert backward == pytest.approx(15 * (each_s - layer.backward.total))


def test_a_stage_without_head_waits_for_its_first_load() -> None:
    prices, layout = linked(10_000 * GB), away(Layout(pp=2, dp=8))
    forward, backward = exposed_s(prices, layout, StageLayers(8, 0, embedding=True))

    assert forward == 0
    assert 0 < backward < prices.layer(layout, False).backward.total


@pytest.mark.parametrize("rate", [2, 5, 20, 100])
def test_the_free_fraction_is_free_and_more_is_not(rate: float) -> None:
    prices, layout = linked(rate * GB), Layout(dp=16)
    free = free_fraction(prices, away(layout), STAGE)

    assert exposed_s(prices, away(layout, free), STAGE) == pytest.approx((0, 0), abs=1e-9)
    if free < 1:
        assert sum(exposed_s(prices, away(layout, min(1.0, 1.1 * free)), STAGE)) > 0


# target, GPUs of a node, bytes per second out and back
RATES = [
    ("host", Rates(55 * GB, 55 * GB)),
    ("ssd", Rates(26 * GB / 8, 48 * GB / 8)),
]


@pytest.mark.parametrize(("target", "expected"), RATES)
def test_drives_are_shared_by_the_gpus_of_a_node(target: str, expected: Rates) -> None:
    assert offload_rates(Offload(1.0, target), H100) == expected


def test_gpus_behind_one_switch_share_its_link() -> None:
    dgx2 = cluster("dgx-2", 1)
    assert dgx2.host is not None

    rates = offload_rates(Offload(1.0, "host"), dgx2)

    assert rates.store_bytes_per_s == dgx2.host.gpu_link_bytes_per_s / 4


def test_drives_are_reached_over_the_link() -> None:
    assert H100.ssd is not None
    fast = H100.ssd.model_copy(update={"write_bytes_per_s": 8000 * GB})

    rates = offload_rates(Offload(1.0, "ssd"), H100.model_copy(update={"ssd": fast}))

    assert rates.store_bytes_per_s == 55 * GB


@pytest.mark.parametrize(("field", "target"), [("host", "host"), ("ssd", "ssd")])
def test_a_cluster_without_it_is_refused(field: str, target: str) -> None:
    bare: ClusterSpec = H100.model_copy(update={field: None})

    with pytest.raises(LayoutError, match=f"add {field} to its file"):
        offload_rates(Offload(1.0, target), bare)


def test_life_of_drives_and_needed_bandwidth() -> None:
    prices, layout = Prices(small(), H100, job(64)), away(Layout(dp=16), 0.5, "ssd")
    (each,) = step_bytes(small(), job(64), layout, None)

    facts = offload_facts(prices, layout, None, 10.0)

    assert facts is not None
    assert H100.ssd is not None
    assert facts.needed_bytes_per_s == each / 5
    written_per_s = 8 * each / 10
    assert facts.life_years == pytest.approx(H100.ssd.endurance_bytes / written_per_s / YEAR_S)


def test_host_memory_does_not_wear_and_nothing_has_no_facts() -> None:
    prices, layout = Prices(small(), H100, job(64)), Layout(dp=16)
    facts = offload_facts(prices, away(layout), None, 10.0)

    assert facts is not None
    assert facts.life_years is None
    assert offload_facts(prices, layout, None, 10.0) is None


def test_all_micro_batches_move() -> None:
    """Chunks share the layers of a rank, so the bytes of a step do not depend on them."""
    plain = step_bytes(small(), job(64), away(Layout(dp=8, pp=2)), None)
    twice = step_bytes(small(), job(128), away(Layout(dp=8, pp=2)), None)

    assert twice == pytest.approx([2 * size for size in plain])
