"""A step on measured, uneven links: the order of nodes, what it gains, and what was avoided."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.cost.layer import Prices
from planner.cost.links import Links, latency_factors, link_shares
from planner.cost.traffic import pipelines, rings
from planner.layout.layout import Layout
from planner.search.placement import (
    FloatArray,
    PlacementProblem,
    communication_s,
    host_order,
    place_nodes,
)
from planner.simulate.hops import hop_s
from planner.simulate.step import StepCosts, StepEstimate, estimate_step, step_costs
from planner.spec.cluster import ClusterSpec
from planner.spec.parts import healthy, in_order

SLOW = 0.8  # of the middle link's rate: what is slower is named
MOST_NAMED = 8


class SlowLink(NamedTuple):
    """A pair of nodes slower than most: its share of a healthy link's rate, what it carries."""

    first: str
    second: str
    share: float
    carries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """A step on its placed nodes, and the same layout on the nodes as they were listed.

    ``prices`` are those of the placed cluster; ``healthy_s`` is the step if all links were healthy.
    """

    prices: Prices
    step: StepEstimate
    communication_s: float
    listed_communication_s: float
    listed_step_time_s: float
    healthy_s: float
    exact: bool
    unused: tuple[str, ...]
    avoided: tuple[SlowLink, ...]


def placement_problem(prices: Prices, step: StepEstimate) -> PlacementProblem:
    """Return what communication the places of a layout have, over the cluster's measured links.

    Collectives count in full, hidden or not: what a slow link makes of a hidden one shows.
    """
    layout, cluster = step.layout, prices.cluster
    assert cluster.node_links is not None
    software = prices.job.software.model_copy(
        update={"overlap_grad_reduce": False, "overlap_param_gather": False}
    )
    even = Prices(
        prices.model,
        healthy(cluster),
        prices.job.model_copy(update={"software": software}),
    )
    costs = step_costs(even, layout, step.split)
    found = rings(layout, cluster)
    seconds = [_group_s(costs, ring.stage, ring.axis) for ring in found]
    return PlacementProblem(
        places=-(-layout.gpus // cluster.gpus_per_node),
        hop_s=2 * costs.micro_batches * _hop_matrix(even, layout, cluster),
        pipelines=pipelines(layout, cluster),
        slowness=1 / link_shares(cluster.node_links),
        rings=tuple(ring.pairs for ring in found),
        ring_s=np.array(seconds),
        ring_stage=np.array([ring.stage for ring in found], dtype=np.int64),
    )


def _group_s(costs: StepCosts, stage: int, axis: str) -> float:
    """Return seconds of one step that a stage's groups of one kind take over healthy links."""
    passes = [one for cost in costs.of_rank(stage) for one in (cost.forward, cost.backward)]
    seconds = costs.micro_batches * sum(float(getattr(one, axis)) for one in passes)
    tail = costs.tails[stage]
    return seconds + (tail.gradients_s + tail.weights_s if axis == "dp" else 0.0)


def _hop_matrix(even: Prices, layout: Layout, cluster: ClusterSpec) -> FloatArray:
    """Return the seconds of one hop over each pair of nodes, ``[M, M]``; none inside a node."""
    assert cluster.node_links is not None
    shares, latency = link_shares(cluster.node_links), latency_factors(cluster.node_links)
    hops = np.zeros_like(shares)
    if layout.pp > 1:
        for i, j in zip(*np.triu_indices(len(shares), 1), strict=True):
            links = Links(shares[i, j], shares[i, j], latency[i, j])
            hops[i, j] = hops[j, i] = hop_s(even, layout, cluster.domain_gpus, links)
    return hops


def placed(prices: Prices, step: StepEstimate) -> PlacedStep:
    """Return ``step`` on the nodes of ``prices`` in their best order, never slower than as listed.

    The local search minimises communication; the simulator has the last word.
    """
    problem, cluster = placement_problem(prices, step), prices.cluster
    assert cluster.node_links is not None
    listed = host_order(problem)[: problem.places]
    found = place_nodes(problem)
    orders = [tuple(listed.tolist()), found.nodes]
    tried = []
    for nodes in orders:
        own = Prices(prices.model, in_order(cluster, nodes), prices.job)
        tried.append((own, estimate_step(own, step.layout, step.split)))
    best = int(tried[1][1].step_time_s < tried[0][1].step_time_s)
    seconds = communication_s(problem, np.array(orders))
    hosts = cluster.node_links.hosts
    return PlacedStep(
        *tried[best],
        float(seconds[best]),
        float(seconds[0]),
        tried[0][1].step_time_s,
        step.step_time_s,
        found.exact,
        tuple(host for node, host in enumerate(hosts) if node not in orders[best]),
        slow_links(cluster, tried[best][0].cluster, step.layout),
    )


def slow_links(measured: ClusterSpec, job: ClusterSpec, layout: Layout) -> tuple[SlowLink, ...]:
    """Return the slow links of all ``measured`` nodes, slowest first, and what crosses them.

    ``job`` has the nodes of the job in their order. Nothing where no links were measured.
    """
    if measured.node_links is None or len(measured.node_links.hosts) == 1:
        return ()
    shares, hosts = link_shares(measured.node_links), measured.node_links.hosts
    first, second = np.triu_indices(len(hosts), 1)
    rates = shares[first, second]
    limit = SLOW * np.median(rates)
    slow = [index for index in np.argsort(rates, kind="stable") if rates[index] < limit]
    carried = _carried(job, layout)
    return tuple(
        SlowLink(
            hosts[first[index]],
            hosts[second[index]],
            float(rates[index]),
            carried.get(frozenset((hosts[first[index]], hosts[second[index]])), ()),
        )
        for index in slow[:MOST_NAMED]
    )


def _carried(job: ClusterSpec, layout: Layout) -> dict[frozenset[str], tuple[str, ...]]:
    """Return what each used pair of hosts carries."""
    hosts, found = job.hosts, dict[frozenset[str], list[str]]()
    for ring in rings(layout, job):
        for one, other in ring.pairs:
            found.setdefault(frozenset((hosts[one], hosts[other])), []).append(ring.name)
    for hops in pipelines(layout, job):
        for one, other in hops:
            if one != other:
                names = found.setdefault(frozenset((hosts[one], hosts[other])), [])
                names.append("pipeline hops")
    return {pair: tuple(dict.fromkeys(names)) for pair, names in found.items()}


def proved_gap(gap: float, bound_step_s: float, best_s: float) -> float:
    """Return the gap on uneven links: no layout beats what it takes over healthy ones.

    ``gap`` is that of the search over healthy links, whose fastest step takes ``bound_step_s``.
    """
    return max(0.0, 1 - bound_step_s * (1 - gap) / best_s)
