"""Trains several plans in one process group: ``torchrun worker.py CASES.json OUT.json``.

Starting processes takes longer than training a tiny model, so one launch serves many cases.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from planner.launcher import runtime
from planner.launcher.plan_file import parse_plan
from planner.launcher.preflight import plan_problems
from planner.launcher.train import Job, Options


def train(case: dict[str, Any], device: torch.device) -> list[float]:
    plan = parse_plan(case["plan"])
    assert plan_problems(plan) == []
    options = dict(case["options"])
    options["dtype"] = getattr(torch, options.get("dtype", "float32"))
    return [step.loss for step in Job(plan, Options(**options), device).steps()]


def main() -> None:
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    first = parse_plan(cases[0]["plan"])
    process = runtime.start(first.rank_map, "gloo", timeout_s=60)
    losses = {}
    for case in cases:
        try:
            losses[case["name"]] = train(case, process.device)
        except Exception:
            print(f"case {case['name']} on rank {process.rank}", file=sys.stderr)
            traceback.print_exc()
            raise
    if process.speaks:
        results = {"losses": losses, "rank_of_slot_0": process.rank}
        Path(sys.argv[2]).write_text(json.dumps(results))
    runtime.finish()


if __name__ == "__main__":
    main()
