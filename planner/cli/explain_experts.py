"""``planner explain experts``: what uneven routing costs, and what copies of experts would give."""

import json
from pathlib import Path
from typing import Annotated

import typer

from planner.cli import layout_options as words
from planner.cli.output import option, show


def explain_experts(
    model: words.Model,
    loads: Annotated[
        str,
        typer.Option(
            help="Tokens of each expert: zipf:1.2, or a file of one number for each.",
            metavar="LOADS",
        ),
    ],
    cluster: words.Cluster = None,
    nodes: words.Nodes = None,
    global_batch: words.Batch = None,
    seq_len: words.Length = None,
    precision: words.Precision = "bf16",
    target: words.Runner = "megatron",
    tp: words.Tensor = 1,
    cp: words.Context = 1,
    pp: words.Pipeline = 1,
    vpp: words.Chunks = 1,
    ep: words.Expert = 1,
    etp: words.ExpertTensor = 1,
    micro_batch: words.Micro = 1,
    zero: words.Zero = 1,
    recompute: words.Again = "none",
    sequence_parallel: words.Sequence = True,
    slots: Annotated[
        int | None,
        typer.Option(
            min=0, help="Copies that a rank may hold of each layer; else what fits.", metavar="N"
        ),
    ] = None,
    as_json: words.Json = False,
) -> None:
    """Show what uneven routing to experts costs.

    And what copying loaded experts (FSSDP) would give.
    """
    from planner.cli.question import Degrees, asked
    from planner.cost.layer import Prices
    from planner.errors import LayoutError, SpecError
    from planner.report.experts import (
        AGAIN,
        KEPT,
        STATIC,
        Ways,
        experts_json,
        experts_report,
        loads_of,
    )
    from planner.simulate.materialised import sparse, static
    from planner.simulate.step import estimate_step
    from planner.spec.files import read_text

    degrees = Degrees(
        tp, cp, pp, vpp, ep, etp, micro_batch, zero, recompute, sequence_parallel
    )  # fmt: skip
    question = asked(model, cluster, nodes, global_batch, seq_len, precision, target, degrees)
    if problems := question.problems():
        raise LayoutError(problems)
    spec, layout = question.model, question.layout
    if spec.moe is None or layout.ep == 1:
        raise SpecError(f"--ep: {spec.name} on ep={layout.ep} has no ranks with different experts")
    experts = spec.moe.experts
    text = loads if loads.startswith("zipf:") else read_text(Path(loads))
    shares = option("--loads", lambda written: loads_of(written, experts), text)
    prices = Prices(spec, question.cluster, question.job)
    room = float(question.cluster.gpu.memory_bytes)
    found = Ways(
        f"{spec.name} {layout.label()}",
        estimate_step(prices, layout).step_time_s,
        {
            STATIC: static(prices, layout, shares),
            KEPT: sparse(prices, layout, shares, room, False, slots),
            AGAIN: sparse(prices, layout, shares, room, True, slots),
        },
        room,
    )
    if as_json:
        typer.echo(json.dumps(experts_json(found), indent=1))
    else:
        show(experts_report(found))
