"""One plan, really run for a few steps through the launcher on this machine."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from planner.errors import PlannerError, SpecError
from planner.formats.torch_launcher import write_bundle
from planner.plan import Plan
from planner.profiler.start import run_passing_on

SETTLE = 2  # steps that build caches and are left out
STEPS = 6


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run of a plan reached: each settled step, and the fullest GPU where there is one."""

    steps_s: tuple[float, ...]
    peak_memory_bytes: float | None = None

    @property
    def step_time_s(self) -> float:
        """The median of the settled steps."""
        return median(self.steps_s)


def run_plan(
    plan: Plan, steps: int = STEPS, backend: str = "auto", timeout_s: float = 1800.0
) -> Measured:
    """Train ``plan`` for ``steps`` steps on all its ranks here; return the settled ones.

    On CPUs (``gloo``) products run in bf16, as the estimate prices them.
    """
    if steps <= SETTLE:
        raise SpecError(f"--steps: {steps} steps leave none after {SETTLE} to settle; run more")
    with TemporaryDirectory(prefix="planner-tune-") as folder:
        directory, log = Path(folder) / "run", Path(folder) / "log.jsonl"
        write_bundle(plan, directory)
        words = ["--steps", str(steps), "--backend", backend, "--log", str(log), "--dtype", "bf16"]
        command = ["env", f"PYTHON={sys.executable}", "bash", str(directory / "launch.sh"), *words]
        code, lines = run_passing_on(command, timeout_s, quiet=True)
        if code:
            last = "\n".join(lines[-5:])
            raise PlannerError(f"{plan.to_layout().label()} ended with exit code {code}:\n{last}")
        return read_launcher_log(log)


def read_launcher_log(path: Path) -> Measured:
    """Return the steps of a log that the launcher wrote with ``--log``."""
    events: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            raise SpecError(f"{path}:{number}: not valid JSON; give the file of --log") from None
    steps = [float(event["step_time_s"]) for event in events if event.get("event") == "step"]
    if len(steps) <= SETTLE:
        raise SpecError(f"{path}: {len(steps)} steps; {SETTLE} settle first, so run more of them")
    peaks = [event.get("measured_peak_memory_bytes") for event in events]
    peak = next((max(one) for one in peaks if one), None)
    return Measured(tuple(steps[SETTLE:]), peak)
