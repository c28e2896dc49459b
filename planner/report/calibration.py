"""The answer of ``planner calibrate``: the factors, and the errors with and without them."""

from collections.abc import Sequence
from statistics import fmean, median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.layout import column_table, section
from planner.report.words import percent
from planner.spec.calibration import FACTORS
from planner.validate.calibrate import MOST_FACTORS, RUNS_PER_FACTOR, Fit, Run, most_factors

MOST_RUNS = 20


def calibration_report(runs: Sequence[Run], fit: Fit) -> Group:
    """Return the factors, the errors before and after, and the runs that are worst explained."""
    parts: list[RenderableType] = [
        Text(_sentence(fit), style="bold"),
        section("Factors (1 leaves a quantity as it is)", _factor_table(fit)),
        section("Step time, error against measured", _error_table(fit)),
        section("Runs, worst explained first", _run_table(runs, fit)),
        Text(),
        Text(_limits(len(runs))),
    ]
    return Group(*parts)


def _sentence(fit: Fit) -> str:
    before = percent(median(fit.before))
    if not fit.factors:
        return f"Nothing to correct: no factor lowers the median error of {before} on left-out runs"
    names = " and ".join(f"{name} {value:.3f}" for name, value in fit.factors.items())
    if not fit.left_out:
        return f"{names}: fitted to one run, so nothing checks it; add runs of other layouts"
    return f"{names}: median error {before} -> {percent(median(fit.left_out))} on left-out runs"


def _factor_table(fit: Fit) -> Table:
    table = column_table(("factor", "left"), ("value", "right"), ("of", "left"))
    for name, meaning in FACTORS.items():
        table.add_row(name, f"{fit.factors[name]:.3f}" if name in fit.factors else "1", meaning)
    return table


def _error_table(fit: Fit) -> Table:
    table = column_table(("", "left"), ("median", "right"), ("mean", "right"), ("worst", "right"))
    lines = (("as shipped", fit.before), ("fitted", fit.after), ("left out", fit.left_out))
    for name, found in lines:
        if found:
            table.add_row(name, percent(median(found)), percent(fmean(found)), percent(max(found)))
    return table


def _run_table(runs: Sequence[Run], fit: Fit) -> Table:
    table = column_table(
        ("run", "left"), ("layout", "left"), ("measured", "right"), ("before", "right"),
        ("after", "right"),
    )  # fmt: skip
    shown = fit.left_out or fit.after
    order = sorted(range(len(runs)), key=lambda index: -shown[index])
    for index in order[:MOST_RUNS]:
        run = runs[index]
        table.add_row(
            run.name,
            run.layout.label(),
            f"{run.measured_s:.4g} s",
            percent(fit.before[index]),
            percent(shown[index]),
        )
    return table


def _limits(count: int) -> str:
    allowed = most_factors(count)
    text = f"{count} runs support {allowed} factor" + ("s" if allowed > 1 else "")
    if allowed < MOST_FACTORS:
        text += f"; {RUNS_PER_FACTOR * (allowed + 1)} would support {allowed + 1}"
    return f"{text}. A factor is added only where left-out runs are estimated better with it."
