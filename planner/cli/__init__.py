"""The command ``planner``: each command parses, calls one function and prints.

Exit codes: 0 yes, 1 an honest no (nothing fits), 2 bad input, 3 too close to tell (check), 70 a bug
of ours, 130 interrupted.
Answers go to stdout; errors, progress and hints to stderr.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.cli import (
    calibrate,
    catalog,
    check,
    convert,
    cost,
    explain_experts,
    explain_speed,
    export,
    profile,
    questions,
    recommend,
    report,
    simulate,
    tune,
    validate,
)
from planner.cli.examples import examples
from planner.cli.usage import BadUsageError, Command, UsageError, is_help, said
from planner.errors import PlannerError

BUG, INTERRUPTED = 70, 130


class _Reporting(TyperGroup):
    """Turns every error a user can cause into ``error: ...`` lines and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UsageError as error:  # no such command
            if is_help(error):
                raise
            path = (getattr(error, "ctx", None) or ctx).command_path
            _complain(ctx, BadUsageError([said(error)], path))
        except PlannerError as error:
            _complain(ctx, error)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _complain(ctx: Any, error: PlannerError) -> None:
    for problem in error.problems:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(problem, err=True)
    if isinstance(error, BadUsageError):
        typer.echo(error.hint, err=True)
    ctx.exit(error.exit_code)


app = typer.Typer(
    cls=_Reporting,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "recommend": recommend.recommend,
    "replan": questions.replan,
    "min-gpus": questions.min_gpus,
    "max-seq": questions.max_seq,
    "check": check.check,
    "cost": cost.cost,
    "report": report.report,
    "export": export.export,
    "convert": convert.convert,
    "simulate": simulate.simulate,
    "validate": validate.validate,
    "tune": tune.tune,
    "calibrate": calibrate.calibrate,
    "models": catalog.models,
    "clusters": catalog.clusters,
    "gpus": catalog.gpus,
}
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command, epilog=examples(_name))(_command)
check.explain.command("experts", cls=Command, epilog=examples("explain experts"))(
    explain_experts.explain_experts
)
check.explain.command("speed", cls=Command, epilog=examples("explain speed"))(
    explain_speed.explain_speed
)
app.add_typer(check.explain, name="explain", epilog=examples("explain"))
app.add_typer(profile.profile, name="profile", epilog=examples("profile"))


def _version(asked: bool) -> None:
    if asked:
        from planner import __version__

        typer.echo(f"planner {__version__}")
        raise typer.Exit


@app.callback()
def _planner(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Which parallel layout trains a model fastest on a cluster, does it fit, and why."""


def main() -> None:
    """Run the command line; an exception nobody foresaw is a bug and exits with 70."""
    try:
        app(prog_name="planner")
    except Exception:
        traceback.print_exc()
        typer.echo("this is a bug of planner, not of your input; please report the above", err=True)
        sys.exit(BUG)
