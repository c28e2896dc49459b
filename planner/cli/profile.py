"""``planner profile``: measure this machine, or read what another program measured."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.cli.output import check_free, note, save


class _ModelOrCommand(TyperGroup):
    """Takes ``planner profile MODEL ...`` for ``planner profile measure MODEL ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command first where none is named."""
        if args and args[0] not in {*self.commands, "--help", "-h"}:
            args = ["measure", *args]
        return super().parse_args(ctx, args)


profile = typer.Typer(
    cls=_ModelOrCommand,
    no_args_is_help=True,
    help="Measure this machine (profile MODEL), or import what another program measured.",
)
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Profile to write, JSON.", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing profile.")]


@profile.command("measure")
def measure(
    model: Annotated[
        str,
        typer.Argument(
            help="Whose matrix products to time: a shipped name or config.json.", metavar="MODEL"
        ),
    ],
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes to start, one for each GPU.", metavar="N")
    ],
    output: Output,
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions: to try it out.")] = False,
    force: Force = False,
) -> None:
    """Measure this machine's links and products; needs torch. ``measure`` may be left out."""
    from planner.profiler.start import profile as measured
    from planner.spec.huggingface import load_model

    check_free(output, force)
    load_model(model)  # complains before any process starts
    found = measured(nproc, Path(model), output, ("--quick",) if quick else ())
    links, products = len(found.links), len(found.gemms)
    note(f"{links} link curves and {products} matrix products {found.origin}: {output}")
    typer.echo(f"planner recommend {model} --profile {output} ...")


@profile.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(help="nccl-tests logs, SimuMax system files, torch traces.",
                       metavar="FILE..."),
    ],
    output: Output,
    form: Annotated[
        str | None,
        typer.Option("--format", help="nccl-tests, simumax or torch-trace; default: by content.",
                     metavar="NAME"),
    ] = None,
    collective: Annotated[
        str | None,
        typer.Option(help="Of an nccl-tests log that does not say: all_reduce, alltoall, ...",
                     metavar="NAME"),
    ] = None,
    force: Force = False,
) -> None:  # fmt: skip
    """Turn what other programs measured on one machine into a profile."""
    from planner.formats.measurements import import_profile

    check_free(output, force)
    found, left_out = import_profile(files, form, collective)
    save(output, found.model_dump_json(indent=1, exclude_none=True) + "\n")
    for text in left_out:
        note(text)
    kinds = ", ".join(dict.fromkeys(f"{link.kind} of {link.ranks}" for link in found.links))
    links = f"{len(found.links)} link curves" + (f" ({kinds})" if kinds else "")
    note(f"{links} and {len(found.gemms)} matrix products {found.origin}: {output}")
    typer.echo(f"planner recommend MODEL --profile {output} ...")
