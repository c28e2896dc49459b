"""``planner convert``: one framework's configuration in another's words."""

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import check_free, note, save


def convert(
    file: Annotated[
        Path, typer.Argument(help="A launch script or configuration file.", metavar="FILE")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="megatron, nemo, torchtitan, deepspeed, accelerate or nanotron.", metavar="NAME"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", metavar="FILE")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, where the file leaves it open.", metavar="MODEL")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs, where the file does not say.", metavar="N")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Where the file leaves it open.", metavar="B")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option(min=1, help="Where the file leaves it open.", metavar="B")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(min=1, help="Where the file leaves it open.", metavar="S")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", help="A variable of the file.", metavar="NAME=VALUE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
) -> None:
    """Write a framework's configuration in another's format.

    And list what is lost on the way.
    """
    from planner.cli.check_file import Asked, assignments, filled
    from planner.formats.convert import convert as converted
    from planner.formats.detect import read_foreign
    from planner.spec.huggingface import load_model

    check_free(output, force)
    more = Asked(global_batch=global_batch, seq_len=seq_len, micro_batch=micro_batch)
    setup = filled(read_foreign(file, assignments(variables or [])), more)
    found = converted(setup, to, load_model(model) if model else None, gpus)
    for assumed in setup.assumed:
        note(f"assumed: {assumed}")
    for lost in found.lost:
        note(f"not carried over: {lost}")
    if output is None:
        typer.echo(found.text, nl=False)
    else:
        save(output, found.text)
        note(f"written to {output}")
