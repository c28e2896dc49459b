"""``planner validate``: estimates against runs that somebody really made."""

import time
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, show, working


def validate(
    files: Annotated[
        list[Path], typer.Argument(help="Measured runs, CSV (docs/validate.md).", metavar="FILE...")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--json",
            help="Write every estimate, JSON.",
            metavar="FILE",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --output.")] = False,
) -> None:
    """Compare estimates with runs that were measured."""
    import json

    from planner.progress import counted
    from planner.report.accuracy import accuracy_report
    from planner.validate.cases import read_rows
    from planner.validate.table import error_table, estimates, yardsticks

    check_free(output, force)
    rows = [row for file in files for row in read_rows(file)]
    started = time.perf_counter()
    with working("estimating measured runs"):
        estimated = list(estimates(counted(rows, "rows")))
    seconds = time.perf_counter() - started
    if output is not None:
        save(output, json.dumps({"rows": [row.as_json() for row in estimated]}) + "\n")
        note(f"estimates written to {output}")
    show(accuracy_report(error_table(rows, estimated, yardsticks(rows)), seconds))
