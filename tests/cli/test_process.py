"""The command as its own process: start-up cost, exit codes, streams."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import planner
from tests.cli.command import TINY

PACKAGE = Path(planner.__file__).parents[1]
HELP_CPU_S = 0.4


def run(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m planner`` away from the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "planner", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_light() -> None:
    code = (
        "import sys, time, planner.cli\n"
        "try: planner.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.process_time(), *sys.modules, file=sys.stderr)"
    )

    spent = []
    for _ in range(3):  # the least of three: other processes share this machine
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds, *modules = done.stderr.split()
        spent.append(float(seconds))

    assert not {"torch", "networkx", "pulp", "numpy", "pydantic", "yaml"} & set(modules)
    assert min(spent) < HELP_CPU_S


def test_recommend_from_another_folder(tmp_path: Path) -> None:
    done = run(*TINY.split(), "--json", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "tiny-llama"
    assert list(tmp_path.iterdir()) == []


def test_planning_never_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('planning imported torch')")
    done = subprocess.run(
        [sys.executable, "-m", "planner", *TINY.split(), "--json"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_error_without_a_traceback() -> None:
    done = run("recommend", "no-model", "--cluster", "dgx-h100", "--global-batch", "1",
               "--seq-len", "64")  # fmt: skip

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: model 'no-model' is not shipped")
    assert len(done.stderr.splitlines()) == 1


def test_version() -> None:
    done = run("--version")

    assert done.stdout == f"planner {planner.__version__}\n"


def test_a_bug_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import planner.cli

    def broken(prog_name: str) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(planner.cli, "app", broken)

    with pytest.raises(SystemExit, match="70"):
        planner.cli.main()
    said = capsys.readouterr().err
    assert "boom" in said
    assert "a bug of planner" in said
