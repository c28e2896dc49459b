"""The answers of ``planner min-gpus``, ``max-seq`` and ``replan``."""

import json
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Plan
from planner.report.layout import column_table, section
from planner.report.tables import answer_line, search_line
from planner.report.words import gib, layout_words, percent, seconds
from planner.search.questions import Found


def found_report(found: Found, unit: str) -> Group:
    """Return the size that was asked for, the plan on it, and what was tried."""
    largest = found.tried[-1]
    if found.plan is None:
        least = min((one.needed_bytes for one in found.tried if one.needed_bytes), default=0.0)
        said = f"needs {gib(least)} GiB at least" if least else "has no legal layout"
        parts: list[RenderableType] = [
            Text(f"Nothing fits up to {largest.size:,} {unit}: the fullest GPU {said}, "
                 f"{gib(found.limit_bytes)} GiB may be used", style="bold"),
            Text("planner recommend with the same options lists the cheapest changes that help"),
        ]  # fmt: skip
    else:
        what = "Fewest" if unit == "GPUs" else "Longest"
        size = f"{what}: {found.size:,} {unit}"
        parts = [Text(size, style="bold"), Text(answer_line(found.plan), style="bold")]
    parts.append(section("Tried", _tried_table(found, unit)))
    if found.plan is not None:
        parts += [Text(), Text(search_line(found.plan))]
    return Group(*parts)


def _tried_table(found: Found, unit: str) -> Table:
    table = column_table((unit, "right"), ("least GiB", "right"), ("", "left"))
    for one in found.tried:
        size = gib(one.needed_bytes) if one.needed_bytes else "-"
        short = f"{gib(one.needed_bytes - found.limit_bytes)} GiB short"
        said = "fits" if one.fits else short if one.needed_bytes else "no legal layout"
        table.add_row(f"{one.size:,}", size, said)
    return table


def found_json(found: Found, unit: str) -> str:
    """Return the same as JSON; ``plan`` is null where nothing fits."""
    plan = found.plan and found.plan.model_dump(mode="json")
    tried = [asdict(one) for one in found.tried]
    return json.dumps(
        {"fits": plan is not None, unit.lower(): found.size, "limit_bytes": found.limit_bytes,
         "tried": tried, "plan": plan},
        indent=1,
    )  # fmt: skip


def replanned_report(old: Plan, best: Plan, same: Plan | None) -> Group:
    """Return the new plan beside the old one, and the best that keeps the cut of the weights."""
    table = column_table(
        ("", "left"), ("GPUs", "right"), ("layout", "left"), ("step", "right"),
        ("tokens/s", "right"), ("memory GiB", "right"),
    )  # fmt: skip
    rows = (("before", old), ("now", best), ("same cut", same))
    for name, plan in rows:
        if plan is None:
            continue
        gpus = len(plan.rank_map)
        estimate = plan.estimate
        table.add_row(
            name, f"{gpus:,}", layout_words(plan.layout), seconds(estimate.step_time_s),
            f"{estimate.tokens_per_s_per_gpu * gpus:,.0f}", gib(estimate.memory_bytes),
        )  # fmt: skip
    parts: list[RenderableType] = [Text(answer_line(best), style="bold"),
                                   section("Before and now", table), Text()]  # fmt: skip
    return Group(*parts, Text(_cut_said(old, best, same)), Text(search_line(best)))


def _cut_said(old: Plan, best: Plan, same: Plan | None) -> str:
    cut = ("tp", "pp", "vpp", "ep", "etp")
    if all(getattr(old.layout, name) == getattr(best.layout, name) for name in cut):
        return "Weights are cut as before: only data parallelism, context and micro-batch change."
    if same is None:
        return "No layout that cuts weights as before fits: the checkpoint must be cut anew."
    slower = same.estimate.step_time_s / best.estimate.step_time_s - 1
    return f"Cutting weights as before is {percent(slower)} slower and needs no new checkpoint."


def replanned_json(best: Plan, same: Plan | None) -> str:
    """Return both plans as JSON."""
    return json.dumps(
        {"plan": best.model_dump(mode="json"),
         "same_cut": same and same.model_dump(mode="json")}, indent=1,
    )  # fmt: skip
