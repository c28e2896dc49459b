"""Where the step goes: its parts, one behind the other."""

from planner.report.certainty import partition_line
from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, card, number, percent_of, tag
from planner.report.tables import CAUSES
from planner.report.words import percent, seconds


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
    stages = partition_line(facts.plan)
    note = tag("p", stages, class_="hint", id="partition") if stages else Markup()
    return card("step", "Where the step goes", lead, body, note)


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
