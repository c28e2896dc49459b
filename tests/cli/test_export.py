from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import planner, tiny_plan


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_plan(tmp_path_factory.mktemp("plan"))


def test_bundle_holds_what_starts_it(plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"

    result = planner("export", plan_file, "--target", "torch", "--output", folder)

    assert result.exit_code == 0
    names = {path.name for path in folder.iterdir()}
    assert {"plan.json", "train.py", "launch.sh", "job.sbatch", "launcher"} <= names
    assert (folder / "launch.sh").stat().st_mode & 0o100
    assert load(Plan, folder / "plan.json") == load(Plan, plan_file)


def test_prints_the_command_to_start_it(plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my bundle"

    result = planner("export", plan_file, "--output", folder)

    assert result.stdout == f"bash '{folder}'/launch.sh\n"
    assert f"files written to {folder}" in result.stderr


def test_a_folder_with_files_is_kept(plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    result = planner("export", plan_file, "--output", tmp_path)

    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_force_adds_to_it(plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    result = planner("export", plan_file, "--output", tmp_path, "--force")

    assert result.exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "launch.sh").exists()


def test_other_targets_are_refused(plan_file: Path, tmp_path: Path) -> None:
    result = planner("export", plan_file, "--target", "megatron", "--output", tmp_path / "b")

    assert result.exit_code == 2
    assert result.stderr == "error: --target: 'megatron' cannot be exported yet; use torch\n"


def test_plan_that_torch_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "eight-bit.json"
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64 --precision fp8"
    planner(words, "--seq-len", "2048", "--keep", "1", "--output", file)

    result = planner("export", file, "--output", tmp_path / "bundle")

    assert result.exit_code == 2
    assert "precision='fp8'" in result.stderr
    assert not (tmp_path / "bundle").exists()
