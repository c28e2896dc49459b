"""Which link the groups of each axis use: the fabric of a domain, or the network between them."""

from dataclasses import dataclass

from planner.layout.ranks import groups
from planner.plan import Plan
from planner.report.page.markup import Markup, join, number, table
from planner.report.words import seconds
from planner.spec.cluster import ClusterSpec
from planner.spec.parts import one_kind
from planner.units import GB

WORDS = {
    "tp": "tensor",
    "cp": "context",
    "dp": "data",
    "pp": "pipeline",
    "etp": "expert tensor",
    "ep": "expert",
    "edp": "expert data",
}
CARRIES = {
    "tp": "activations of every layer",
    "cp": "keys and values of every layer",
    "dp": "gradients and weights",
    "pp": "activations between stages",
    "etp": "activations of every expert layer",
    "ep": "tokens to their experts and back",
    "edp": "gradients and weights of experts",
}
PARTS = {
    "tp": "tensor_parallel",
    "cp": "context_parallel",
    "dp": "data_parallel",
    "pp": "pipeline",
    "ep": "expert_parallel",
}


@dataclass(frozen=True, slots=True)
class Crossing:
    """The groups along one axis: ``inside`` one domain, and ``across`` several."""

    axis: str
    size: int
    inside: int
    across: int


def crossing(plan: Plan, axis: str) -> Crossing:
    """Count the groups of an axis that stay inside a domain and those that leave it."""
    found, domain = groups(plan.to_layout(), axis), plan.cluster.domain_gpus
    domain_of = {rank: slot // domain for slot, rank in enumerate(plan.rank_map)}
    inside = sum(len({domain_of[rank] for rank in group}) == 1 for group in found)
    return Crossing(axis, len(found[0]), inside, len(found) - inside)


def link_words(plan: Plan, one: Crossing) -> str:
    """Return the link of a crossing with its rate per GPU and direction."""
    net = plan.cluster.scale_out
    kinds = [one_kind(plan.cluster, group) for group in plan.cluster.node_groups] or [plan.cluster]
    named = len(kinds) > 1
    near = ", or ".join(dict.fromkeys(f"{_fabric(part)}{_of(part, named)}" for part in kinds))
    if not one.across or net is None:
        return near
    far = ", or ".join(dict.fromkeys(f"{_network(part)}{_of(part, named)}" for part in kinds))
    if not one.inside:
        return far
    return f"{one.inside} inside a domain ({near}), {one.across} over the {far}"


def _of(cluster: ClusterSpec, named: bool) -> str:
    return f" on {cluster.gpu.name}" if named else ""


def _fabric(cluster: ClusterSpec) -> str:
    return f"{cluster.scale_up.kind}, {cluster.scale_up.bytes_per_s / GB:.4g} GB/s per GPU"


def _network(cluster: ClusterSpec) -> str:
    net = cluster.scale_out
    assert net is not None
    rate = net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node
    return f"{net.fabric} network, {rate / GB:.3g} GB/s per GPU"


def link_table(plan: Plan, name: str, axes: tuple[str, ...]) -> Markup:
    """Return one line for each axis of a grid whose groups talk at all."""
    rows = []
    for axis in axes:
        one = crossing(plan, axis)
        if one.size == 1:
            continue
        count = f"{one.inside + one.across:,} of {one.size} ranks"
        rows.append(
            [f"{axis} {WORDS[axis]}", count, link_words(plan, one), CARRIES[axis],
             _exposed(plan, axis)]
        )  # fmt: skip
    titles = ["axis", "groups", "link", "carries", "exposed in the step"]
    return table(f"Links of the {name} grid", titles, rows) if rows else Markup()


def _exposed(plan: Plan, axis: str) -> Markup:
    """Return the seconds of the step that an axis costs, as far as the plan tells them apart."""
    part_s = plan.estimate.parts_s.get(PARTS.get(axis, ""))
    if part_s is None:
        return Markup()
    shown = number(part_s, seconds(part_s))
    return join(shown, " with the bubble") if axis == "pp" else shown
