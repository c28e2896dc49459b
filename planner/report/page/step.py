"""Where the step goes: the parts one behind the other, and every pass of every rank."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import Seconds
from planner.report.page.facts import Facts
from planner.report.page.markup import (
    Markup,
    card,
    data_script,
    details,
    number,
    percent_of,
    table,
    tag,
)
from planner.report.tables import CAUSES
from planner.report.words import percent, seconds

IntArray = NDArray[np.int64]
MOST_PASSES = 6000  # of all ranks together
TICKS = 1_000_000  # start times are whole millionths of the step
CAUSE_OF = {
    "compute": "compute",
    "tp": "tensor-parallel",
    "cp": "context-parallel",
    "ep": "expert-parallel",
    "host": "kernel launches",
    "dp": "data-parallel",
}


def waterfall_card(facts: Facts) -> Markup:
    """Return the causes of the step time, largest first, each starting where the last ended."""
    estimate = facts.plan.estimate
    total, done, rows = estimate.step_time_s, 0.0, []
    parts = sorted(estimate.parts_s.items(), key=lambda part: -part[1])
    for name, part_s in parts:
        if part_s <= total * 1e-9:
            continue
        place = f"left:{percent_of(done, total)};width:{percent_of(part_s, total)}"
        rows.append(_cause(name, part_s, total, place))
        done += part_s
    rows.append(_cause("step", total, total, "left:0;width:100%"))
    head = tag(
        "tr",
        tag("th", "cause", scope="col"),
        tag("th", tag("span", "share of the step", class_="hidden"), scope="col"),
        tag("th", "time", scope="col", class_="right"),
        tag("th", "share", scope="col", class_="right"),
    )
    caption = tag("caption", "Step time by cause", class_="hidden")
    body = tag("table", caption, tag("thead", head), tag("tbody", *rows), class_="bars steps")
    lead = (
        "The step of the busiest pipeline rank. Communication counts only where compute does not "
        "hide it."
    )
    return card("step", "Where the step goes", lead, body)


def _cause(name: str, part_s: float, total_s: float, place: str) -> Markup:
    bar = tag("div", tag("i", class_=f"part c-{name}", style=place), class_="bar")
    return tag(
        "tr",
        tag("th", CAUSES.get(name, name), scope="row"),
        tag("td", bar, aria_hidden="true"),
        tag("td", number(part_s, seconds(part_s)), class_="right"),
        tag("td", percent(part_s / total_s), class_="right"),
        class_="total" if name == "step" else None,
    )


def timeline_card(facts: Facts) -> Markup:
    """Return the place where the page's script draws the pipeline, and its data."""
    passes = facts.passes
    data = timeline_data(facts)
    lead = (
        f"{passes.order.kind}: {passes.order.micro_batches} micro-batches through "
        f"{passes.order.stages} pipeline ranks"
        + (
            f" of {passes.order.chunks} chunks (every second one darker)"
            if passes.order.chunks > 1
            else ""
        )
        + ". Of each pipeline rank one GPU is shown; the others do the same at the same time."
    )
    if data["fold"]:
        folded = data["fold"][1] - data["fold"][0]
        lead += f" {seconds(folded * data['tick_s'])} of the steady state in the middle are folded."
    marks = (("f", "forward"), ("b", "backward"), ("t", "gradients, weights, optimizer"),
             ("critical", "critical path"))  # fmt: skip
    legend = tag(
        "ul", *(tag("li", tag("i", class_=f"t-{name}"), text) for name, text in marks),
        class_="legend",
    )  # fmt: skip
    return card(
        "timeline",
        "Pipeline timeline",
        lead,
        tag("div", legend, _buttons(), class_="toolbar"),
        tag(
            "div",
            class_="plot",
            id="passes",
            tabindex=0,
            role="application",
            aria_label="Pipeline timeline. Arrow keys walk through the passes and ranks, plus and "
            "minus zoom, 0 shows the whole step.",
        ),
        tag("p", class_="hint", id="passes-said", aria_live="polite"),
        tag("noscript", tag("p", "The timeline is drawn by a script in this page.")),
        _idle_table(facts),
        data_script("timeline-data", data),
    )


