"""``planner min-gpus``, ``max-seq`` and ``replan``: the search asked other questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from planner.cli.locks import with_locks
from planner.cli.output import check_free, note, option, repeated, save, show, working

if TYPE_CHECKING:
    from planner.layout.limits import Limits
    from planner.search.questions import Found
    from planner.search.targets import Target
    from planner.spec.cluster import ClusterSpec
    from planner.spec.job import JobSpec
    from planner.spec.model import ModelSpec

NO = 1
Model = Annotated[
    str, typer.Argument(help="A shipped name, a config.json or its folder.", metavar="MODEL")
]
Cluster = Annotated[str, typer.Option(help="A shipped name or a YAML file.", metavar="SPEC")]
Nodes = Annotated[int | None, typer.Option(min=1, help="Machines there are.", metavar="N")]
Batch = Annotated[int, typer.Option(min=1, help="Sequences of one step.", metavar="B")]
Length = Annotated[int, typer.Option(min=1, help="Tokens of one sequence.", metavar="S")]
Precision = Annotated[str, typer.Option(help="bf16, fp16, fp8, ...", metavar="TYPE")]
Runner = Annotated[str, typer.Option(help="torch, megatron, torchtitan or auto.", metavar="NAME")]
KeepFree = Annotated[str, typer.Option(help="Share of memory to leave empty.", metavar="SHARE")]
Budget = Annotated[str, typer.Option(help="Time for the last search.", metavar="TIME")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the plan to this file.", metavar="FILE")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing --output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def _options(keep_free: str, budget: str, limits: "Limits") -> Any:
    from planner.cli.request import share
    from planner.search.recommend import Options
    from planner.units import parse_seconds

    return Options(
        keep_free=option("--keep-free", share, keep_free),
        budget_s=option("--budget", parse_seconds, budget),
        limits=limits,
    )


def _asked(
    model: str,
    cluster: str,
    nodes: int | None,
    global_batch: int,
    seq_len: int,
    precision: str,
    target: str,
) -> "tuple[ModelSpec, ClusterSpec, JobSpec, Target]":
    """Return what a search starts from; says on stderr which program is to run the job."""
    from planner.cli.request import chosen_cluster, chosen_job, read_both
    from planner.search.targets import chosen_target

    spec, machines = read_both(model, lambda: chosen_cluster(cluster, nodes, None))
    job = chosen_job(global_batch, seq_len, precision, spec, machines.gpu)
    runner, why = chosen_target(target, spec, job)
    note(f"target {runner.name}: {why}")
    return spec, machines, job, runner


@with_locks
def min_gpus(
    ctx: typer.Context,
    model: Model,
    cluster: Cluster,
    global_batch: Batch,
    seq_len: Length,
    nodes: Nodes = None,
    precision: Precision = "bf16",
    target: Runner = "auto",
    keep_free: KeepFree = "5%",
    budget: Budget = "60s",
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
    *,
    limits: "Limits",
) -> None:
    """Find the fewest GPUs on which a job fits.

    And the fastest plan on them.
    """
    from planner.search.questions import min_gpus as fewest

    options = _options(keep_free, budget, limits)
    check_free(output, force)
    asked = _asked(model, cluster, nodes, global_batch, seq_len, precision, target)
    with working(f"searching the fewest GPUs for {asked[0].name}"):
        found = fewest(*asked, options)
    _answer(ctx, found, "GPUs", output, as_json)


@with_locks
def max_seq(
    ctx: typer.Context,
    model: Model,
    cluster: Cluster,
    global_batch: Batch,
    nodes: Nodes = None,
    precision: Precision = "bf16",
    target: Runner = "auto",
    keep_free: KeepFree = "5%",
    budget: Budget = "60s",
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
    *,
    limits: "Limits",
) -> None:
    """Find the longest sequence that fits.

    And the fastest plan for it.
    """
    from planner.search.questions import max_seq as longest

    options = _options(keep_free, budget, limits)
    check_free(output, force)
    asked = _asked(model, cluster, nodes, global_batch, 1, precision, target)
    with working(f"searching the longest sequence of {asked[0].name}"):
        found = longest(*asked, options)
    _answer(ctx, found, "tokens", output, as_json)


def _answer(
    ctx: typer.Context, found: "Found", unit: str, output: Path | None, as_json: bool
) -> None:
    """Print an answer of ``min-gpus`` or ``max-seq``, or the honest no."""
    from planner.report.questions import found_json, found_report

    plan = found.plan and found.plan.model_copy(update={"command": repeated(ctx)})
    if plan is not None and output is not None:
        save(output, plan.model_dump_json(indent=1) + "\n")
        note(f"plan written to {output}")
    if as_json:
        typer.echo(found_json(found, unit))
    else:
        show(found_report(found, unit))
    if plan is None:
        raise typer.Exit(NO)


@with_locks
def replan(
    ctx: typer.Context,
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    nodes: Annotated[int, typer.Option(min=1, help="Machines there are now.", metavar="N")],
    keep_free: KeepFree = "5%",
    budget: Budget = "60s",
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
    *,
    limits: "Limits",
) -> None:
    """Plan the job of a plan anew on other nodes.

    And say which layout keeps the old one's cut of the weights.
    """
    from planner.cli.question import of_plan
    from planner.errors import SpecError
    from planner.plan import Plan
    from planner.report.explain import no_layout_error
    from planner.report.questions import replanned_json, replanned_report
    from planner.search.answer import NoFit
    from planner.search.questions import replan as plan_again
    from planner.spec.files import load

    options = _options(keep_free, budget, limits)
    check_free(output, force)
    old = load(Plan, plan)
    if nodes > 1 and old.cluster.scale_out is None:
        raise SpecError(f"--nodes: {old.cluster.name!r} has no network between nodes; use 1")
    runner = of_plan(old).target
    with working(f"planning {old.model.name} on {nodes} nodes"):
        found = plan_again(old, nodes, runner, options)
    best = found.best
    if isinstance(best, NoFit):
        machines = old.cluster.model_copy(update={"nodes": nodes})
        if not best.needed_bytes:
            raise no_layout_error(old.model, machines, old.job, runner, limits)
        _no(best, machines, as_json)
    best = best.model_copy(update={"command": repeated(ctx)})
    if output is not None:
        save(output, best.model_dump_json(indent=1) + "\n")
        note(f"plan written to {output}")
    if as_json:
        typer.echo(replanned_json(best, found.same_cut))
    else:
        show(replanned_report(old, best, found.same_cut))


def _no(found: Any, machines: Any, as_json: bool) -> NoReturn:
    from planner.report.tables import no_fit_json, no_fit_report

    if as_json:
        typer.echo(no_fit_json(found))
    else:
        show(no_fit_report(found, machines))
    raise typer.Exit(NO)
