"""``planner explain speed``: where the time of one layout goes, from the card's peak down."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import check as words
from planner.cli.output import option, show

if TYPE_CHECKING:
    from planner.cli.question import Question
    from planner.report.speed import Explained


def explain_speed(
    model: words.Model,
    cluster: words.Cluster = None,
    nodes: words.Nodes = None,
    global_batch: words.Batch = None,
    seq_len: words.Length = None,
    precision: words.Precision = "bf16",
    target: words.Runner = "auto",
    tp: words.Tensor = 1,
    cp: words.Context = 1,
    pp: words.Pipeline = 1,
    vpp: words.Chunks = 1,
    ep: words.Expert = 1,
    etp: words.ExpertTensor = 1,
    micro_batch: words.Micro = 1,
    zero: words.Zero = 1,
    shard: words.Groups = None,
    recompute: words.Again = "none",
    sequence_parallel: words.Sequence = True,
    optimizer: words.Optimizer = "adamw",
    lora_rank: words.Adapters = 0,
    offload_optimizer: words.Offloaded = 0.0,
    offload_weights: words.OffloadedWeights = False,
    delayed_update: words.Delayed = False,
    offload: words.Away = "none",
    measured: Annotated[
        str | None,
        typer.Option(help="Step time of your run, like 13.6s: how much is not explained.",
                     metavar="TIME"),
    ] = None,
    calibration: words.Calibrated = None,
    profile: words.Profiled = None,
    as_json: words.Json = False,
) -> None:  # fmt: skip
    """Show what keeps one layout from the card's peak, and the changes that make it faster."""
    from planner.cli.question import Degrees, asked
    from planner.cli.request import Method
    from planner.report.speed import speed_json, speed_report

    measured_s = None if measured is None else option("--measured", _positive_s, measured)
    degrees = Degrees(
        tp, cp, pp, vpp, ep, etp, micro_batch, zero, recompute, sequence_parallel,
        offload_optimizer, offload_weights, delayed_update, offload, shard,
    )  # fmt: skip
    question = asked(
        model, cluster, nodes, global_batch, seq_len, precision, target, degrees, calibration,
        Method(optimizer, lora_rank), profile,
    )  # fmt: skip
    found = _explained(question, measured_s)
    if as_json:
        typer.echo(json.dumps(speed_json(found), indent=1))
    else:
        show(speed_report(found))


def _positive_s(text: str) -> float:
    from planner.units import parse_seconds

    seconds = parse_seconds(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no step time; write a duration above zero, like '13.6s'")
    return seconds


def _explained(question: "Question", measured_s: float | None) -> "Explained":
    from planner.cost.layer import Prices
    from planner.errors import LayoutError
    from planner.report.offload import offload_lines
    from planner.report.speed import Explained
    from planner.search.faster import faster_changes
    from planner.search.placed import slow_links
    from planner.simulate.step import estimate_step
    from planner.simulate.waterfall import waterfall

    if problems := question.problems():
        raise LayoutError(problems)
    prices = Prices(question.model, question.cluster, question.job)
    step = estimate_step(prices, question.layout, question.split)
    changes = faster_changes(prices, question.layout, question.target, question.split)
    slow = slow_links(question.cluster, question.cluster, question.layout)
    notes = tuple(offload_lines(prices, question.layout, question.split))
    return Explained(
        step, question.cluster, waterfall(prices, step), changes, measured_s, slow, notes
    )
