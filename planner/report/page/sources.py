"""How far the numbers can be trusted, where they come from, and what to type."""

import shlex
from pathlib import Path

from planner import __version__
from planner.plan import Plan
from planner.report.certainty import stability_lines
from planner.report.page.markup import Markup, card, details, table, tag
from planner.report.tables import next_steps
from planner.report.words import interval


def sources_card(plan: Plan) -> Markup:
    """Return what the interval means, and the source of every value of GPU and cluster."""
    estimate = plan.estimate
    low, high = (
        100 * (end / estimate.step_time_s - 1)
        for end in (estimate.step_time_low_s, estimate.step_time_high_s)
    )
    span = interval(estimate.step_time_low_s, estimate.step_time_high_s)
    text = (
        f"All numbers are estimates. The interval of the step time, {span} "
        f"({low:+.0f} % to {high:+.0f} %), is where about four of five measured runs of such "
        "layouts lie against their estimate; it is wider where tensor parallelism or a pipeline "
        "crosses machines and where experts are exchanged. A value that planner profile measured "
        "on your machines replaces the shipped one."
    )
    rows: list[list[str]] = []
    for what, known in (("GPU", plan.cluster.gpu.sources), ("cluster", plan.cluster.sources)):
        for field, source in known.items():
            kind = "measured here" if "measured on " in source else "shipped"
            rows.append([f"{what}: {field}", kind, source])
    listed = table("Source of each value", ["value", "", "source"], rows) if rows else Markup()
    more = details(f"Sources of {len(rows)} values", listed) if rows else Markup()
    firm = [tag("p", line, class_="firm") for line in stability_lines(plan)]
    return card("sources", "How sure this is", text, *firm, more)


def commands_card(plan: Plan, file: Path) -> Markup:
    """Return the commands that make the plan again, look into it, and start it."""
    name = shlex.quote(str(file))
    rows = [("Make this plan again", plan.command)] if plan.command else []
    rows.append(("Make this page again", f"planner report {name} --output report.html"))
    rows += [
        ("Where the memory goes, and what would lower it", f"planner explain memory {name}"),
        ("Where the time goes, and what would be faster", f"planner explain speed {name}"),
        ("The step as a trace for Perfetto", f"planner simulate {name} --trace step.json.gz"),
    ]
    steps = next_steps(plan, file)
    rows += zip(("Write the launch files", "Start"), steps, strict=False)
    items = [
        tag(
            "li",
            tag("span", text),
            tag("pre", tag("code", command), tabindex=0),
            tag("button", "copy", type="button", data_copy=command, aria_label=f"Copy: {text}"),
        )
        for text, command in rows
    ]
    return card("commands", "Commands", "", tag("ol", *items, class_="commands"))


def footer() -> Markup:
    """Return who made the page."""
    return tag("footer", f"planner {__version__}; this page loads nothing from anywhere.")
