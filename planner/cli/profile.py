"""``planner profile``: measure this machine, read what others measured, look at profiles."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.cli.examples import examples
from planner.cli.output import check_free, note, save, show
from planner.cli.usage import Command
from planner.errors import SpecError


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
    help="Measure this machine, or read what others measured.",
)
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Profile to write, JSON.", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing profile.")]


@profile.command("measure", cls=Command, epilog=examples("profile measure"))
def measure(
    model: Annotated[
        str,
        typer.Argument(
            help="Whose kernels to time: a shipped name or config.json.", metavar="MODEL"
        ),
    ],
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes to start, one for each GPU.", metavar="N")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Profile to write, JSON.", metavar="FILE"),
    ] = None,
    seq_len: Annotated[
        int, typer.Option(min=1, help="Tokens of one sequence.", metavar="S")
    ] = 4096,
    micro_batch: Annotated[
        str, typer.Option(help="Sequences of one pass, several.", metavar="LIST")
    ] = "1,2,4",
    tp: Annotated[
        str | None,
        typer.Option(help="Tensor-parallel degrees; default: all that fit.", metavar="LIST"),
    ] = None,
    cp: Annotated[
        str | None, typer.Option(help="The same, context-parallel.", metavar="LIST")
    ] = None,
    ep: Annotated[
        str | None, typer.Option(help="The same, expert-parallel.", metavar="LIST")
    ] = None,
    largest: Annotated[
        str | None, typer.Option(help="Largest message, like '512 MiB'.", metavar="SIZE")
    ] = None,
    ssd: Annotated[
        Path | None,
        typer.Option(help="Folder of a drive to write to and read from.", metavar="DIR"),
    ] = None,
    timeout: Annotated[
        str, typer.Option(help="Time after which a measurement hangs.", metavar="TIME")
    ] = "120s",
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions: to try it out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured, and how long.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted run measured.")
    ] = False,
    force: Force = False,
) -> None:
    """Measure this machine's links, kernels and host.

    Needs torch. The word measure may be left out: planner profile MODEL ...
    """
    from planner.cli.output import option
    from planner.profiler.start import profile as measured
    from planner.spec.huggingface import load_model
    from planner.units import parse_seconds

    timeout_s = option("--timeout", parse_seconds, timeout)
    named = {"--seq-len": seq_len, "--micro-batch": micro_batch, "--tp": tp, "--cp": cp,
             "--ep": ep, "--largest": largest, "--ssd": ssd, "--timeout-s": timeout_s}  # fmt: skip
    options = [word for name, value in named.items() if value is not None
               for word in (name, str(value))]  # fmt: skip
    options += ["--quick"] * quick + ["--restart"] * restart
    load_model(model)  # complains before any process starts
    if dry_run:
        _print_agenda(model, nproc, options)
        return
    if output is None:
        raise SpecError("--output: no file named; name the profile to write, or add --dry-run")
    check_free(output, force)
    found = measured(nproc, Path(model), output, tuple(options))
    links, kernels = len(found.links), len(found.gemms) + len(found.attention) + len(found.kernels)
    note(f"{links} link curves and {kernels} kernels {found.origin}: {output}")
    if found.rejected:
        note(f"{len(found.rejected)} measurements are not believed: planner profile show {output}")
    typer.echo(f"planner recommend {model} --profile {output} ...")


def _print_agenda(model: str, nproc: int, options: list[str]) -> None:
    """Print every measurement on stdout and their number and time on stderr."""
    from planner.profiler.options import agenda
    from planner.profiler.progress import duration

    lines, seconds = agenda(["--output", "-", "--model", model, *options], nproc)
    for line in lines:
        typer.echo(line)
    note(f"{len(lines)} measurements, about {duration(seconds)} and the start of the processes")


@profile.command("show", cls=Command, epilog=examples("profile show"))
def show_profile(
    file: Annotated[Path, typer.Argument(help="A profile.", metavar="FILE")],
    cluster: Annotated[
        str | None,
        typer.Option(help="What the machine should be, to compare with.", metavar="SPEC"),
    ] = None,
) -> None:
    """Print what a profile holds, and what is slow or doubtful in it."""
    from planner.report.profile import profile_report
    from planner.spec.cluster import load_cluster
    from planner.spec.profile import load_profile

    nominal = load_cluster(cluster) if cluster else None
    show(profile_report(load_profile(file), nominal))


@profile.command("diff", cls=Command, epilog=examples("profile diff"))
def diff(
    before: Annotated[Path, typer.Argument(help="A profile.", metavar="BEFORE")],
    after: Annotated[Path, typer.Argument(help="Another.", metavar="AFTER")],
    least: Annotated[
        str, typer.Option(help="Smallest change that is listed.", metavar="SHARE")
    ] = "10%",
) -> None:
    """Print which measurements changed from one profile to another."""
    from planner.cli.output import option
    from planner.cli.request import share
    from planner.report.profile import diff_report
    from planner.spec.profile import load_profile

    smallest = option("--least", share, least)
    show(diff_report(load_profile(before), load_profile(after), smallest))


@profile.command("merge", cls=Command, epilog=examples("profile merge"))
def merge(
    files: Annotated[
        list[Path], typer.Argument(help="Profiles; the last one counts.", metavar="FILE...")
    ],
    output: Output,
    force: Force = False,
) -> None:
    """Put profiles of one kind of machine together.

    Of other models, or of more ranks; what two of them measured, the last one says.
    """
    from planner.spec.merge import merged
    from planner.spec.profile import load_profile

    check_free(output, force)
    found = merged([load_profile(file) for file in files])
    save(output, found.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    note(f"{len(files)} profiles put together: {output}")


@profile.command("import", cls=Command, epilog=examples("profile import"))
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
