"""A run from its first step, or from a checkpoint, to its last one, reported as it goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .log import Log, peak_memory_bytes, step_values, summary_lines, summary_values
from .train import Job, Step


@dataclass(frozen=True)
class Saving:
    """Where checkpoints are and how often they are made; ``every`` 0: at the end only."""

    directory: Path
    every: int = 0

    def due(self, step: Step, last: int) -> bool:
        """Whether the state is saved after ``step``; ``last`` ends the run."""
        regular = self.every > 0 and step.number % self.every == 0
        return regular or step.stop or step.number == last


def _announce(job: Job, log: Log, device: str) -> None:
    plan, options = job.plan, job.options
    start = {
        "model": plan.model.name,
        "layout": vars(plan.layout),
        "device": device,
        "dtype": str(options.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "seed": options.seed,
        "first_step": job.first_step,
    }
    log.record("start", start)
    log.say(f"{plan.model.name} on {plan.layout.ranks} ranks, {start['dtype']}, {device}")


def _steps(job: Job, log: Log, saving: Saving | None) -> Iterator[Step]:
    """Run and report every step that is left, and save where it is due."""
    from . import checkpoint

    for step in job.steps():
        values = step_values(step, job.plan)
        log.record("step", values)
        log.say(f"step {step.number}  loss {step.loss:.6f}  {step.step_time_s:.4g} s  "
                f"{values['tokens_per_s']:.4g} tokens/s")  # fmt: skip
        if saving is not None and saving.due(step, job.options.steps):
            target = checkpoint.save(job, saving.directory, step.number)
            log.record("save", {"step": step.number, "checkpoint": str(target)})
            log.say(f"saved {target}")
        yield step


def run(job: Job, log: Log, device: str, saving: Saving | None = None) -> list[Step]:
    """Train ``job`` to the end and report each step. Collective."""
    from . import checkpoint

    resumed = None if saving is None else checkpoint.resume(job, saving.directory)
    _announce(job, log, device)
    if resumed is not None:
        log.say(f"continues {resumed}")
    if job.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # whole tensors were held while weights were made
    steps = list(_steps(job, log, saving))
    job.settle()
    if not steps:
        log.say(f"nothing left to do: {job.options.steps} steps are done")
        return steps
    if steps[-1].stop:
        log.record("stop", {"step": steps[-1].number})
        log.say(f"asked to stop: ended after step {steps[-1].number}")
    values = summary_values(job.plan, steps, peak_memory_bytes(job.device))
    log.record("end", values)
    for line in summary_lines(job.plan, values, device):
        log.say(line)
    return steps
