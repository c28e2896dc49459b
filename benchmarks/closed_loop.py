"""Profile this machine, estimate layouts of a small model, run them, compare.

    python -m benchmarks.closed_loop --ranks 2 4 --layouts 12 --output docs/closed-loop.md

Runs on CPUs with gloo in some minutes. The profile, not a fit to these runs, prices the layouts.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from planner.layout.layout import Layout
from planner.layout.space import layouts as legal_layouts
from planner.plan import Plan
from planner.profiler.start import profile
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.machine import cluster_of
from planner.spec.profile import Profile
from planner.tune.candidates import one_plan, priced
from planner.tune.run import run_plan

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
GLOBAL_BATCH, SEQ_LEN, STEPS = 8, 256, 4


@dataclass(frozen=True, slots=True)
class Row:
    """One layout: estimated before it ran, and measured."""

    label: str
    estimated_s: float
    measured_s: float
    parts_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Loop:
    """All layouts of one number of processes; others took ``others`` of the machine meanwhile."""

    ranks: int
    others: float
    profile_s: float
    rejected: int
    rows: tuple[Row, ...]

    @property
    def spearman(self) -> float:
        """Rank correlation of estimated and measured step times."""
        return spearman([r.estimated_s for r in self.rows], [r.measured_s for r in self.rows])

    @property
    def regret(self) -> float:
        """How much slower the layout with the least estimate is than the best measured."""
        pick = min(self.rows, key=lambda row: row.estimated_s)
        return pick.measured_s / min(row.measured_s for row in self.rows) - 1

    @property
    def error(self) -> float:
        """Mean absolute error of the step time."""
        return sum(abs(r.estimated_s / r.measured_s - 1) for r in self.rows) / len(self.rows)


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the rank correlation of two samples without ties."""
    places = [sorted(range(len(one)), key=one.__getitem__) for one in (left, right)]
    ranks = [{index: place for place, index in enumerate(order)} for order in places]
    count = len(left)
    distance = sum((ranks[0][i] - ranks[1][i]) ** 2 for i in range(count))
    return 1 - 6 * distance / (count * (count**2 - 1))


def chosen(steps: dict[Layout, StepEstimate], count: int) -> list[Layout]:
    """Return ``count`` layouts at equal distances in the order of the estimates, both ends in."""
    order = sorted(steps, key=lambda layout: steps[layout].step_time_s)
    count = min(count, len(order))
    return [order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)]


def measured_s(plans: Sequence[Plan], rounds: int) -> tuple[list[float], list[float]]:
    """Return the step time of each plan, and the share of the machine that others took meanwhile.

    Each round runs every plan once, every other one backwards, so that what else runs on the
    machine hits all alike. Of each plan's rounds those with the least work of others count, half of
    them, and of these the median.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in plans]
    for number in range(rounds):
        for index in list(range(len(plans)))[:: 1 if number % 2 == 0 else -1]:
            before, plan = Work.now(), plans[index]
            seconds = run_plan(plan, STEPS, backend="gloo").step_time_s
            others = Work.now().others_since(before)
            found[index].append((others, seconds))
            note = f"round {number + 1}: {plan.to_layout().label()} {seconds:.3f} s, estimated"
            note += f" {plan.estimate.step_time_s:.3f} s; {100 * others:.0f} % taken by others"
            print(note, file=sys.stderr)
    quiet = [sorted(runs)[: ceil(rounds / 2)] for runs in found]
    return [median(s for _, s in runs) for runs in quiet], [median(o for o, _ in r) for r in quiet]


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds that all processes of this machine worked, those of this one, and the capacity."""

    all_s: float
    own_s: float
    capacity_s: float

    @classmethod
    def now(cls) -> "Work":
        """Read the kernel's counters (proc(5), ``/proc/stat``); ended children are our own."""
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        ticks = [int(count) / os.sysconf("SC_CLK_TCK") for count in first]
        idle_s = ticks[3] + ticks[4]
        times = os.times()
        own_s = times.user + times.system + times.children_user + times.children_system
        return cls(sum(ticks) - idle_s, own_s, sum(ticks))

    def others_since(self, before: "Work") -> float:
        """Return the share of the machine that other programs had since ``before``."""
        others_s = (self.all_s - before.all_s) - (self.own_s - before.own_s)
        return max(0.0, others_s / (self.capacity_s - before.capacity_s))


def closed_loop(ranks: int, count: int, rounds: int, model_file: Path, kept: Path | None) -> Loop:
    """Profile, estimate and run on ``ranks`` processes."""
    output = kept or model_file.with_name(f"profile-{ranks}.json")
    started = time.monotonic()
    if output.exists():
        measured = Profile.model_validate_json(output.read_text())
    else:
        measured = profile(ranks, model_file, output, ("--seq-len", str(SEQ_LEN)))
    profile_s = time.monotonic() - started
    model, cluster, target = load_model(model_file), cluster_of(measured), TARGETS["torch"]
    job = JobSpec(global_batch=GLOBAL_BATCH, seq_len=SEQ_LEN, software=target.software)
    steps = {}
    for layout in legal_layouts(model, cluster, job, target.problems):
        step = priced(model, cluster, job, layout)
        if step is not None:
            steps[layout] = step
    found = search(model, cluster, job, target, Options(keep=1))
    taken = chosen(steps, count)
    plans = [one_plan(model, cluster, job, steps[layout], found) for layout in taken]
    times, others = measured_s(plans, rounds)
    rows = [
        Row(layout.label(), steps[layout].step_time_s, seconds, steps[layout].parts_s)
        for layout, seconds in zip(taken, times, strict=True)
    ]
    return Loop(ranks, median(others), profile_s, len(measured.rejected), tuple(rows))


def page(loops: Sequence[Loop]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for loop in loops:
        profiled = (
            f"Profiled in {loop.profile_s:.0f} s" if loop.profile_s > 1 else "Profiled before"
        )
        parts.append(
            f"### {loop.ranks} processes\n\n{profiled}; Spearman "
            f"{loop.spearman:.2f}; the pick is {100 * loop.regret:.1f} % slower than the best; "
            f"mean error {100 * loop.error:.0f} %. Other programs had "
            f"{100 * loop.others:.0f} % of the machine.\n\n"
            "| layout | estimated s | measured s | error |\n| --- | ---: | ---: | ---: |\n"
        )
        for row in sorted(loop.rows, key=lambda row: row.measured_s):
            error = 100 * (row.estimated_s / row.measured_s - 1)
            parts.append(
                f"| {row.label} | {row.estimated_s:.3f} | {row.measured_s:.3f} | {error:+.0f} % |\n"
            )
        parts.append("\n")
    return "".join(parts)


def main() -> None:
    """Run and print, or write the tables between the markers of a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layouts", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4, help="how often each layout runs")
    parser.add_argument("--profiles", type=Path, help="folder of profiles to keep and use again")
    parser.add_argument("--output", type=Path, help="page with a closed-loop marker")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        model_file = Path(folder) / "small.json"
        model_file.write_text(json.dumps(MODEL))
        kept = options.profiles
        loops = [
            closed_loop(n, options.layouts, options.rounds, model_file, kept and kept / f"{n}.json")
            for n in options.ranks
        ]
    text = page(loops)
    print(text)
    if options.output:
        before, _, rest = options.output.read_text().partition("<!-- closed-loop -->\n")
        _, _, after = rest.partition("<!-- /closed-loop -->")
        marked = f"<!-- closed-loop -->\n{text}<!-- /closed-loop -->{after}"
        options.output.write_text(before + marked)


if __name__ == "__main__":
    main()
