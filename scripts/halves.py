#!/usr/bin/env python3
"""Fit one factor for each source of measured runs on half its rows, and test it on the other half.

usage: .venv/bin/python scripts/halves.py [FOLDER]

FOLDER holds the CSV files of measured runs; default: what PLANNER_RUNS names. Rows of a source are
dealt in turn; runs of one sweep are near-copies of each other, so whole sweeps go to one half. Each
half is tested with the factor of the other, so every row is tested once. The last column fits one
factor for each GPU of a source: a calibration file belongs to one GPU.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from planner.errors import PlannerError
from planner.report.accuracy import share
from planner.validate.calibrate import Run, calibrate, errors
from planner.validate.cases import read_case, read_rows
from planner.validate.cells import Skip
from planner.validate.table import is_sane, measured_step_s, source, sweep

Row = dict[str, str]
LEAST_ROWS = 4  # of a source; fewer have no halves
LEAST_FITTED = 3  # runs; fewer are estimated as shipped
MOST_FITTED = 200  # rows of one source that the fit reads, evenly spread


def runs_of(rows: Sequence[Row]) -> dict[str, list[tuple[str, Run]]]:
    """Return (sweep, run) of the rows that have a trusted measured step time, by source."""
    found: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for row in rows:
        measured_s = measured_step_s(row)
        pretraining = row.get("task", "pretrain") in ("", "pretrain")
        if not (measured_s and pretraining and is_sane(row)):
            continue
        try:
            case = read_case(row)
            run = Run(row["id"], case.model, case.cluster, case.job, case.layout, measured_s,
                      case.split)  # fmt: skip
            errors([run], {})
        except (Skip, PlannerError):
            continue
        found[source(row)].append((sweep(row) or row["id"], run))
    return found


def halves(members: list[tuple[str, Run]]) -> tuple[list[Run], list[Run]]:
    """Deal whole sweeps in turn to two halves; a single sweep is dealt by row."""
    names = list(dict.fromkeys(name for name, _ in members))
    if len(names) == 1:
        runs = [run for _, run in members]
        return runs[::2], runs[1::2]
    first = set(names[::2])
    return (
        [run for name, run in members if name in first],
        [run for name, run in members if name not in first],
    )


def spread(runs: list[Run]) -> list[Run]:
    """Return at most ``MOST_FITTED`` runs, evenly spread."""
    return runs[:: -(-len(runs) // MOST_FITTED)]


def after_fit(fitted: list[Run], tested: list[Run]) -> tuple[str, tuple[float, ...]]:
    """Return one factor fitted to some runs, in words, and the errors of others under it."""
    if len(fitted) < LEAST_FITTED:
        return "none", errors(tested, {})
    factors = calibrate(spread(fitted), 1).factors
    shown = ", ".join(f"{name} {value:.2f}" for name, value in factors.items()) or "none"
    return shown.replace("_speed", ""), errors(tested, factors)


def by_gpu(fitted: list[Run], tested: list[Run]) -> tuple[float, ...]:
    """Return the errors of some runs, each under a factor fitted to others on the same GPU."""
    found: tuple[float, ...] = ()
    for gpu in dict.fromkeys(run.cluster.gpu.name for run in tested):
        parts = [[run for run in half if run.cluster.gpu.name == gpu] for half in (fitted, tested)]
        found += after_fit(*parts)[1]
    return found


def tested_line(name: str, members: list[tuple[str, Run]]) -> tuple[str, list[tuple[float, ...]]]:
    """Return the table's line of a source, and its errors: as shipped, one factor, one by GPU."""
    first, second = halves(members)
    (one, after), (other, before) = after_fit(first, second), after_fit(second, first)
    found = [
        errors(second, {}) + errors(first, {}),
        after + before,
        by_gpu(first, second) + by_gpu(second, first),
    ]
    shipped, fitted, own = (share(median(part)) for part in found)
    gpus = len({run.cluster.gpu.name for _, run in members})
    cells = (name, len(first), len(second), shipped, one, other, fitted, gpus, own)
    return f"| {' | '.join(map(str, cells))} |", found


def main() -> None:
    """Print a line for each source and the two medians over all of them."""
    folder = sys.argv[1] if len(sys.argv) == 2 else os.environ.get("PLANNER_RUNS")
    if folder is None:
        sys.exit(__doc__)
    files = sorted(Path(folder).resolve().glob("*.csv"))
    sources = runs_of([row for file in files for row in read_rows(file)])
    print(
        "| source | half | other half | as shipped | factor of the half | of the other | error "
        "| GPUs | by GPU |"
    )
    print("| --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: |")
    everything: list[list[tuple[float, ...]]] = []
    for name in sorted(sources):
        if len(sources[name]) >= LEAST_ROWS:
            line, found = tested_line(name, sources[name])
            everything.append(found)
            print(line, flush=True)
    columns = [list(column) for column in zip(*everything, strict=True)]
    all_rows = [median(error for part in column for error in part) for column in columns]
    of_sources = [median(median(part) for part in column) for column in columns]
    for label, cells in (("all rows", all_rows), ("median of sources", of_sources)):
        shipped, one, own = map(share, cells)
        print(f"| {label} | | | {shipped} | | | {one} | | {own} |")


if __name__ == "__main__":
    main()
