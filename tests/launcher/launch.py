"""Start ``worker.py`` on several local processes and collect its results."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.plan import Plan

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One training; plain SGD with a large step unless said otherwise."""

    plan: Plan
    optimizer: str = "sgd"
    lr: float = 0.5
    clip: float = 0.0
    dtype: str = "float32"
    steps: int = 2
    save: Path | None = None
    resume: Path | None = None
    offload: Path | None = None
    expert_slots: int = 0
    gather_again: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What the reference run needs to know as well."""
        return {"steps": self.steps, "optimizer": self.optimizer, "lr": self.lr, "clip": self.clip}


def launch(cases: Mapping[str, Case], processes: int, directory: Path) -> dict[str, dict[str, Any]]:
    """Return what slot 0 reports for every case; all of them share one process group."""
    written = [
        {
            "name": name,
            "plan": case.plan.model_dump(mode="json"),
            "options": case.options,
            "dtype": case.dtype,
            "copies": {"expert_slots": case.expert_slots, "gather_again": case.gather_again},
            "save": str(case.save or ""),
            "resume": str(case.resume or ""),
            "offload": str(case.offload or ""),
        }
        for name, case in cases.items()
    ]
    source, target = directory / "cases.json", directory / "results.json"
    source.write_text(json.dumps(written))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*command, str(processes), str(Path(__file__).with_name("worker.py")), source, target],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    results: dict[str, dict[str, Any]] = json.loads(target.read_text())
    return results
