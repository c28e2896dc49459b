"""Runs the command line in this process and keeps what it printed where."""

from pathlib import Path

from typer.testing import CliRunner, Result

from planner.cli import app

TINY = "recommend tiny-llama --cluster dgx-h100 --nodes 1 --global-batch 16 --seq-len 64"


def planner(words: str, *more: str | Path, columns: int = 80) -> Result:
    """Run ``planner`` with the words of a line, then arguments that may hold spaces."""
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    return runner.invoke(app, [*words.split(), *map(str, more)])


def tiny_plan(folder: Path) -> Path:
    """Write a small plan for eight GPUs and return its file."""
    file = folder / "plan.json"
    result = planner(TINY, "--output", file)
    assert result.exit_code == 0, result.stderr
    return file
