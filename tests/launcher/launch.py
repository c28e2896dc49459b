"""Start ``worker.py`` on several local processes and collect its results."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.plan import Plan

ROOT = Path(__file__).parents[2]
Case = tuple[Plan, dict[str, Any]]


def launch(cases: Mapping[str, Case], processes: int, directory: Path) -> dict[str, Any]:
    """Return what the worker reports for every case; all of them share one process group."""
    written = [
        {"name": name, "plan": plan.model_dump(mode="json"), "options": options}
        for name, (plan, options) in cases.items()
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
    results: dict[str, Any] = json.loads(target.read_text())
    return results
