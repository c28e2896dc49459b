"""``planner export``: a plan as a folder that trains it."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import note


def export(
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="DIR")],
    target: Annotated[
        str,
        typer.Option(
            help="torch (a program of its own), megatron, nemo, torchtitan, deepspeed, accelerate "
            "or nanotron.",
            metavar="NAME",
        ),
    ] = "torch",
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds files.")
    ] = False,
) -> None:
    """Write a plan as a folder that trains it.

    With torch alone, or with another framework and its launch files.
    """
    from planner.formats.bundle import EXPORTS, export_plan
    from planner.formats.torch_launcher import write_bundle
    from planner.plan import Plan
    from planner.report.tables import launch_lines
    from planner.spec.files import load

    document = load(Plan, plan)
    if target != "torch":
        files, lost = export_plan(document, target, output, overwrite=force)
        note(f"{len(files)} files written to {output}")
        for what in lost:
            note(f"not carried over: {what}")
        script = EXPORTS[target].script
        started = launch_lines(document, output, script) if script else []
        for line in started or [str(output / EXPORTS[target].config)]:
            typer.echo(line)
        return
    files = write_bundle(document, output, overwrite=force)
    note(f"{len(files)} files written to {output}")
    for line in launch_lines(document, output):
        typer.echo(line)
