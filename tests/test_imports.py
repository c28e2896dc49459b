"""Start-up contract: the command line and the planning chain stay free of what they do not need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = ["planner", "planner.cli", "planner.errors", "planner.units"]
PLANNING = ["planner.search.answer", "planner.report.tables", "planner.formats.torch_launcher"]


def modules_after(module: str) -> set[str]:
    """Return what a fresh interpreter has loaded after one import."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", START)
def test_starting_imports_nothing_heavy(module: str) -> None:
    heavy = {"torch", "networkx", "pulp", "highspy", "numpy", "pydantic", "yaml"}

    assert not heavy & modules_after(module)


@pytest.mark.parametrize("module", PLANNING)
def test_planning_imports_no_torch(module: str) -> None:
    assert not {"torch", "transformers", "networkx", "pulp"} & modules_after(module)
