"""On which machines the ranks run: their order on measured links, and which kinds take part."""

from planner.plan import PlacementRecord, Plan, SlowLinkRecord
from planner.report.page.markup import Markup, card, number, table, tag
from planner.report.placement import gain_words
from planner.report.words import gib, percent, seconds

BROKEN = 1e-5  # of a healthy link


def placement_card(plan: Plan) -> Markup:
    """Return the order of the machines and why; nothing where any machine is as good as another."""
    if plan.placement is None and not plan.node_choices:
        return Markup()
    placed = plan.placement
    lead = gain_words(placed) if placed else "The cluster has nodes of several kinds."
    parts = [_times(plan, placed), _links(placed.slow_links)] if placed else []
    return card("placement", "Machines", lead, *parts, _choices(plan), _hosts(plan))


def _times(plan: Plan, placed: PlacementRecord) -> Markup:
    rows = [
        _row("as placed", plan.estimate.step_time_s, placed.communication_s),
        _row("in the order of the measurement", placed.listed_step_time_s,
             placed.listed_communication_s),
        _row("if no link were slow", placed.healthy_step_time_s, None),
    ]  # fmt: skip
    titles = ["order of the machines", "step", "communication, hidden or not"]
    return table("What the order of the machines is worth", titles, rows)


def _row(name: str, step_s: float, communication_s: float | None) -> list[str]:
    talk = "" if communication_s is None else number(communication_s, seconds(communication_s))
    return [name, number(step_s, seconds(step_s)), talk]


def _links(links: tuple[SlowLinkRecord, ...]) -> Markup:
    if not links:
        return tag("p", "No link is much slower than the others.", class_="hint")
    rows: list[list[str]] = []
    for link in links:
        rate = "broken" if link.share < BROKEN else number(link.share, percent(link.share))
        carries = ", ".join(link.carries) or "nothing: avoided"
        rows.append([f"{link.first} - {link.second}", rate, carries])
    return table("Slow links", ["link", "of a healthy one", "carries"], rows)


def _choices(plan: Plan) -> Markup:
    if not plan.node_choices:
        return Markup()
    rows: list[list[str]] = []
    for one in plan.node_choices:
        step = "" if one.step_time_s is None else number(one.step_time_s, seconds(one.step_time_s))
        size = one.memory_bytes
        rows.append([one.label, step, "" if size is None else number(size, gib(size)), one.reason])
    return table("Kinds of nodes", ["nodes", "step", "memory GiB", "against the best"], rows)


def _hosts(plan: Plan) -> Markup:
    if not plan.hosts:
        return Markup()
    unused = plan.placement.unused if plan.placement else ()
    parts = [tag("h3", "Hosts in the order of the nodes"), tag("p", ", ".join(plan.hosts))]
    if unused:
        parts.append(tag("p", f"Left out: {', '.join(unused)}", class_="hint"))
    return tag("div", *parts, id="hosts")
