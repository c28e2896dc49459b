"""``planner calibrate``: fit a few factors to your own measured runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, show, working


def calibrate(
    runs: Annotated[
        Path,
        typer.Argument(help="Measured runs, CSV or JSON lines (docs/calibrate.md).",
                       metavar="RUNS"),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(help="A shipped name (planner clusters) or a YAML file; default: the machine "
                     "of --profile.", metavar="SPEC"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model of lines that name none.", metavar="MODEL")
    ] = None,
    target: Annotated[
        str, typer.Option(help="What ran lines that name none: torch, megatron, ...",
                          metavar="NAME")
    ] = "auto",
    profile: Annotated[
        Path | None,
        typer.Option(help="Measurements of your machine to start from.", metavar="FILE"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the factors to this file.", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:  # fmt: skip
    """Fit a few factors to runs that you measured.

    recommend, check and explain take them as --calibration.
    """
    from statistics import median

    from planner.cli.request import chosen_cluster
    from planner.cli.runs_file import Context, read_runs
    from planner.report.calibration import calibration_report
    from planner.spec.calibration import Calibration
    from planner.validate.calibrate import calibrate as fitted

    check_free(output, force)
    machines = chosen_cluster(cluster, None, profile)
    found = read_runs(runs, Context(machines, model, target))
    with working(f"fitting factors to {len(found)} runs"):
        fit = fitted(found)
    written = Calibration(
        gpu=machines.gpu.name,
        factors=fit.factors,
        runs=len(found),
        error_before=median(fit.before),
        error_after=median(fit.left_out) if fit.left_out else None,
        source=runs.name,
    )
    text = written.model_dump_json(indent=1)
    if output is not None:
        save(output, text + "\n")
        note(f"calibration written to {output}; use it with --calibration {output}")
    if as_json:
        lines = zip(found, fit.before, fit.left_out or fit.after, strict=True)
        listed = [{"run": run.name, "before": was, "after": now} for run, was, now in lines]
        typer.echo(json.dumps(json.loads(text) | {"errors": listed}, indent=1))
    else:
        show(calibration_report(found, fit))
