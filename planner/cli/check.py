"""``planner check`` and ``planner explain memory``: does one layout fit, and where bytes go."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.output import show
from planner.errors import SpecError

if TYPE_CHECKING:
    from planner.cli.check_file import Asked
    from planner.cli.question import Question

NO, UNSURE = 1, 3

Model = Annotated[
    str,
    typer.Argument(help="A shipped name, a config.json, or a plan file.", metavar="MODEL|PLAN"),
]
Checked = Annotated[
    str,
    typer.Argument(
        help="A shipped name, a config.json, a plan, or a framework's own launch file.",
        metavar="MODEL|PLAN|FILE",
    ),
]
Named = Annotated[
    str | None, typer.Option("--model", help="The model, where a FILE leaves it open.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A variable of a FILE; may be repeated.", metavar="NAME=VALUE"),
]
Cluster = Annotated[
    str | None, typer.Option(help="A shipped name (planner clusters) or a YAML file.")
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Machines.", metavar="N")]
Batch = Annotated[int | None, typer.Option(min=1, help="Sequences of one step.", metavar="B")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens of one sequence.", metavar="S")]
Precision = Annotated[str, typer.Option(help="bf16, fp16, fp8, ...", metavar="TYPE")]
Runner = Annotated[
    str,
    typer.Option(
        "--target", help="torch, megatron or auto; deepspeed, zero++: only priced.", metavar="NAME"
    ),
]
Tensor = Annotated[int, typer.Option(min=1, help="Tensor parallel.", metavar="D")]
Context = Annotated[int, typer.Option(min=1, help="Context parallel.", metavar="D")]
Pipeline = Annotated[int, typer.Option(min=1, help="Pipeline stages.", metavar="D")]
Chunks = Annotated[int, typer.Option(min=1, help="Chunks of each pipeline rank.", metavar="D")]
Expert = Annotated[int, typer.Option(min=1, help="Expert parallel.", metavar="D")]
ExpertTensor = Annotated[int, typer.Option(min=1, help="Tensor parallel of experts.", metavar="D")]
Micro = Annotated[int, typer.Option(min=1, help="Sequences of a micro-batch.", metavar="D")]
Zero = Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage.", metavar="0-3")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Ranks that share weights, gradients, optimizer[, second weights]; replaces --zero.",
        metavar="W,G,O[,S]",
    ),
]
Again = Annotated[str, typer.Option(help="none, selective or full.", metavar="KIND")]
Away = Annotated[
    str,
    typer.Option(help="Activations leave the GPU: none, host, ssd:50%, ...", metavar="WHERE"),
]
Sequence = Annotated[bool, typer.Option(help="Split activations over tensor-parallel ranks.")]
Optimizer = Annotated[str, typer.Option(help="adamw, adamw-8bit, lamb, muon, ...", metavar="NAME")]
Adapters = Annotated[
    int, typer.Option(min=0, help="Rank of LoRA adapters; weights are frozen.", metavar="R")
]
Offloaded = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of the optimizer's state on the host.", metavar="0-1"),
]
OffloadedWeights = Annotated[
    bool, typer.Option("--offload-weights", help="Weights on the host too, fetched by layer.")
]
Delayed = Annotated[
    bool, typer.Option("--delayed-update", help="The host's update runs behind the next step.")
]
Calibrated = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="Factors of your machine (planner calibrate).", metavar="FILE"
    ),
]
Profiled = Annotated[
    Path | None,
    typer.Option(
        "--profile", help="Measurements of your machine (planner profile).", metavar="FILE"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

explain = typer.Typer(no_args_is_help=True, help="Explain one layout.")


def check(
    ctx: typer.Context,
    model: Checked,
    cluster: Cluster = None,
    nodes: Nodes = None,
    global_batch: Batch = None,
    seq_len: Length = None,
    precision: Precision = "bf16",
    target: Runner = "auto",
    tp: Tensor = 1,
    cp: Context = 1,
    pp: Pipeline = 1,
    vpp: Chunks = 1,
    ep: Expert = 1,
    etp: ExpertTensor = 1,
    micro_batch: Micro = 1,
    zero: Zero = 1,
    shard: Groups = None,
    recompute: Again = "none",
    sequence_parallel: Sequence = True,
    optimizer: Optimizer = "adamw",
    lora_rank: Adapters = 0,
    offload_optimizer: Offloaded = 0.0,
    offload_weights: OffloadedWeights = False,
    delayed_update: Delayed = False,
    offload: Away = "none",
    named: Named = None,
    variables: Set = None,
    calibration: Calibrated = None,
    profile: Profiled = None,
    as_json: Json = False,
) -> None:
    """Say whether one layout starts and fits: exit 0 yes, 1 no, 3 too close to tell."""
    from planner.cli.check_file import Asked, is_foreign
    from planner.cli.question import Degrees, asked
    from planner.cli.request import Method

    if is_foreign(model):
        given = _stated_twice(ctx)
        batch = micro_batch if "micro_batch" in given else None
        more = Asked(named, cluster, nodes, global_batch, seq_len, batch)
        if calibration or profile:
            option = "--calibration" if calibration else "--profile"
            raise SpecError(f"{option}: goes with a MODEL or PLAN, not with a launch file")
        raise typer.Exit(_check_file(model, variables or [], more, as_json))
    from planner.report.memory import check_json, check_report, checked

    if named or variables:
        raise SpecError(f"--model and --set go with a launch file; {model!r} is none")
    degrees = Degrees(
        tp, cp, pp, vpp, ep, etp, micro_batch, zero, recompute, sequence_parallel,
        offload_optimizer, offload_weights, delayed_update, offload, shard,
    )  # fmt: skip
    question = asked(
        model, cluster, nodes, global_batch, seq_len, precision, target, degrees, calibration,
        Method(optimizer, lora_rank), profile,
    )  # fmt: skip
    found = checked(question.model, question.cluster, question.job, question.layout,
                    question.split, question.problems())  # fmt: skip
    if as_json:
        typer.echo(json.dumps(check_json(found), indent=1))
    else:
        show(check_report(found, question.cluster))
    raise typer.Exit({"fits": 0, "too close to tell": UNSURE}.get(found.verdict, NO))


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


@explain.command("memory")
def explain_memory(
    model: Model,
    cluster: Cluster = None,
    nodes: Nodes = None,
    global_batch: Batch = None,
    seq_len: Length = None,
    precision: Precision = "bf16",
    target: Runner = "auto",
    tp: Tensor = 1,
    cp: Context = 1,
    pp: Pipeline = 1,
    vpp: Chunks = 1,
    ep: Expert = 1,
    etp: ExpertTensor = 1,
    micro_batch: Micro = 1,
    zero: Zero = 1,
    shard: Groups = None,
    recompute: Again = "none",
    sequence_parallel: Sequence = True,
    optimizer: Optimizer = "adamw",
    lora_rank: Adapters = 0,
    offload_optimizer: Offloaded = 0.0,
    offload_weights: OffloadedWeights = False,
    delayed_update: Delayed = False,
    offload: Away = "none",
    calibration: Calibrated = None,
    profile: Profiled = None,
    as_json: Json = False,
) -> None:
    """Show where the bytes of one layout go, and the cheapest changes that lower the peak."""
    from planner.cli.question import Degrees, asked
    from planner.cli.request import Method

    degrees = Degrees(
        tp, cp, pp, vpp, ep, etp, micro_batch, zero, recompute, sequence_parallel,
        offload_optimizer, offload_weights, delayed_update, offload, shard,
    )  # fmt: skip
    question = asked(
        model, cluster, nodes, global_batch, seq_len, precision, target, degrees, calibration,
        Method(optimizer, lora_rank), profile,
    )  # fmt: skip
    _explain_memory(question, as_json)


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
    changes = cheapest(
        single_changes(prices, question.layout, question.target, question.split),
        found.capacity_bytes, found.fullest.device,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(explanation_json(found, changes), indent=1))
    else:
        show(memory_report(found, question.cluster, changes))
