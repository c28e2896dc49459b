"""What can run a plan: the software it is priced with and the rules it must obey."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.errors import SpecError
from planner.layout.layout import Layout
from planner.layout.rules_megatron import megatron_problems
from planner.layout.rules_torch import torch_target_problems
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_CORE, TORCH_LAUNCHER

Problems = Callable[[ModelSpec, JobSpec, Layout], list[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A program that trains a plan.

    ``uniform_recompute``: it recomputes the same number of layers on every stage. ``offloads``: it
    can be told to move activations off the GPU.
    """

    name: str
    software: SoftwareSpec
    problems: Problems | None
    uniform_recompute: bool
    offloads: bool = False


TARGETS = {
    "torch": Target("torch", TORCH_LAUNCHER, torch_target_problems, False, True),
    "megatron": Target("megatron", MEGATRON_CORE, megatron_problems, True),
}


def target(name: str) -> Target:
    """Return a target by name."""
    if name not in TARGETS:
        raise SpecError(f"--target: {name!r} is not a target; use one of {', '.join(TARGETS)}")
    return TARGETS[name]
