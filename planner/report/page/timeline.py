"""The pipeline timeline: every pass of every pipeline rank, for the page's script to draw."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import Seconds
from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, card, data_script, details, table, tag
from planner.report.simulated import WORDS
from planner.report.words import seconds
from planner.simulate.slices import TAIL, Slice
from planner.simulate.step import StageCost

IntArray = NDArray[np.int64]
MOST_PASSES = 12_000  # of all ranks together
TICKS = 1_000_000  # start times are whole millionths of the step
KINDS = {"F": "forward", "B": "backward", "W": "weight gradient"}
CAUSE_OF = {
    "compute": "compute",
    "tp": "tensor-parallel",
    "cp": "context-parallel",
    "ep": "expert-parallel",
    "host": "kernel launches",
    "dp": "data-parallel",
    "offload": "offload",
}


def timeline_card(facts: Facts) -> Markup:
    """Return the place where the page's script draws the pipeline, and its data."""
    layout, costs = facts.timeline.layout, facts.costs
    data = timeline_data(facts)
    each = data["chunks"]
    chunks = f" of {each} chunks (every second one darker)" if each > 1 else ""
    lead = (
        f"{facts.plan.schedule}: {costs.micro_batches} micro-batches through {layout.pp} pipeline "
        f"ranks{chunks}. Of each pipeline rank one GPU is shown; the others do the same at the "
        "same time."
    )
    if data["fold"]:
        folded = data["fold"][1] - data["fold"][0]
        what = "the steady state in the middle"
        if data["cut"]:
            what = "the middle, with a part of warm-up and cool-down,"
        lead += f" {seconds(folded * data['tick_s'])} of {what} are folded."
    return card(
        "timeline",
        "Pipeline timeline",
        lead,
        tag("div", _legend(facts), _buttons(), class_="toolbar"),
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
        _causes_table(facts),
        data_script("timeline-data", data),
    )


def _legend(facts: Facts) -> Markup:
    kinds = {piece.kind for piece in facts.timeline.slices}
    marks = [(kind.lower(), name) for kind, name in KINDS.items() if kind in kinds]
    marks += [("t", "gradients, optimizer, weights"), ("critical", "critical path")]
    items = (tag("li", tag("i", class_=f"t-{name}"), text) for name, text in marks)
    return tag("ul", *items, class_="legend")


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

    ``code`` is ``6 * virtual stage + 3 * critical + kind``, kinds as ``KINDS``. Passes between the
    two times of ``fold`` are left out; ``cut`` says whether some of warm-up or cool-down is.
    """
    found, total_s = facts.timeline, facts.timeline.step_time_s
    critical = set(found.path)
    ranks: list[list[tuple[int, int, int]]] = [[] for _ in range(found.layout.pp)]
    tails: list[list[Slice]] = [[] for _ in ranks]
    for place, piece in enumerate(found.slices):
        if piece.kind in KINDS:
            stage = facts.costs.held[piece.rank][piece.chunk]
            code = 6 * stage + 3 * (place in critical) + "FBW".index(piece.kind)
            ranks[piece.rank].append((_ticks(piece.start_s, total_s), code, piece.micro_batch))
        elif piece.kind in TAIL:
            tails[piece.rank].append(piece)
    rows = [np.array(row) for row in ranks]
    fold = _fold(rows)
    return {
        "tick_s": total_s / TICKS,
        "ticks": TICKS,
        "fold": fold,
        "cut": _cuts_ends(rows, fold),
        "chunks": max(map(len, facts.costs.held)),
        "held": facts.costs.held,
        "kinds": list(KINDS.values()),
        "ranks": [_shown(row, fold).ravel().tolist() for row in rows],
        "tails": [[_tail(piece, total_s) for piece in own] for own in tails],
        "critical_rank": found.critical_rank,
        "stages": [
            {
                "layers": [one.first_layer, one.layers],
                "own": [_ticks(own_s, total_s) for own_s in cost.seconds],
                "parts": _parts(cost),
            }
            for one, cost in zip(facts.plan.stages, facts.costs.costs, strict=True)
        ],
    }


def _ticks(value_s: float, total_s: float) -> int:
    return round(value_s / total_s * TICKS)


def _tail(piece: Slice, total_s: float) -> list[Any]:
    """Return (name, start, length) of something after the last pass."""
    length_s = piece.end_s - piece.start_s
    return [piece.name, _ticks(piece.start_s, total_s), _ticks(length_s, total_s)]


def _parts(cost: StageCost) -> list[dict[str, float]]:
    """Return for each kind of pass its seconds by cause, those that take any."""
    return [
        {
            CAUSE_OF[name]: float(f"{part_s:.4g}")
            for name, part_s in zip(Seconds._fields, one, strict=True)
            if part_s > 0
        }
        for one in (cost.forward, cost.backward, cost.weight)
    ]


def _fold(rows: list[IntArray]) -> list[int] | None:
    """Return the times between which passes are left out, or None if few would be.

    Both ends keep the warm-up or cool-down of the pipeline and some of the steady state, in which
    the same few passes repeat; of a pipeline with more than ``MOST_PASSES`` there, only their
    beginning and end.
    """
    starts = np.sort(np.concatenate([row[:, 0] for row in rows]))
    warm_up = max(int((row[:, 1] % 3 != 0).argmax()) for row in rows)
    half = min(MOST_PASSES // 2, len(rows) * (3 * warm_up // 2 + 12))
    if len(starts) < 3 * half:
        return None
    return [int(starts[half]), int(starts[-half])]


def _cuts_ends(rows: list[IntArray], fold: list[int] | None) -> bool:
    """Whether a rank's first backward or last forward pass is folded away."""
    if fold is None:
        return False
    first = max(int(row[(row[:, 1] % 3 != 0).argmax(), 0]) for row in rows)
    last = min(int(row[row[:, 1] % 3 == 0][-1, 0]) for row in rows)
    return first >= fold[0] or last < fold[1]


def _shown(row: IntArray, fold: list[int] | None) -> IntArray:
    """Return the passes of a rank that are not folded away."""
    if fold is None:
        return row
    return row[(row[:, 0] < fold[0]) | (row[:, 0] >= fold[1])]


def _causes_table(facts: Facts) -> Markup:
    """Return where the step of each pipeline rank goes, in the causes that take any time."""
    found = facts.timeline
    least_s = 1e-9 * found.step_time_s
    causes = [name for name in WORDS if any(rank[name] > least_s for rank in found.causes_s)]
    rows = [
        [str(rank), *(seconds(max(0.0, parts[name])) for name in causes)]
        for rank, parts in enumerate(found.causes_s)
    ]
    titles = ["rank", *(WORDS[name] for name in causes)]
    shown = table("Where the step of each pipeline rank goes", titles, rows)
    return details("Where the step of each rank goes", shown)
