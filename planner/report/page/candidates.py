"""What the answer was compared with: time against memory, and why other families lost."""

import math
from dataclasses import dataclass, replace

from planner.plan import CandidateRecord, Plan
from planner.report.page.markup import Markup, card, details, number, percent_of, table, tag
from planner.report.tables import search_line
from planner.report.words import gib, seconds

LOG_FROM = 4.0  # slowest ÷ fastest; beyond, the time axis is logarithmic
KINDS = {
    "best": "the plan",
    "next": "next best",
    "family": "best of another family",
    "simulated": "other simulated layouts, with equal stages",
}
FRONT = "no other has both less time and less memory"


@dataclass(frozen=True, slots=True)
class Dot:
    """One layout with its time and memory."""

    kind: str
    name: str
    step_time_s: float
    memory_bytes: float
    why: str = ""
    front: bool = False  # no other is better in both

    @property
    def tip(self) -> str:
        """What pointing at it says."""
        first = f"{self.name}: {seconds(self.step_time_s)}, {gib(self.memory_bytes)} GiB"
        more = [self.why] if self.why else []
        return "\n".join([first, *more, *([FRONT] if self.front else [])])


def dots(plan: Plan) -> list[Dot]:
    """Return every layout of the plan that has a time and a memory, each once, the best last."""
    best, estimate = plan.to_layout().label(), plan.estimate
    found = [Dot("best", best, estimate.step_time_s, estimate.memory_bytes, "the plan")]
    found += [dot for one in plan.alternatives if (dot := _dot("next", one.label, one))]
    for one in plan.lost:
        layout, _, why = one.reason.partition(": ")
        if dot := _dot("family", layout, one, f"{one.label}: {why}"):
            found.append(dot)
    found += [
        Dot("simulated", one.label, one.step_time_s, one.memory_bytes)
        for one in (*plan.simulated, *plan.pareto)
    ]
    front = {one.label for one in plan.pareto}
    names: dict[str, Dot] = {}
    for dot in found:
        names.setdefault(dot.name, replace(dot, front=dot.name in front))
    return list(names.values())[::-1]


def _dot(kind: str, name: str, one: CandidateRecord, why: str | None = None) -> Dot | None:
    if one.step_time_s is None or one.memory_bytes is None:
        return None
    return Dot(kind, name, one.step_time_s, one.memory_bytes, one.reason if why is None else why)


def candidates_card(plan: Plan) -> Markup:
    """Return the scatter of all layouts that were timed, and the list of families that lost."""
    shown = dots(plan)
    kinds = [kind for kind in KINDS if any(dot.kind == kind for dot in shown)]
    legend = tag(
        "ul",
        *(tag("li", tag("i", class_=f"dot d-{kind}"), KINDS[kind]) for kind in kinds),
        class_="legend",
    )
    if any(dot.front for dot in shown):
        legend = Markup(legend.removesuffix("</ul>") + tag("li", tag("i", class_="front"), FRONT))
        legend = Markup(legend + "</ul>")
    parts = [legend, _scatter(plan, shown)] if len(shown) > 1 else []
    return card(
        "candidates", "Other layouts", search_line(plan) + ".", *parts, _next_table(plan),
        _lost(plan), _all_table(shown),
    )  # fmt: skip


def _scatter(plan: Plan, shown: list[Dot]) -> Markup:
    times = [dot.step_time_s for dot in shown]
    sizes = [*(dot.memory_bytes for dot in shown), plan.estimate.capacity_bytes]
    x = Axis(min(times), max(times), max(times) > LOG_FROM * min(times))
    y = Axis(min(sizes), max(sizes), False)
    marks = [
        tag(
            "i",
            class_=f"dot d-{dot.kind}" + (" on-front" if dot.front else ""),
            style=f"left:{x.at(dot.step_time_s)};bottom:{y.at(dot.memory_bytes)}",
            role="listitem",
            tabindex=0 if dot.kind == "best" else -1,
            data_tip=dot.tip,
            aria_label=dot.tip.replace("\n", ", "),
        )
        for dot in shown
    ]
    capacity = plan.estimate.capacity_bytes
    line = tag(
        "div", tag("span", f"capacity {gib(capacity)} GiB"), class_="line",
        style=f"bottom:{y.at(capacity)}",
    )  # fmt: skip
    ticks = [
        *(tag("span", seconds(v), class_="tick x", style=f"left:{x.at(v)}") for v in x.ticks()),
        *(tag("span", gib(v), class_="tick y", style=f"bottom:{y.at(v)}") for v in y.ticks()),
    ]
    layouts = tag("div", *marks, role="list", aria_label="Layouts by step time and memory")
    inner = tag("div", line, _front(shown, x, y), layouts, *ticks, class_="area")
    names = (
        tag("span", "memory of the fullest GPU, GiB", class_="name y"),
        tag("span", "step time" + (" (logarithmic)" if x.log else ""), class_="name x"),
    )
    return tag("div", *names, inner, class_="scatter")


def _front(shown: list[Dot], x: "Axis", y: "Axis") -> Markup:
    """Return a line along the layouts that no other beats in both."""
    ends = sorted((dot.step_time_s, dot.memory_bytes) for dot in shown if dot.front)
    if len(ends) < 2:
        return Markup()
    points = " ".join(f"{100 * x.share(s):.2f},{100 - 100 * y.share(b):.2f}" for s, b in ends)
    line = tag("polyline", points=points, vector_effect="non-scaling-stroke")
    return tag("svg", line, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true")


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values along one side of a plot, with a little room at both ends."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return 0.04 + 0.92 * (at - low) / (high - low) if high > low else 0.5

    def at(self, value: float) -> str:
        """Return the share as CSS writes it."""
        return percent_of(self.share(value), 1)

    def ticks(self) -> list[float]:
        """Return the values to label: four at equal distance."""
        if self.high <= self.low:
            return [self.low]
        steps = [number / 3 for number in range(4)]
        if self.log:
            return [self.low * (self.high / self.low) ** step for step in steps]
        return [self.low + (self.high - self.low) * step for step in steps]


def _next_table(plan: Plan) -> Markup:
    if not plan.alternatives:
        return Markup()
    rows = [_cells(one.label, one.step_time_s, one.memory_bytes, one.reason)
            for one in plan.alternatives]  # fmt: skip
    titles = ["layout", "step", "memory GiB", "against the plan"]
    return table("Next best layouts", titles, rows)


def _all_table(shown: list[Dot]) -> Markup:
    if len(shown) < 2:
        return Markup()
    in_order = sorted(shown, key=lambda dot: dot.step_time_s)
    rows = [
        _cells(dot.name, dot.step_time_s, dot.memory_bytes,
               "; ".join(filter(None, (dot.why, FRONT if dot.front else ""))))
        for dot in in_order
    ]  # fmt: skip
    titles = ["layout", "step", "memory GiB", ""]
    return details(f"All {len(rows)} as a table", table("Layouts with a time", titles, rows))


def _cells(name: str, step_s: float | None, size: float | None, why: str) -> list[str]:
    step = "" if step_s is None else number(step_s, seconds(step_s))
    return [name, step, "" if size is None else number(size, gib(size)), why]


def _lost(plan: Plan) -> Markup:
    if not plan.lost:
        return Markup()
    items = [tag("li", tag("b", one.label), " ", one.reason) for one in plan.lost]
    return tag(
        "div", tag("h3", "Why other families lost"), tag("ul", *items, class_="lost"), id="lost"
    )
