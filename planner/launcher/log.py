"""What a run reports: JSON lines for programs, sentences for people."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .plan_file import PlanFile
from .train import Step

_GIB = 2**30


class Log:
    """Appends one JSON object per line to a file, and prints; silent on all other processes."""

    def __init__(self, path: Path | None, speaks: bool) -> None:
        self.path = path if speaks else None
        self.speaks = speaks

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one line; a run that is killed keeps all finished steps."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")

    def say(self, text: str) -> None:
        """Print one line at once."""
        if self.speaks:
            print(text, flush=True)


def step_values(step: Step, plan: PlanFile) -> dict[str, Any]:
    """Return one step as logged; tokens per second are those of the whole job."""
    tokens = plan.global_batch * plan.seq_len
    return {
        "step": step.number,
        "step_time_s": step.step_time_s,
        "loss": step.loss,
        "tokens_per_s": tokens / step.step_time_s,
        "gradient_norm": step.gradient_norm,
    }


def measured_step_time_s(steps: list[Step]) -> float:
    """Return the median step time; the first steps build caches and are left out."""
    settled = steps[min(2, len(steps) - 1) :]
    return statistics.median(step.step_time_s for step in settled)


def peak_memory_bytes(device: torch.device) -> list[int] | None:
    """Return each rank's peak of allocated GPU memory, in rank order; None on a CPU. Collective."""
    if device.type != "cuda":
        return None
    own = torch.tensor([torch.cuda.max_memory_allocated()], device=device)
    peaks = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(peaks, own)
    return [int(peak.item()) for peak in peaks]


def summary_values(plan: PlanFile, steps: list[Step], peaks: list[int] | None) -> dict[str, Any]:
    """Return the end of the log: measured and estimated, each under its own name."""
    estimate = plan.estimate
    of_a_stage = plan.layout.ranks // plan.layout.pp
    memory = [plan.stages[r // of_a_stage].memory_bytes for r in range(plan.layout.ranks)]
    return {
        "measured_step_time_s": measured_step_time_s(steps),
        "measured_peak_memory_bytes": peaks,
        "estimate_gpu": plan.gpu,
        "estimate_step_time_s": estimate.step_time_s,
        "estimate_step_time_low_s": estimate.step_time_low_s,
        "estimate_step_time_high_s": estimate.step_time_high_s,
        "estimate_peak_memory_bytes": memory,
    }


def summary_lines(plan: PlanFile, values: Mapping[str, Any], device: str) -> list[str]:
    """Return the end of a run for people; it says which hardware each number is of."""
    low, high = values["estimate_step_time_low_s"], values["estimate_step_time_high_s"]
    lines = [
        f"measured step time  {values['measured_step_time_s']:.4g} s on {device}",
        f"estimated step time {values['estimate_step_time_s']:.4g} s "
        f"({low:.4g} to {high:.4g}) on the plan's GPUs, {plan.gpu}",
    ]
    peaks = values["measured_peak_memory_bytes"]
    if peaks is None:
        return [*lines, "peak memory         not measured on a CPU"]
    pairs = zip(peaks, values["estimate_peak_memory_bytes"], strict=True)
    return lines + [
        f"peak memory of rank {rank}: measured {measured / _GIB:.2f} GiB, "
        f"estimated {estimated / _GIB:.2f} GiB"
        for rank, (measured, estimated) in enumerate(pairs)
    ]
