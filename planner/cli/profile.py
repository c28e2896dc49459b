"""``planner profile``: measure this machine."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="Whose matrix products to time: a shipped name or config.json.", metavar="MODEL"
        ),
    ],
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes to start, one for each GPU.", metavar="N")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Profile to write, JSON.", metavar="FILE")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions: to try it out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
) -> None:
    """Measure this machine's links and products; needs torch."""
    from planner.profiler.start import profile as measure
    from planner.spec.huggingface import load_model

    check_free(output, force)
    load_model(model)  # complains before any process starts
    found = measure(nproc, Path(model), output, ("--quick",) if quick else ())
    links, products = len(found.links), len(found.gemms)
    note(f"{links} link curves and {products} matrix products {found.origin}: {output}")
    typer.echo(f"planner recommend {model} --profile {output} ...")
