"""Traces of many ranks: one process each, forked from one that has imported torch."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from benchmarks.oracle import Traced, trace
from planner.launcher.plan_file import parse_plan
from planner.plan import Plan

ROOT = Path(__file__).parents[2]
PROCESSES = 2


def trace_plan(plan: Plan, rank: int, kernels: str) -> Traced:
    return trace(parse_plan(plan.model_dump(mode="json")), rank, kernels=kernels)


def trace_all(ranks: Iterable[tuple[Plan, int]], kernels: str = "gpu") -> list[Traced]:
    """Return the trace of every (plan, rank), in their order."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.oracle"])
    # one task per process: DTensor remembers the groups of its first world
    with (
        mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)),
        ProcessPoolExecutor(PROCESSES, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        tasks = [pool.submit(trace_plan, plan, rank, kernels) for plan, rank in ranks]
        return [task.result() for task in tasks]
