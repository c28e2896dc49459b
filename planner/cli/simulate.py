"""``planner simulate``: the step of a plan on a time axis, as a trace and in words."""

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, show, working


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
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Another schedule than the plan's (docs/schedules.md), or a CSV or JSON file of "
            "one.",
            metavar="NAME|FILE",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --trace.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Simulate one step of a plan, as a trace and in words.

    Where each second goes, and what the step waits for; of another schedule also whether it fits.
    """
    from planner.cli.question import of_plan
    from planner.cli.rescheduled import rescheduled
    from planner.cost.layer import Prices
    from planner.errors import LayoutError
    from planner.plan import Plan
    from planner.report.memory import check_sentence, checked
    from planner.report.simulated import simulated_json, simulated_report
    from planner.report.trace import trace_bytes
    from planner.schedule.kinds import schedule_name
    from planner.simulate.timeline import step_timeline
    from planner.spec.files import load

    check_free(trace, force)
    document = load(Plan, plan)
    question = of_plan(document, mixed=True)
    if problems := question.problems():
        raise LayoutError([f"{plan}: {problem}" for problem in problems])
    layout, split, order = question.layout, question.split, None
    if schedule is not None:
        other = rescheduled(schedule, layout, document.to_split(), question.job)
        layout, split, order = other.layout, other.split, other.order
        if other.changed_stages:
            note(f"the layers are split evenly over {layout.pp * layout.vpp} stages")
    name = schedule or schedule_name(layout)
    prices = Prices(question.model, question.cluster, question.job)
    with working(f"simulating one step on {layout.gpus} GPUs"):
        timeline = step_timeline(prices, layout, split, order)
    if trace is not None:
        title = f"{document.model.name} {layout.label()}, one step, estimated"
        save(trace, trace_bytes(timeline, title, trace))
        note(f"trace written to {trace}; open it at https://ui.perfetto.dev")
    memory = checked(question.model, question.cluster, question.job, layout, split, [], order)
    if as_json:
        typer.echo(json.dumps(simulated_json(timeline, name, memory), indent=1))
    else:
        fits = check_sentence(memory) if schedule else ""
        show(simulated_report(timeline, name, fits))
