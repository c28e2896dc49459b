"""``planner check`` and ``planner explain memory``: does one layout fit, and where bytes go."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.examples import examples
from planner.cli.layout_options import Json, Model, Stated, with_layout
from planner.cli.output import show
from planner.cli.usage import Command
from planner.errors import SpecError

if TYPE_CHECKING:
    from planner.cli.check_file import Asked
    from planner.cli.question import Question

NO, UNSURE = 1, 3

Checked = Annotated[
    str,
    typer.Argument(
        help="A shipped name, a config.json, a plan, or a framework's own launch file.",
        metavar="MODEL|PLAN|FILE",
    ),
]
Named = Annotated[
    str | None,
    typer.Option("--model", help="The model, where a FILE leaves it open.", metavar="MODEL"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A variable of a FILE; may be repeated.", metavar="NAME=VALUE"),
]

explain = typer.Typer(no_args_is_help=True, help="Explain memory, speed or experts of one layout.")


@with_layout
def check(
    ctx: typer.Context,
    model: Checked,
    stated: Stated,
    named: Named = None,
    variables: Set = None,
    as_json: Json = False,
) -> None:
    """Say whether one layout starts and fits.

    Of a plan, a model with its degrees, or a framework's own launch file. Exit codes: 0 yes, 1 no,
    3 too close to tell.
    """
    from planner.cli.check_file import is_foreign
    from planner.report.memory import check_json, check_report, checked

    if is_foreign(model):
        asked = _of_file(ctx, stated, named)
        raise typer.Exit(_check_file(model, variables or [], asked, as_json))
    if named or variables:
        raise SpecError(f"--model and --set go with a launch file; {model!r} is none")
    question = stated.question(model)
    found = checked(question.model, question.cluster, question.job, question.layout,
                    question.split, question.problems())  # fmt: skip
    if as_json:
        typer.echo(json.dumps(check_json(found), indent=1))
    else:
        show(check_report(found))
    raise typer.Exit({"fits": 0, "too close to tell": UNSURE}.get(found.verdict, NO))


def _of_file(ctx: typer.Context, stated: Stated, named: str | None) -> "Asked":
    """Return what is said about a launch file; what it decides itself may not be said."""
    from planner.cli.check_file import Asked

    given = _stated_twice(ctx)
    for name in ("calibration", "profile"):
        if stated[name]:
            raise SpecError(f"--{name}: goes with a MODEL or PLAN, not with a launch file")
    batch = stated["micro_batch"] if "micro_batch" in given else None
    return Asked(
        named, stated["cluster"], stated["nodes"], stated["global_batch"], stated["seq_len"], batch
    )


def _stated_twice(ctx: typer.Context) -> set[str]:
    """Return the options that were typed; those that a file decides itself are refused."""
    typed = {
        str(name)
        for name in ctx.params
        if str(ctx.get_parameter_source(str(name))).endswith("COMMANDLINE")
    }
    decided = (
        "tp", "cp", "pp", "vpp", "ep", "etp", "zero", "recompute", "sequence_parallel", "optimizer",
        "lora_rank", "offload_optimizer", "offload_weights", "delayed_update", "offload",
        "shard",
    )  # fmt: skip
    wrong = [name for name in (*decided, "target", "precision") if name in typed]
    if wrong:
        names = [f"--{name.replace('_', '-')}: the file decides it; leave it out" for name in wrong]
        raise SpecError(names)
    return typed


def _check_file(name: str, variables: list[str], asked: "Asked", as_json: bool) -> int:
    from planner.cli.check_file import assignments, check_file
    from planner.report.foreign import file_json, file_report

    report, code = check_file(Path(name), assignments(variables), asked)
    if as_json:
        typer.echo(json.dumps(file_json(report), indent=1))
    else:
        show(file_report(report))
    return code


@explain.command("memory", cls=Command, epilog=examples("explain memory"))
@with_layout
def explain_memory(model: Model, stated: Stated, as_json: Json = False) -> None:
    """Show where the bytes of one layout go.

    Every pipeline rank by component, the fullest one through a step, and the cheapest changes that
    lower the peak.
    """
    _explain_memory(stated.question(model), as_json)


def _explain_memory(question: "Question", as_json: bool) -> None:
    from planner.cost.layer import Prices
    from planner.errors import LayoutError
    from planner.report.memory import checked, explanation_json, memory_report
    from planner.search.changes import cheapest, single_changes

    problems = question.problems()
    if problems:
        raise LayoutError(problems)
    found = checked(question.model, question.cluster, question.job, question.layout,
                    question.split, problems)  # fmt: skip
    prices = Prices(question.model, question.cluster, question.job)
    listed = (
        [] if found.of_kinds
        else single_changes(prices, question.layout, question.target, question.split)
    )  # fmt: skip
    changes = cheapest(listed, found.capacity_bytes, found.fullest.device)
    if as_json:
        typer.echo(json.dumps(explanation_json(found, changes), indent=1))
    else:
        show(memory_report(found, changes))
