"""Trains several plans in one process group: ``torchrun worker.py CASES.json OUT.json``.

Starting processes takes longer than training a tiny model, so one launch serves many cases.
"""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from planner.launcher import checkpoint, runtime
from planner.launcher.learning_rate import LearningRate
from planner.launcher.plan_file import parse_plan
from planner.launcher.preflight import plan_problems
from planner.launcher.train import Job, Options


def _sent_bytes(kind: str, args: Any) -> int:
    """Return the bytes that one rank sends on a ring: all but its own part of the whole buffer."""
    if kind not in ("allgather_base", "reduce_scatter_base"):
        return 0
    out, source = (one.numel() * one.element_size() for one in args[:2])
    return abs(out - source)


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the process groups."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # come back with the local tensors
        if func.namespace in ("c10d", "_c10d_functional"):
            kind = func._opname.strip("_")
            self.counts[kind] += 1
            self.sent_bytes[kind] += _sent_bytes(kind, args)
        return func(*args, **(kwargs or {}))


def train(case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    plan = parse_plan(case["plan"])
    assert plan_problems(plan) == []
    rate = LearningRate(case["options"]["lr"])
    chosen = case["options"] | case["copies"]
    chosen |= {"dtype": getattr(torch, case["dtype"]), "lr": rate}
    if case["offload"]:
        chosen |= {"offload_directory": Path(case["offload"]), "least_offload_bytes": 256}
    options = Options(**chosen)
    job = Job(plan, options, device)
    if case["resume"]:
        checkpoint.resume(job, Path(case["resume"]))
    losses = [job.step(number).loss for number in range(job.first_step, options.steps)]
    placed = [list(copies.copies) for copies in job.copies]
    for copies in job.copies:
        copies.gathered_bytes = copies.reduced_bytes = 0
    with Collectives() as seen:
        losses.append(job.step(options.steps).loss)
    job.settle()
    if case["save"]:
        checkpoint.save(job, Path(case["save"]), options.steps)
    return {
        "losses": losses,
        "collectives": seen.counts,
        "sent_bytes": seen.sent_bytes,
        "copies": placed,
        "copied_bytes": total([(c.gathered_bytes, c.reduced_bytes) for c in job.copies]),
        "offloaded": 0 if job.offloader is None else job.offloader.counts.stored,
        "parameters": sum(parameter.numel() for parameter in job.parameters),
        "local_expert_parameters": sum(local_size(parameter) for parameter in job.experts),
        "local_parameters": sum(local_size(parameter) for parameter in job.parameters),
    }


def total(rows: list[tuple[int, int]]) -> list[int]:
    """Return the sums of both columns over all rows and ranks."""
    sums = torch.tensor(rows or [(0, 0)]).sum(0)
    dist.all_reduce(sums)
    return sums.tolist()


def local_size(parameter: torch.Tensor) -> int:
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def main() -> None:
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    first = parse_plan(cases[0]["plan"])
    process = runtime.start(first.rank_map, "gloo", timeout_s=60)
    results = {}
    for case in cases:
        try:
            results[case["name"]] = train(case, process.device) | {"rank": process.rank}
        except Exception:
            print(f"case {case['name']} on rank {process.rank}", file=sys.stderr)
            traceback.print_exc()
            raise
    if process.speaks:
        Path(sys.argv[2]).write_text(json.dumps(results))
    runtime.finish()


if __name__ == "__main__":
    main()
