"""How fast the simulator is: ``python -m benchmarks.simulator`` prints one line for each case.

Cold includes the schedule and its task graph, which depend on no times and are kept; warm is a
second set of times on the same graph. CPU time of this process, the best of several runs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.schedule.orders import order
from planner.schedule.passes import IntArray
from planner.simulate.critical_path import critical_path, end_times, topology
from planner.simulate.pipeline import pipeline_time, pipeline_trace
from planner.simulate.tasks import tasks_of

RUNS = 7
PASSES = {"1f1b": 2, "interleaved_1f1b": 2, "zb_h1": 3, "zb_2p": 3, "zb_v": 3}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline to be timed."""

    kind: str
    stages: int
    chunks: int
    micro_batches: int

    @property
    def passes(self) -> int:
        """Passes of all ranks."""
        return PASSES[self.kind] * self.stages * self.chunks * self.micro_batches

    def run(self, whole: bool, scale: float = 1.0) -> float:
        """Return the step time; ``whole`` runs every micro-batch, else a period stands for many."""
        count = self.stages * self.chunks
        unequal = np.ones(count)
        unequal[-1] = 1.3  # the output matrix
        weight = scale * unequal if PASSES[self.kind] == 3 else None
        given = (
            self.kind, self.stages, self.chunks, self.micro_batches, scale * unequal,
            (1 if weight is not None else 2) * scale * unequal, np.full(count - 1, 0.02 * scale),
            True, None, weight,
        )  # fmt: skip
        if whole:
            return float(pipeline_trace(*given).end_s.max())
        return float(pipeline_time(*given).total_s)


CASES = (
    Pipeline("interleaved_1f1b", 35, 3, 280),
    Pipeline("1f1b", 64, 1, 1024),
    Pipeline("zb_h1", 35, 1, 280),
    Pipeline("zb_v", 35, 2, 280),
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
    """Print the table."""
    print("| pipeline | passes | all passes, cold | warm | step time only, cold | warm |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        name = f"{case.kind} p={case.stages} v={case.chunks} m={case.micro_batches}"
        cells = [
            cold_s(case, True),
            best_s(lambda: case.run(True, 1.1)),  # noqa: B023 - run at once
            cold_s(case, False),
            best_s(lambda: case.run(False, 1.1)),  # noqa: B023
        ]
        columns = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in cells)
        print(f"| `{name}` | {case.passes:,} | {columns} |")
    tasks, width = 100_000, 64
    tails, heads = layered_graph(tasks, width)
    graph = topology(tasks, tails, heads)
    seconds = np.random.default_rng(1).random(tasks)
    print()
    print("| any graph of 100,000 tasks, 64 side by side | |")
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
