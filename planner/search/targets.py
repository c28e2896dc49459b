"""What can run a plan: the software it is priced with and the rules it must obey."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.errors import SpecError
from planner.launcher.rules import V_SHAPED
from planner.layout.layout import Layout
from planner.layout.rules_megatron import megatron_problems
from planner.layout.rules_torch import torch_target_problems
from planner.layout.rules_torchtitan import torchtitan_problems
from planner.layout.stages import Split
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.software import DEEPSPEED, MEGATRON_CORE, TORCH_LAUNCHER, TORCHTITAN, ZERO_PP

Problems = Callable[[ModelSpec, JobSpec, Layout], list[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A program that trains a plan.

    ``uniform_recompute``: it recomputes the same number of layers on every stage. ``schedules``:
    what it runs besides 1F1B and interleaved 1F1B. ``offloads``: it can be told to move activations
    off the GPU. ``whole_recompute``: it recomputes all layers in full, or none.
    """

    name: str
    software: SoftwareSpec
    problems: Problems | None
    uniform_recompute: bool
    schedules: tuple[str, ...] = ()
    offloads: bool = False
    whole_recompute: bool = False

    def settable(self, split: Split) -> Split:
        """Return ``split`` with as many layers recomputed as the program can be told to."""
        if self.whole_recompute and any(split.recomputed or ()):
            return Split(split.layers, split.layers)
        return split


TARGETS = {
    "torch": Target("torch", TORCH_LAUNCHER, torch_target_problems, False, V_SHAPED, True),
    "megatron": Target("megatron", MEGATRON_CORE, megatron_problems, True),
    "torchtitan": Target(
        "torchtitan", TORCHTITAN, torchtitan_problems, False, whole_recompute=True
    ),
}

# Priced, never searched: nobody is asked whether a layout starts, and no program is written.
PRICED = {
    "deepspeed": Target("deepspeed", DEEPSPEED, None, True),
    "zero++": Target("zero++", ZERO_PP, None, True),
}


def target(name: str) -> Target:
    """Return a target by name."""
    if name not in TARGETS:
        raise SpecError(f"--target: {name!r} is not a target; use one of {', '.join(TARGETS)}")
    return TARGETS[name]


def chosen_target(name: str, model: ModelSpec, job: JobSpec) -> tuple[Target, str]:
    """Return what runs the plan and why it was chosen; ``auto`` prefers torch."""
    if name != "auto":
        return target(name), "as asked"
    torch = TARGETS["torch"]
    assert torch.problems is not None
    single = Layout()  # what is wrong on one GPU is wrong with the kind of job, not its layout
    problems = torch.problems(model, job.model_copy(update={"software": torch.software}), single)
    if not problems:
        return torch, "the plan can be exported and run (choose another with --target)"
    return TARGETS["megatron"], f"the torch program cannot run this job ({problems[0]})"
