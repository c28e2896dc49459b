"""``planner validate``: estimates against runs that somebody really made."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import check_free, note, save, show

if TYPE_CHECKING:
    from planner.validate.replay import RowEstimate


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

    from planner.report.accuracy import accuracy_report
    from planner.validate.cases import read_rows
    from planner.validate.table import error_table, estimates, yardsticks

    check_free(output, force)
    rows = [row for file in files for row in read_rows(file)]
    started = time.perf_counter()
    estimated = list(_with_progress(estimates(rows), len(rows)))
    seconds = time.perf_counter() - started
    if output is not None:
        save(output, json.dumps({"rows": [row.as_json() for row in estimated]}) + "\n")
        note(f"estimates written to {output}")
    show(accuracy_report(error_table(rows, estimated, yardsticks(rows)), seconds))


def _with_progress(found: Iterable["RowEstimate"], total: int) -> Iterator["RowEstimate"]:
    """Show a bar while the rows are estimated, on a terminal only."""
    if not sys.stderr.isatty():
        yield from found
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(found, "estimating", total=total, console=Console(stderr=True), transient=True)
