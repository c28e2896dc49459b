"""``planner recommend``: the fastest layout of a job, or what it would take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from planner.cli.locks import with_locks
from planner.cli.output import check_free, note, option, repeated, save, show, working

if TYPE_CHECKING:
    from planner.layout.limits import Limits
    from planner.search.answer import NoFit
    from planner.spec.cluster import ClusterSpec

NO = 1


@with_locks
def recommend(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped name (planner models), a config.json or its folder.", metavar="MODEL"
        ),
    ],
    global_batch: Annotated[int, typer.Option(min=1, help="Sequences of one step.", metavar="B")],
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of one sequence.", metavar="S")],
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A shipped name (planner clusters) or a YAML file; default: the machine of "
            "--profile.",
            metavar="SPEC",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Machines; default: what the cluster file says.", metavar="N"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="bf16, fp16, fp8, fp8_block, mxfp8 or nvfp4.", metavar="TYPE")
    ] = "bf16",
    target: Annotated[
        str,
        typer.Option(
            help="What runs the plan: torch, megatron, torchtitan or auto.", metavar="NAME"
        ),
    ] = "auto",
    optimizer: Annotated[
        str,
        typer.Option(help="adamw, adamw-8bit, adamw-bf16, sgd, lamb, muon, ...", metavar="NAME"),
    ] = "adamw",
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of LoRA adapters; weights are frozen.", metavar="R")
    ] = 0,
    profile: Annotated[
        Path | None,
        typer.Option(help="Measurements of your machine (planner profile).", metavar="FILE"),
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option(help="Measured links of each pair of nodes.", metavar="FILE"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Factors fitted to your runs (planner calibrate).", metavar="FILE"),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Layouts to rank.", metavar="K")] = 5,
    keep_free: Annotated[
        str, typer.Option(help="Share of memory to leave empty.", metavar="SHARE")
    ] = "5%",
    budget: Annotated[
        str, typer.Option(help="Time after which the search settles.", metavar="TIME")
    ] = "60s",
    offload: Annotated[
        bool | None,
        typer.Option(
            "--offload/--no-offload",
            help="Whether activations, and the optimizer where nothing else fits, leave the GPU; "
            "by default only where nothing else fits.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the plan to this file.", metavar="FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    *,
    limits: "Limits",
) -> None:
    """Recommend the fastest layout that fits, and say why.

    Without --output the plan is only shown. Exit codes: 0 found, 1 nothing fits.
    """
    from planner.cli.request import (
        Method,
        chosen_cluster,
        chosen_job,
        read_both,
        share,
        with_calibration,
    )
    from planner.report.explain import no_layout_error
    from planner.report.tables import plan_report
    from planner.search.answer import NoFit
    from planner.search.answer import recommend as answer
    from planner.search.recommend import Options
    from planner.search.targets import chosen_target
    from planner.units import parse_seconds

    options = Options(
        keep=keep,
        keep_free=option("--keep-free", share, keep_free),
        budget_s=option("--budget", parse_seconds, budget),
        offload=offload,
        limits=limits,
    )
    check_free(output, force)
    spec, machines = read_both(
        model, lambda: chosen_cluster(cluster, nodes, profile, links, mixed=True)
    )
    method = Method(optimizer, lora_rank)
    job = chosen_job(global_batch, seq_len, precision, spec, machines.gpu, method)
    runner, why = chosen_target(target, spec, job)
    note(f"target {runner.name}: {why}")
    machines, runner = with_calibration(machines, runner, calibration)
    with working(f"searching layouts of {spec.name} on {machines.gpus} GPUs", options.budget_s):
        found = answer(spec, machines, job, runner, options)
    if isinstance(found, NoFit):
        if not found.needed_bytes:
            raise no_layout_error(spec, machines, job, runner, limits)
        _say_no(found, machines, as_json, output)
    found = found.model_copy(update={"command": repeated(ctx)})
    if output is not None:
        save(output, found.model_dump_json(indent=1) + "\n")
        note(f"plan written to {output}")
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        show(plan_report(found, output, found.command))


def _say_no(found: "NoFit", cluster: "ClusterSpec", as_json: bool, output: Path | None) -> NoReturn:
    """Print what is missing and end with the exit code of an honest no."""
    from planner.report.tables import no_fit_json, no_fit_report

    if output is not None:
        note(f"nothing fits, so {output} was not written")
    if as_json:
        typer.echo(no_fit_json(found))
    else:
        show(no_fit_report(found, cluster))
    raise typer.Exit(NO)