def _buttons() -> Markup:
    made = [
        tag("button", text, type="button", data_zoom=name, aria_label=label, title=label)
        for name, text, label in (
            ("in", "+", "Zoom in"),
            ("out", "\N{MINUS SIGN}", "Zoom out"),
            ("all", "whole step", "Show the whole step"),
        )
    ]
    path = tag("button", "critical path", type="button", id="critical", aria_pressed="true")
    return tag("div", *made, path, class_="buttons", role="group", aria_label="Timeline")


def timeline_data(facts: Facts) -> dict[str, Any]:
    """Return what the script draws: times in ticks, passes as (start, code, micro-batch).

    ``code`` is ``4 * virtual stage + 2 * critical + backward``. Passes between the two times of
    ``fold`` are left out.
    """
    costs, passes = facts.costs, facts.passes
    total_s = facts.timeline.step_time_s
    ticks = np.rint(passes.start_s / total_s * TICKS).astype(np.int64)
    stage = passes.order.virtual_stage()
    code = 4 * stage + 2 * facts.critical + passes.order.backward
    fold = _fold(ticks, int(passes.order.warm_up.max()))
    shown = np.ones_like(ticks, bool) if fold is None else (ticks < fold[0]) | (ticks >= fold[1])
    rows = [
        np.stack([ticks[r], code[r], passes.order.micro_batch[r]], axis=1)[shown[r]].ravel()
        for r in range(len(ticks))
    ]
    stages = [
        {
            "layers": [one.first_layer, one.layers],
            "own": [_ticks(cost.forward_s, total_s), _ticks(cost.backward_s, total_s)],
            "parts": [_parts(cost.forward), _parts(cost.backward)],
        }
        for one, cost in zip(facts.plan.stages, costs.costs, strict=True)
    ]
    return {
        "tick_s": total_s / TICKS,
        "ticks": TICKS,
        "fold": fold,
        "chunks": passes.order.chunks,
        "ranks": [row.tolist() for row in rows],
        "end": [_ticks(float(end), total_s) for end in passes.end_s[:, -1]],
        "tails": [
            [
                _ticks(part, total_s)
                for part in (costs.stall_s, one.gradients_s + one.weights_s, one.update_s)
            ]
            for one in costs.tails
        ],
        "stages": stages,
    }


def _ticks(value_s: float, total_s: float) -> int:
    return round(value_s / total_s * TICKS)


def _parts(cost: Seconds) -> dict[str, float]:
    """Return the seconds of one pass by cause, those that take any."""
    named = zip(Seconds._fields, cost, strict=True)
    return {CAUSE_OF[name]: float(f"{part_s:.4g}") for name, part_s in named if part_s > 0}


def _fold(starts: IntArray, warm_up: int) -> list[int] | None:
    """Return the times between which passes are left out, or None if few would be.

    Both ends keep the warm-up or cool-down of the pipeline and some of the steady state, in which
    the same few passes repeat; of a pipeline with more than ``MOST_PASSES`` there, only the ends.
    """
    half = min(MOST_PASSES // 2, len(starts) * (3 * warm_up // 2 + 12))
    if starts.size < 3 * half:
        return None
    in_order = np.sort(starts, axis=None)
    return [int(in_order[half]), int(in_order[-half])]


def _idle_table(facts: Facts) -> Markup:
    passes, total_s = facts.passes, facts.timeline.step_time_s
    busy = (passes.end_s - passes.start_s).sum(axis=1)
    rows = []
    for rank, (busy_s, tail) in enumerate(zip(busy, facts.costs.tails, strict=True)):
        tail_s = tail.total
        idle = max(0.0, 1 - (float(busy_s) + tail_s) / total_s)
        rows.append([str(rank), seconds(float(busy_s)), seconds(tail_s), percent(idle)])
    titles = ["rank", "passes", "gradients, weights, optimizer", "idle"]
    return details("Busy and idle time of each rank", table("Busy and idle time", titles, rows))
