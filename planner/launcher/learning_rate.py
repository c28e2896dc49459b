"""The learning rate of each step: a linear warm-up, then constant, or down along a curve."""

import math
from dataclasses import dataclass

CURVES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class LearningRate:
    """``peak`` after ``warmup`` steps, then along ``curve`` to ``least`` at step ``steps``."""

    peak: float = 1e-3
    curve: str = "constant"
    warmup: int = 0
    least: float = 0.0
    steps: int = 0

    def at(self, step: int) -> float:
        """Return the rate of step ``step``, counted from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        if self.curve == "constant":
            return self.peak
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = 1 - min(1.0, done)
        if self.curve == "cosine":
            left = (1 + math.cos(math.pi * (1 - left))) / 2
        return self.least + (self.peak - self.least) * left

    def problems(self) -> list[str]:
        """Return what is wrong with the numbers, in the words of the command line."""
        found = []
        if not 0 <= self.warmup < max(1, self.steps):
            found.append(f"--warmup {self.warmup} must be from 0 to --steps less one")
        if not 0 <= self.least <= self.peak:
            found.append(f"--least-lr {self.least:g} must be from 0 to --lr {self.peak:g}")
        return found
