"""``planner report``: a plan as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save, working


def report(
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HTML file to write.", metavar="FILE")
    ] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --output.")] = False,
) -> None:
    """Write a plan as one HTML page that needs no network.

    Memory, timeline, ranks on the machines, other layouts, and why they lost.
    """
    from planner.errors import SpecError
    from planner.plan import Plan
    from planner.report.page.document import html_page
    from planner.spec.files import load

    check_free(output, force)
    document = load(Plan, plan)
    try:
        with working(f"drawing the page of {plan}"):
            page = html_page(document, plan)
    except SpecError as error:
        raise SpecError(f"{plan}: {problem}" for problem in error.problems) from None
    save(output, page)
    note(f"page of {len(page.encode()) / 1000:.0f} kB written to {output}")
