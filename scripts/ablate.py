#!/usr/bin/env python3
"""Print what each constant that was fitted to one source of runs does to the errors of all.

usage: .venv/bin/python scripts/ablate.py FOLDER     (FOLDER holds the CSV files of measured runs)
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.errors import PlannerError
from planner.report.accuracy import share
from planner.validate.cases import Case, read_case, read_rows
from planner.validate.cells import Skip
from planner.validate.replay import RowEstimate, estimate_named
from planner.validate.table import ErrorTable, error_table

Change = Callable[[Case], Case]
EFA_RING_STEP_S = 8e-6  # nccl-tests on EFA v4; InfiniBand shows 3 us


def software(**fields: Any) -> Change:
    """Return a change of the named fields of the software record, for all frameworks."""

    def change(case: Case) -> Case:
        stack = case.job.software.model_copy(update=fields)
        return replace(case, job=case.job.model_copy(update={"software": stack}))

    return change


def ring_step(case: Case) -> Case:
    """Give EFA the ring step of nccl-tests instead of the fitted one."""
    net = case.cluster.scale_out
    if net is None or net.fabric != "efa":
        return case
    fast = net.model_copy(update={"ring_step_s": EFA_RING_STEP_S})
    return replace(case, cluster=case.cluster.model_copy(update={"scale_out": fast}))


WITHOUT: tuple[tuple[str, tuple[Change, ...]], ...] = (
    ("all as shipped", ()),
    ("without slow nodes", (software(slow_node_share=0.0),)),
    ("without stalled ring steps", (software(stalled_step_s=0.0),)),
    ("with 8 us a ring step on EFA", (ring_step,)),
    ("without the wait after an exchange", (software(exchange_wait_s=0.0),)),
    ("without the first three", (software(slow_node_share=0.0, stalled_step_s=0.0), ring_step)),
)


def table(rows: list[dict[str, str]], changes: tuple[Change, ...]) -> ErrorTable:
    """Return the errors of all rows under ``changes``."""
    found = []
    for row in rows:
        try:
            case = read_case(row)
            for change in changes:
                case = change(case)
            found.append(estimate_named(row["id"], case))
        except (Skip, PlannerError) as reason:
            found.append(RowEstimate(row["id"], str(reason)))
    return error_table(rows, found)


def main() -> None:
    """Print one line for each set of constants."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    files = sorted(Path(sys.argv[1]).resolve().glob("*.csv"))
    rows = [row for file in files for row in read_rows(file)]
    print("| constants | all rows | median of sources | nanotron | top-1 regret |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, changes in WITHOUT:
        errors = table(rows, changes)
        if not (errors.all_rows and errors.source_medians and errors.ranking):
            sys.exit("these files hold no timed runs in sweeps; give all of them")
        one = next((e for e in errors.sources if e.name == "nanotron"), None)
        cells = (
            share(errors.all_rows.median),
            share(errors.source_medians.median),
            share(one.median if one else None),
            share(errors.ranking.regret_mean),
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
