"""``planner export``: a plan as a folder that trains it."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import note
from planner.errors import SpecError


def export(
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="DIR")],
    target: Annotated[
        str, typer.Option(help="torch: a program for torchrun and Slurm.", metavar="NAME")
    ] = "torch",
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds files.")
    ] = False,
) -> None:
    """Write a plan as a folder that trains it."""
    from planner.formats.torch_launcher import write_bundle
    from planner.plan import Plan
    from planner.report.tables import launch_lines
    from planner.spec.files import load

    if target != "torch":
        raise SpecError(f"--target: {target!r} cannot be exported yet; use torch")
    document = load(Plan, plan)
    files = write_bundle(document, output, overwrite=force)
    note(f"{len(files)} files written to {output}")
    for line in launch_lines(document, output):
        typer.echo(line)
