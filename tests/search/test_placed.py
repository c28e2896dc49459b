"""Steps on measured links: honest bounds, gains that are simulated, slow links that are named."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Shard
from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.bound import lower_bounds_s
from planner.search.placed import placed, slow_links
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.nodes import NodeLinks
from planner.spec.parts import healthy, in_order
from tests.properties.strategies import cluster, job, model, quick

LAYOUTS = [
    Layout(tp=4, pp=2, dp=8),
    Layout(tp=2, pp=4, dp=8, shard=Shard.zero(1, 8)),
    Layout(pp=8, dp=8),
    Layout(tp=2, dp=32, shard=Shard.zero(3, 32)),
    Layout(tp=8, pp=4, vpp=2, dp=2),
    Layout(tp=2, cp=16, dp=2),
    Layout(tp=16, dp=4),
]


def links(shares: np.ndarray) -> NodeLinks:
    hosts = tuple(f"n{index}" for index in range(len(shares)))
    return NodeLinks(hosts=hosts, bytes_per_s=tuple(map(tuple, (20e9 * shares).tolist())))


def on(shares: np.ndarray, nodes: int = 8) -> ClusterSpec:
    return cluster("dgx-a100", nodes).model_copy(update={"node_links": links(shares)})


def with_slow(*pairs: tuple[int, int], share: float = 0.05, nodes: int = 8) -> np.ndarray:
    shares = np.ones((nodes, nodes))
    for pair in pairs:
        shares[pair] = share
    return shares


def prices(spec: ClusterSpec) -> Prices:
    software = TARGETS["megatron"].software
    return Prices(model("small"), spec, job(128, 4096).model_copy(update={"software": software}))


def healthy_step_s(spec: ClusterSpec, layout: Layout) -> float:
    return estimate_step(prices(healthy(spec)), layout).step_time_s


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.label)
def test_a_slow_pair_costs_where_it_is_used_and_nothing_where_it_is_avoided(layout: Layout) -> None:
    spec = on(with_slow((0, 1), (2, 3), (5, 6)))
    found = placed(prices(spec), estimate_step(prices(healthy(spec)), layout))

    assert found.healthy_s == healthy_step_s(spec, layout)
    assert found.step.step_time_s == pytest.approx(found.healthy_s, rel=1e-9)
    assert found.communication_s <= found.listed_communication_s
    used = [link for link in found.avoided if link.carries]
    assert used == [], "no slow pair is needed"
    assert {frozenset(link[:2]) for link in found.avoided} == {
        frozenset(pair) for pair in (("n0", "n1"), ("n2", "n3"), ("n5", "n6"))
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.label)
def test_equal_links_gain_nothing_and_cost_nothing(layout: Layout) -> None:
    spec = on(np.ones((8, 8)))
    found = placed(prices(spec), estimate_step(prices(healthy(spec)), layout))

    assert found.step.step_time_s == found.healthy_s == found.listed_step_time_s
    assert found.prices.cluster.hosts == spec.hosts
    assert found.avoided == ()


@quick
@given(layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 10**6))
def test_no_order_beats_healthy_links_or_the_bound(layout: Layout, seed: int) -> None:
    shares = np.random.default_rng(seed).uniform(0.02, 1, (8, 8))
    order = tuple(np.random.default_rng(seed).permutation(8).tolist())
    spec = on(shares)

    step_s = estimate_step(prices(in_order(spec, order)), layout).step_time_s

    assert step_s >= healthy_step_s(spec, layout) * (1 - 1e-12)
    assert step_s >= lower_bounds_s(prices(healthy(spec)), [layout])[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.label)
@pytest.mark.parametrize("seed", range(3))
def test_the_placed_step_is_never_slower_than_the_listed_one(layout: Layout, seed: int) -> None:
    spec = on(np.random.default_rng(seed).uniform(0.1, 1, (8, 8)))

    found = placed(prices(spec), estimate_step(prices(healthy(spec)), layout))

    assert found.healthy_s <= found.step.step_time_s <= found.listed_step_time_s


def test_a_slow_link_that_cannot_be_avoided_is_named_with_what_it_carries() -> None:
    spec = on(with_slow((0, 1), nodes=2), nodes=2)
    found = slow_links(on(with_slow((0, 1), (0, 2), nodes=4), 2), spec, Layout(tp=8, pp=2))

    assert found[0][:2] == ("n0", "n1")
    assert found[0].share == pytest.approx(0.05)
    assert found[0].carries == ("pipeline hops",)
    assert found[1].carries == ()


@cache
def plan(*slow: tuple[int, int], measured: int = 4, nodes: int = 4) -> Plan:
    spec = on(with_slow(*slow, nodes=measured), nodes)
    found = recommend(model("llama-3-8b"), spec, job(128, 8192), TARGETS["torch"])
    assert isinstance(found, Plan)
    return found


def test_recommend_reports_the_gain_and_the_hosts_in_order() -> None:
    found = plan((0, 1))
    record = found.placement

    assert record is not None
    assert sorted(found.hosts) == ["n0", "n1", "n2", "n3"]
    assert found.hosts == found.cluster.hosts
    assert record.communication_s < record.listed_communication_s
    assert found.estimate.step_time_s < record.listed_step_time_s
    assert [link.carries for link in record.slow_links] == [()]
    assert 0 <= found.search.gap < 0.01


def test_recommend_leaves_the_slow_node_out_where_one_is_spare() -> None:
    slow = tuple((2, other) for other in (0, 1, 3, 4))
    found = plan(*slow, measured=5, nodes=4)

    assert found.placement is not None
    assert found.placement.unused == ("n2",)
    assert "n2" not in found.hosts
    assert found.placement.healthy_step_time_s == pytest.approx(found.estimate.step_time_s)


def test_a_plan_estimates_the_same_when_read_back() -> None:
    found = Plan.model_validate_json(plan((0, 1), (1, 2)).model_dump_json())
    own = Prices(found.model, found.cluster, found.job)

    again = estimate_step(own, found.to_layout(), found.to_split()).step_time_s

    assert again == pytest.approx(found.estimate.step_time_s)


def test_one_node_has_no_links() -> None:
    spec = on(with_slow((0, 1), nodes=3), 1)
    alone = in_order(spec, (2,))
    layout = Layout(tp=2, pp=2, dp=2)

    assert estimate_step(prices(alone), layout).step_time_s == healthy_step_s(alone, layout)
    assert slow_links(alone, alone, layout) == ()
    assert placed(prices(spec), estimate_step(prices(healthy(spec)), layout)).communication_s == 0


def test_a_plan_without_measured_links_names_no_hosts() -> None:
    found = recommend(model("tiny-llama"), cluster("dgx-h100", 1), job(32, 2048), TARGETS["torch"])

    assert isinstance(found, Plan)
    assert (found.hosts, found.placement) == ((), None)
