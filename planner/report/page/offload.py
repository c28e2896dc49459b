"""What leaves the GPUs: bytes on every node, and the use of the links to them."""

from planner.report.host import host_nodes, host_rows
from planner.report.offload import wear_lines
from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, card, join, number, table, tag
from planner.report.words import gib, offload_parts, percent, seconds
from planner.simulate.offload import OffloadFacts, offload_facts
from planner.units import GB

MOST_ROWS = 32


def offload_card(facts: Facts) -> Markup:
    """Return the bytes of each node and the rates; nothing where all stays on the GPUs."""
    plan = facts.plan
    layout, split = plan.to_layout(), plan.to_split()
    nodes = host_nodes(facts.memory, layout, plan.cluster)
    if not nodes:
        return Markup()
    moved = offload_facts(facts.prices, layout, split, facts.timeline.step_time_s)
    kept = ", ".join(offload_parts(plan.layout))
    lead = f"{kept[0].upper()}{kept[1:]}. {' '.join(wear_lines(moved)) if moved else ''}".strip()
    titles, rows = host_rows(nodes)
    notes: list[str] = [_capacity(facts)]
    if len(rows) > MOST_ROWS:
        notes.append(f"{len(rows) - MOST_ROWS} more rows are left out.")
    return card(
        "offload",
        "Away from the GPUs",
        lead,
        _use(facts, moved),
        table("What each node holds, GiB", titles, rows[:MOST_ROWS]),
        tag("p", join(*(part for note in notes for part in (note, " "))), class_="hint"),
    )


def _capacity(facts: Facts) -> Markup:
    cluster = facts.plan.cluster
    parts: list[str] = []
    if cluster.host:
        size = cluster.host.memory_bytes
        parts += ["A node has ", number(size, gib(size)), " GiB of memory"]
        if cluster.ssd:
            room = cluster.ssd.capacity_bytes
            parts += [" and ", number(room, gib(room)), " GiB of drives"]
    return join(*parts, ".")


def _use(facts: Facts, moved: OffloadFacts | None) -> Markup:
    """Return what crosses the link between a GPU and its host, and what of it is waited for."""
    exposed_s = facts.plan.estimate.parts_s.get("offload", 0.0)
    share = percent(exposed_s / facts.plan.estimate.step_time_s)
    rows: list[list[str]] = []
    if moved:
        need, rate = moved.needed_bytes_per_s, moved.store_bytes_per_s
        size = moved.moved_bytes
        rows += [
            ["activations per GPU and step, each way", join(number(size, gib(size)), " GiB")],
            ["rate that needs, each way", join(number(need, f"{need / GB:.1f}"), " GB/s")],
            ["rate of the link per GPU", join(number(rate, f"{rate / GB:.1f}"), " GB/s")],
            ["use of the link", percent(need / rate)],
        ]
    rows.append(["exposed in the step", join(number(exposed_s, seconds(exposed_s)), f" ({share})")])
    return table("Links between GPUs and hosts", ["what", "value"], rows)
