"""``planner explain speed``: where the time of one layout goes, from the card's peak down."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.layout_options import Json, Model, Stated, with_layout
from planner.cli.output import option, show

if TYPE_CHECKING:
    from planner.cli.question import Question
    from planner.report.speed import Explained


@with_layout
def explain_speed(
    model: Model,
    stated: Stated,
    measured: Annotated[
        str | None,
        typer.Option(help="Step time of your run, like 13.6s: how much is not explained.",
                     metavar="TIME"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show what keeps one layout from the card's peak.

    From the peak down to the step, cause by cause, and the changes that make it faster.
    """
    from planner.report.speed import speed_json, speed_report

    measured_s = None if measured is None else option("--measured", _positive_s, measured)
    question = stated.question(model)
    found = _explained(question, measured_s)
    if as_json:
        typer.echo(json.dumps(speed_json(found), indent=1))
    else:
        show(speed_report(found))


def _positive_s(text: str) -> float:
    from planner.units import parse_seconds

    seconds = parse_seconds(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no step time; write a duration above zero, like '13.6s'")
    return seconds


def _explained(question: "Question", measured_s: float | None) -> "Explained":
    from planner.cost.layer import Prices
    from planner.errors import LayoutError
    from planner.report.offload import offload_lines
    from planner.report.speed import Explained
    from planner.search.faster import faster_changes
    from planner.search.placed import slow_links
    from planner.simulate.step import estimate_step
    from planner.simulate.waterfall import waterfall

    if problems := question.problems():
        raise LayoutError(problems)
    prices = Prices(question.model, question.cluster, question.job)
    step = estimate_step(prices, question.layout, question.split)
    changes = faster_changes(prices, question.layout, question.target, question.split)
    slow = slow_links(question.cluster, question.cluster, question.layout)
    notes = tuple(offload_lines(prices, question.layout, question.split))
    return Explained(
        step, question.cluster, waterfall(prices, step), changes, measured_s, slow, notes
    )
