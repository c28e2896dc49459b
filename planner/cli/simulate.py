"""``planner simulate``: the step of a plan on a time axis, as a trace and in words."""

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, show


def simulate(
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write the timeline for Perfetto or chrome://tracing; .gz compresses it.",
            metavar="FILE",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --trace.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Simulate one step of a plan: where each second goes, and what the step waits for."""
    from planner.cli.question import of_plan
    from planner.cost.layer import Prices
    from planner.errors import LayoutError
    from planner.plan import Plan
    from planner.report.simulated import simulated_json, simulated_report
    from planner.report.trace import trace_bytes
    from planner.schedule.kinds import schedule_name
    from planner.simulate.timeline import step_timeline
    from planner.spec.files import load

    check_free(trace, force)
    document = load(Plan, plan)
    question = of_plan(document)
    if problems := question.problems():
        raise LayoutError([f"{plan}: {problem}" for problem in problems])
    layout = question.layout
    prices = Prices(question.model, question.cluster, question.job)
    timeline = step_timeline(prices, layout, question.split)
    if trace is not None:
        title = f"{document.model.name} {layout.label()}, one step, estimated"
        save(trace, trace_bytes(timeline, title, trace))
        note(f"trace written to {trace}; open it at https://ui.perfetto.dev")
    if as_json:
        typer.echo(json.dumps(simulated_json(timeline, schedule_name(layout)), indent=1))
    else:
        show(simulated_report(timeline, schedule_name(layout)))
