"""``planner cost``: a whole run of a plan, failures and restarts included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.output import note, option, show
from planner.errors import SpecError


def cost(
    plan: Annotated[
        Path, typer.Argument(help="The file that planner recommend wrote.", metavar="PLAN")
    ],
    tokens: Annotated[str, typer.Option(help="Tokens of the run, like 300B or 2T.", metavar="N")],
    price: Annotated[
        float | None, typer.Option(min=0, help="Money for one GPU-hour.", metavar="MONEY")
    ] = None,
    grid_gco2: Annotated[
        float | None, typer.Option(min=0, help="Grams of CO2 per kWh.", metavar="GRAMS")
    ] = None,
    pue: Annotated[
        float | None,
        typer.Option(min=1, help="Power of the site ÷ of its machines.", metavar="X"),
    ] = None,
    gpu_watts: Annotated[
        float | None, typer.Option(min=1, help="Rated power of one GPU.", metavar="WATTS")
    ] = None,
    gpu_hours_per_interruption: Annotated[
        float | None,
        typer.Option(min=1e-3, help="GPU-hours from one interruption to the next.", metavar="H"),
    ] = None,
    detect: Annotated[
        str, typer.Option(help="From a failure to its diagnosis.", metavar="TIME")
    ] = "10 min",
    restart: Annotated[
        str,
        typer.Option(help="From diagnosis to the first step, without reading.", metavar="TIME"),
    ] = "5 min",
    checkpoint_stall: Annotated[
        str | None, typer.Option(help="What training waits for a checkpoint.", metavar="TIME")
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(help="Work between checkpoints; the best one otherwise.", metavar="TIME"),
    ] = None,
    slow_node_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of nodes that are slow.", metavar="SHARE")
    ] = 0.005,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Say what a whole run of a plan takes.

    Days, GPU-hours, money, energy and CO2, failures and restarts included.
    """
    from planner.goodput.energy import PUE
    from planner.goodput.operations import Stated
    from planner.goodput.run import Prices, run_cost
    from planner.plan import Plan
    from planner.report.cost import cost_json, cost_report
    from planner.spec.files import load
    from planner.units import parse_count

    wanted = option("--tokens", _positive(parse_count), tokens)
    stated = Stated(
        gpu_hours_per_interruption,
        _duration("--detect", detect, allows_zero=True) or 0.0,
        _duration("--restart", restart, allows_zero=True) or 0.0,
        _duration("--checkpoint-stall", checkpoint_stall, allows_zero=False),
        _duration("--checkpoint-every", checkpoint_every, allows_zero=False),
        slow_node_share,
    )
    document = load(Plan, plan)
    if document.cluster.node_groups:
        raise SpecError(
            f"{document.cluster.name!r} has nodes of several kinds (node_groups), whose failures, "
            "prices and watts differ; plan one kind alone for what a run of it costs"
        )
    prices = Prices(price, grid_gco2, gpu_watts, PUE if pue is None else pue)
    found = run_cost(document, wanted, stated, prices)
    if found.operations.interval_s < found.operations.save_s:
        note("a checkpoint takes longer to reach storage than --checkpoint-every")
    if as_json:
        typer.echo(json.dumps(cost_json(found, wanted), indent=1))
    else:
        show(cost_report(document, found, wanted))


def _positive(parse: Callable[[object], float]) -> Callable[[str], float]:
    """Return ``parse``, which then refuses zero and less."""

    def checked(text: str) -> float:
        if (number := parse(text)) <= 0:
            raise ValueError(f"{text!r} is not above zero; write a positive amount")
        return number

    return checked


def _duration(name: str, text: str | None, allows_zero: bool) -> float | None:
    """Parse the time of an option, if it is given."""
    from planner.units import parse_seconds

    if text is None or (allows_zero and text.strip() == "0"):
        return None
    return option(name, _positive(parse_seconds), text)
