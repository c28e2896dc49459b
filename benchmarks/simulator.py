"""How fast the simulator is: ``python -m benchmarks.simulator`` prints one line for each case.

Batches are pipelines of the sizes that a search meets, each with times of its own, that share a
schedule; the memory is the most that this process ever took.

Cold includes the schedule and its task graph, which depend on no times and are kept; warm is a
second set of times on the same graph. CPU time of this process, the best of several runs.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.schedule.kinds import kind_of
from planner.schedule.orders import order
from planner.schedule.passes import FloatArray, IntArray
from planner.simulate.critical_path import critical_path, end_times, topology
from planner.simulate.pipeline import pipeline_time, pipeline_trace
from planner.simulate.tasks import tasks_of

RUNS = 7
BATCH = 256  # layouts evaluated together


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline to be timed."""

    kind: str
    stages: int
    chunks: int
    micro_batches: int

    @property
    def name(self) -> str:
        """Schedule and sizes."""
        return f"{self.kind} p={self.stages} v={self.chunks} m={self.micro_batches}"

    @property
    def passes(self) -> int:
        """Passes of all ranks."""
        kind = kind_of(self.kind)
        of_each = 3 if kind.splits else 2
        return of_each * self.stages * self.chunks * self.micro_batches // kind.pipelines

    def run(self, whole: bool, scale: float = 1.0) -> float:
        """Return the step time; ``whole`` runs every micro-batch, else a period stands for many."""
        given = self._times(np.full(1, scale))
        if whole:
            return float(pipeline_trace(*given).end_s.max())
        return float(pipeline_time(*given).total_s.max())

    def run_batch(self, layouts: int) -> FloatArray:
        """Return the step times of as many layouts, all with times of their own."""
        return pipeline_time(*self._times(np.linspace(1.0, 2.0, layouts))).total_s

    def _times(self, scale: FloatArray) -> tuple[Any, ...]:
        """Return what the simulator takes; one row of unequal stages for each of ``scale``."""
        count = self.stages * self.chunks
        unequal = np.ones((len(scale), count))
        unequal[:, -1] = 1.3 * np.linspace(1.0, 1.2, len(scale))  # the output matrix
        splits = kind_of(self.kind).splits
        forward = scale[:, None] * unequal
        return (
            self.kind, self.stages, self.chunks, self.micro_batches, forward,
            (1 if splits else 2) * forward, scale[:, None] * np.full(count - 1, 0.02),
            True, None, forward if splits else None,
        )  # fmt: skip


CASES = (
    Pipeline("interleaved_1f1b", 35, 3, 280),
    Pipeline("1f1b", 64, 1, 1024),
    Pipeline("zb_h1", 35, 1, 280),
    Pipeline("zb_v", 35, 2, 280),
    Pipeline("v_half", 35, 2, 280),
    Pipeline("dualpipe", 36, 2, 280),
)
SEARCHED = (
    Pipeline("1f1b", 8, 1, 64),
    Pipeline("1f1b", 16, 1, 128),
    Pipeline("interleaved_1f1b", 8, 2, 64),
    Pipeline("zb_h1", 8, 1, 64),
    Pipeline("zb_v", 8, 2, 64),
)


def best_s(run: Callable[[], object], runs: int = RUNS) -> float:
    """Return the least CPU seconds of several runs."""
    found = []
    for _ in range(runs):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


def cold_s(case: Pipeline, whole: bool) -> float:
    """Return the seconds of a run that has to make schedule and graph first."""

    def run() -> None:
        order.cache_clear()
        tasks_of.cache_clear()
        case.run(whole)

    return best_s(run, 3)


def layered_graph(tasks: int, width: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return edges of a random graph in rows of ``width`` tasks, three into each task."""
    rng = np.random.default_rng(seed)
    heads = np.arange(width, tasks).repeat(3)
    tails = heads // width * width - 1 - rng.integers(0, width, len(heads))
    return tails, heads


def main() -> None:
    """Print the tables."""
    print("| pipeline | passes | all passes, cold | warm | step time only, cold | warm |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        cells = [
            cold_s(case, True),
            best_s(lambda: case.run(True, 1.1)),  # noqa: B023 - run at once
            cold_s(case, False),
            best_s(lambda: case.run(False, 1.1)),  # noqa: B023
        ]
        columns = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in cells)
        print(f"| `{case.name}` | {case.passes:,} | {columns} |")
    print(f"\n| {BATCH} layouts of one schedule | layouts per second |")
    print("| --- | --- |")
    for case in SEARCHED:
        found = best_s(lambda: case.run_batch(BATCH))  # noqa: B023
        print(f"| `{case.name}` | {BATCH / found:,.0f} |")
    print_any_graph()
    # Linux counts KiB
    most_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nMost memory: {most_bytes / 1e6:.0f} MB")


def print_any_graph() -> None:
    """Print what a graph that is no pipeline costs."""
    tasks, width = 100_000, 64
    tails, heads = layered_graph(tasks, width)
    graph = topology(tasks, tails, heads)
    seconds = np.random.default_rng(1).random(tasks)
    print("\n| any graph of 100,000 tasks, 64 side by side | |")
    print("| --- | --- |")
    rows = {
        "sorted once": best_s(lambda: topology(tasks, tails, heads), 3),
        "end times again": best_s(lambda: end_times(graph, seconds)),
        "critical path again": best_s(lambda: critical_path(graph, seconds)),
    }
    for name, found in rows.items():
        print(f"| {name} | {1e3 * found:.1f} ms |")


if __name__ == "__main__":
    main()
