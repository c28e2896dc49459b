"""The printed form of the error table of ``planner validate``."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.layout import column_table, section
from planner.validate.table import Errors, ErrorTable, Inside, Ranking

MOST_REASONS = 10


def accuracy_report(table: ErrorTable, spent_s: float | None = None) -> Group:
    """Return the whole report; ``spent_s`` are the seconds that estimating took."""
    parts: list[RenderableType] = [Text(_coverage(table, spent_s), style="bold")]
    if table.skipped:
        parts.append(section("Not estimated", _skipped(table)))
    if table.all_rows is not None:
        parts.append(section("Step time, error against measured", _times(table)))
    if table.memory_all is not None:
        parts.append(section("Memory, error against measured", _memory(table)))
    parts += [Text(), *(Text(line) for line in _verdicts(table))]
    return Group(*parts)


def share(fraction: float | None, signed: bool = False) -> str:
    """Return a fraction in percent with one digit, or nothing."""
    if fraction is None:
        return ""
    return f"{100 * fraction:{'+' if signed else ''}.1f}%"


def _coverage(table: ErrorTable, spent_s: float | None) -> str:
    text = f"{table.rows:,} rows, {table.estimated:,} estimated ({share(table.coverage)})"
    done, stating = table.stating
    if stating:
        text += f"; {share(done / stating)} of the {stating:,} that state their shape"
    if not spent_s:
        return text
    return f"{text}, {table.rows / spent_s:,.0f} rows/s"


def _skipped(table: ErrorTable) -> Table:
    grid = column_table(("rows", "right"), ("source", "left"), ("why", "left"))
    for source, reason, count in table.skipped[:MOST_REASONS]:
        grid.add_row(f"{count:,}", source, reason)
    rest = table.skipped[MOST_REASONS:]
    if rest:
        grid.add_row(f"{sum(count for _, _, count in rest):,}", "", "other reasons")
    return grid


def _error_grid(*more: str) -> Table:
    titles = ("rows", "median", "mean", "p90", "signed", *more)
    return column_table(("source", "left"), *((title, "right") for title in titles))


def _add(grid: Table, lines: Iterable[Errors | None]) -> None:
    for line in lines:
        if line is None:
            continue
        cells = [line.name, f"{line.count:,}"]
        cells += [share(line.median), share(line.mean), share(line.p90)]
        cells.append(share(line.signed_median, signed=True))
        if len(grid.columns) > len(cells):
            cells.append(share(line.yardstick_median))
        grid.add_row(*cells)


def _times(table: ErrorTable) -> Table:
    grid = _error_grid("yardstick")
    _add(grid, table.sources)
    grid.add_row()
    _add(grid, (table.all_rows, table.source_medians, table.stated, table.assumed))
    return grid


def _memory(table: ErrorTable) -> Table:
    grid = _error_grid()
    _add(grid, table.memory)
    grid.add_row()
    _add(grid, (table.memory_all,))
    return grid


def _verdicts(table: ErrorTable) -> list[str]:
    lines = []
    within, intervals = table.inside
    if intervals:
        inside = share(within / intervals)
        lines.append(f"Interval: {inside} of {intervals:,} measured step times lie inside theirs")
    if table.memory_too_small is not None:
        small = share(table.memory_too_small)
        lines.append(f"Memory: {small} of estimates more than 2% below the measured peak")
    if table.memory_inside.count:
        lines.append(_inside(table.memory_inside))
    fit, accuracy = table.fit, table.fit.balanced_accuracy
    if accuracy is not None:
        oom, fits = fit.oom_found + fit.oom_missed, fit.fits_found + fit.fits_missed
        lines.append(
            f"Fit: out of memory found {fit.oom_found:,} of {oom:,}, "
            f"fits found {fit.fits_found:,} of {fits:,}, balanced accuracy {share(accuracy)}"
        )
    if table.certain.of:
        sure = table.certain
        lines.append(
            f"Certain: {sure.answers:,} of {sure.of:,} verdicts; called impossible but ran: "
            f"{sure.ran_called_impossible:,}; called safe but out of memory: "
            f"{sure.oom_called_safe:,}"
        )
    if table.ranking is not None:
        lines.append(_ranking("Ranking", table.ranking))
    if table.yardstick_ranking is not None:
        lines.append(_ranking("Ranking by the yardstick", table.yardstick_ranking))
    return lines


def _inside(memory: Inside) -> str:
    return (
        f"Memory interval: of {memory.count:,} measured peaks {share(memory.above / memory.count)} "
        f"lie above theirs, {share(memory.below / memory.count)} below"
    )


def _ranking(name: str, ranking: Ranking) -> str:
    return (
        f"{name}: {ranking.sweeps} sweeps, Kendall tau mean {ranking.tau_mean:.3f} "
        f"median {ranking.tau_median:.3f}, top-1 regret mean {share(ranking.regret_mean)} "
        f"median {share(ranking.regret_median)} p90 {share(ranking.regret_p90)} "
        f"(the median layout: {share(ranking.median_layout_regret)})"
    )
