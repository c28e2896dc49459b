"""The answer of ``planner tune`` as tables."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from planner.tune.compare import Trial, best, blame
from planner.units import format_bytes, format_s

TELLING = 0.6  # correlations below that say nothing about a handful of runs


def tune_report(trials: Sequence[Trial]) -> RenderableType:
    """Return estimated and measured steps, fastest first, and the parts the errors go with."""
    fastest = best(trials)
    table = Table(box=None)
    for column in ("layout", "estimated", "measured", "error", "largest parts of the estimate"):
        table.add_column(column, justify="right" if column in ("estimated", "measured", "error")
                         else "left")  # fmt: skip
    for trial in sorted(trials, key=lambda one: one.measured.step_time_s):
        estimate = trial.plan.estimate
        table.add_row(
            trial.label, format_s(estimate.step_time_s), format_s(trial.measured.step_time_s),
            f"{trial.error:+.0%}", _largest(trial),
        )  # fmt: skip
    parts: list[RenderableType] = [_headline(trials, fastest), table]
    for part, value in blame(trials).items():
        if abs(value) >= TELLING:
            way = "short" if value < 0 else "long"
            name = part.replace("_", " ")
            parts.append(f"Estimates are too {way} where {name} is a large share ({value:+.2f}).")
    return Group(*parts)


def _largest(trial: Trial) -> str:
    estimate = trial.plan.estimate
    parts = sorted(estimate.parts_s.items(), key=lambda pair: -pair[1])[:3]
    return ", ".join(f"{name.replace('_', ' ')} {value / estimate.step_time_s:.0%}"
                     for name, value in parts if value > 0)  # fmt: skip


def _headline(trials: Sequence[Trial], fastest: Trial) -> str:
    pick = min(trials, key=lambda trial: trial.plan.estimate.step_time_s)
    behind = pick.measured.step_time_s / fastest.measured.step_time_s - 1
    first = f"Fastest measured: {fastest.label}, {format_s(fastest.measured.step_time_s)} per step"
    if fastest.measured.peak_memory_bytes is not None:
        first += f", {format_bytes(fastest.measured.peak_memory_bytes)} on the fullest GPU"
    if pick is fastest:
        return f"{first}, as estimated."
    return f"{first}; the fastest estimate, {pick.label}, was {behind:.1%} slower."


def as_json(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Return the trials as plain data; estimated and measured never share a field."""
    return [
        {
            "layout": trial.label,
            "estimated_step_time_s": trial.plan.estimate.step_time_s,
            "measured_step_time_s": trial.measured.step_time_s,
            "measured_steps_s": list(trial.measured.steps_s),
            "measured_peak_memory_bytes": trial.measured.peak_memory_bytes,
            "estimated_peak_memory_bytes": trial.plan.estimate.memory_bytes,
            "estimated_parts_s": trial.plan.estimate.parts_s,
        }
        for trial in trials
    ]
