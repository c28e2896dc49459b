"""``planner tune``: run a few plans for a few steps, keep the fastest measured one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, show, working


def tune(
    plans: Annotated[
        list[Path],
        typer.Argument(help="Files that planner recommend wrote.", metavar="PLAN..."),
    ],
    top: Annotated[
        int,
        typer.Option(min=1, help="Run so many of the best layouts of each plan's question.",
                     metavar="K"),
    ] = 1,
    steps: Annotated[int, typer.Option(min=3, help="Steps of each run; two settle.",
                                               metavar="N")] = 6,
    backend: Annotated[
        str, typer.Option(help="nccl, gloo (CPUs) or auto.", metavar="NAME")
    ] = "auto",
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Run nothing: read the log of each plan, in their order (Megatron-LM, "
                     "torchtitan, DeepSpeed, launcher).", metavar="FILE"),
    ] = None,
    timeout: Annotated[
        str, typer.Option(help="Most time of one run.", metavar="TIME")
    ] = "1800s",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the fastest measured plan.", metavar="FILE"),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Write the runs as planner calibrate reads them, CSV.", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:  # fmt: skip
    """Run plans for a few steps and keep the fastest measured.

    Each is compared with its estimate.
    """
    from planner.cli.output import option
    from planner.errors import SpecError
    from planner.plan import Plan
    from planner.spec.files import load
    from planner.tune.candidates import best_plans
    from planner.tune.compare import Trial, best, runs_csv
    from planner.tune.logs import read_log
    from planner.tune.report import as_json as plain
    from planner.tune.report import tune_report
    from planner.tune.run import run_plan
    from planner.units import parse_seconds

    timeout_s = option("--timeout", parse_seconds, timeout)
    for file in (output, runs):
        check_free(file, force)
    given = [load(Plan, file) for file in plans]
    if log and (len(log) != len(given) or top > 1):
        raise SpecError(
            f"--log: {len(log)} logs for {len(given)} plans; give one for each, in order"
        )
    if log:
        pairs = zip(given, log, strict=True)
        trials = [Trial(plan, read_log(file, plan)) for plan, file in pairs]
    else:
        chosen = [one for plan in given for one in (best_plans(plan, top) if top > 1 else [plan])]
        trials = []
        for number, plan in enumerate(chosen, 1):
            note(f"{number}/{len(chosen)}: {plan.to_layout().label()}, {steps} steps")
            with working(f"training {plan.to_layout().label()}", timeout_s):
                trials.append(Trial(plan, run_plan(plan, steps, backend, timeout_s)))
    if output is not None:
        save(output, best(trials).plan.model_dump_json(indent=1) + "\n")
        note(f"fastest measured plan written to {output}")
    if runs is not None:
        save(runs, runs_csv(trials))
        note(f"runs written to {runs}: planner calibrate {runs} --cluster ...")
    if as_json:
        typer.echo(json.dumps(plain(trials), indent=1))
    else:
        show(tune_report(trials))
