"""The answer of ``planner cost``: days, GPU-hours, money, energy, and where the time goes."""

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.goodput.run import DAY_S, RunCost
from planner.plan import Plan
from planner.report.layout import column_table, section
from planner.report.words import percent, seconds
from planner.units import TB, format_count


def cost_report(plan: Plan, cost: RunCost, tokens: float) -> Group:
    """Return the answer for a terminal."""
    span = f"{cost.low_s / DAY_S:.3g} to {cost.high_s / DAY_S:.3g}"
    first = (
        f"{cost.days:.3g} days ({span}) for {format_count(tokens)} tokens of {plan.model.name} on "
        f"{cost.gpus} x {plan.cluster.gpu.name}: {cost.steps:,} steps, "
        f"{percent(cost.effective)} effective training time."
    )
    parts: list[RenderableType] = [
        Text(first),
        section("What it takes", _totals(cost)),
        section("Where the days go", _days(cost)),
        section("Failures and checkpoints", _operations(cost)),
    ]
    return Group(*parts)


def _totals(cost: RunCost) -> Table:
    table = column_table(("", "left"), ("", "right"))
    table.add_row("GPU-hours", f"{cost.gpu_hours:,.0f}")
    if cost.money is not None:
        table.add_row("money", f"{cost.money:,.0f}")
    if cost.energy_kwh is None:
        table.add_row("energy", "not known: state --gpu-watts")
    else:
        table.add_row("energy", f"{cost.energy_kwh / 1000:,.1f} MWh")
    if cost.co2_kg is not None:
        table.add_row("CO2", f"{cost.co2_kg / 1000:,.1f} t")
    return table


def _days(cost: RunCost) -> Table:
    table = column_table(("", "left"), ("days", "right"), ("share", "right"))
    for name, time_s in time_by_cause(cost).items():
        table.add_row(name, f"{time_s / DAY_S:.3g}", percent(time_s / cost.wall.total_s))
    return table


def time_by_cause(cost: RunCost) -> dict[str, float]:
    """Return the seconds of the run by what they go to; they add up to all of it."""
    wall = cost.wall
    return {
        "training": cost.undisturbed_s,
        "slow nodes": cost.straggling_s,
        "checkpoints": wall.checkpoints_s,
        "repeated steps": wall.repeated_s,
        "failures unnoticed": wall.detection_s,
        "restarts": wall.restart_s,
    }


def _operations(cost: RunCost) -> Table:
    how = cost.operations
    table = column_table(("", "left"), ("", "right"))
    table.add_row("interruptions", f"{cost.wall.interruptions:,.1f}")
    table.add_row("one in", _span(how.mtbf_s))
    table.add_row("detection", _span(how.detect_s))
    table.add_row("restart", _span(how.restart_s))
    table.add_row("checkpoint every", _span(how.interval_s))
    table.add_row("checkpoint", f"{how.checkpoint_bytes / TB:.3g} TB")
    table.add_row("training waits", seconds(how.stall_s))
    table.add_row("on storage after", _span(how.save_s))
    return table


def _span(value_s: float) -> str:
    for scale_s, unit in ((DAY_S, "days"), (3600.0, "h"), (60.0, "min")):
        if value_s >= 2 * scale_s:
            return f"{value_s / scale_s:.3g} {unit}"
    return seconds(value_s)


def cost_json(cost: RunCost, tokens: float) -> dict[str, object]:
    """Return the answer as data."""
    return {
        "tokens": tokens,
        "steps": cost.steps,
        "gpus": cost.gpus,
        "days": cost.days,
        "days_low": cost.low_s / DAY_S,
        "days_high": cost.high_s / DAY_S,
        "gpu_hours": cost.gpu_hours,
        "effective_training_time": cost.effective,
        "money": cost.money,
        "energy_kwh": cost.energy_kwh,
        "co2_kg": cost.co2_kg,
        "interruptions": cost.wall.interruptions,
        "time_s": time_by_cause(cost),
        "operations": asdict(cost.operations),
    }
