"""One rank of real runs on CPUs, watched: ``torchrun worker.py PLANS.json OUT_PREFIX``."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.oracle import Traced, observe
from planner.launcher import runtime
from planner.launcher.plan_file import parse_plan
from planner.launcher.train import Options


def summary(traced: Traced) -> dict[str, int]:
    """Return what a simulated and a real rank are compared by."""
    parts = ("parameters", "gradients", "optimizer", "flops")
    peaks = {f"peak of {phase}": moment.size for phase, moment in traced.phases.items()}
    return {part: getattr(traced, part) for part in parts} | peaks


def main() -> None:
    torch.set_num_threads(1)
    plans = json.loads(Path(sys.argv[1]).read_text())
    first = parse_plan(next(iter(plans.values())))
    process = runtime.start(first.rank_map, "gloo", timeout_s=60)
    options = Options(dtype=torch.bfloat16)
    seen = {name: summary(observe(parse_plan(plan), options)) for name, plan in plans.items()}
    Path(f"{sys.argv[2]}{process.rank}.json").write_text(json.dumps(seen))
    runtime.finish()


if __name__ == "__main__":
    main()
