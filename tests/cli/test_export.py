import json
import re
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from planner.spec.huggingface import load_model
from tests.cli.command import TINY, planner, tiny_plan
from tests.formats.plans import build_plan


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


def test_an_unknown_target_is_answered_with_the_known_ones(plan_file: Path, tmp_path: Path) -> None:
    result = planner("export", plan_file, "--target", "keras", "--output", tmp_path / "b")

    assert result.exit_code == 2
    assert "'keras' is not exported; use torch, megatron, nemo, torchtitan," in (result.stderr)


# locks of the search, and why torchtitan cannot run the plan
REFUSED = [
    ("--pp 1", "no flavor of torchtitan"),
    ("--pp 2 --vpp 2", "schedule=zb_v is not written for this target"),
]


@pytest.mark.parametrize(("locks", "why"), REFUSED)
def test_what_the_target_cannot_run_is_refused(locks: str, why: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    planner(f"{TINY} {locks} --output", plan)

    result = planner("export", plan, "--target", "torchtitan", "--output", tmp_path / "b")

    assert result.exit_code == 2
    assert why in result.stderr
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def megatron_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("megatron") / "plan.json"
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096"
    assert planner(words, "--target", "megatron", "--output", file).exit_code == 0
    return file


CLUSTER_FILES = {"job.sbatch", "pytorchjob.yaml", "trainjob.yaml", "skypilot.yaml", "plan.json"}


def test_megatron_is_written_and_checked(megatron_plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out put"
    result = planner("export", megatron_plan, "--target", "megatron", "--output", folder)

    assert result.exit_code == 0
    assert result.stdout == f"cd '{folder}' && sbatch job.sbatch\n"  # two nodes
    assert {path.name for path in folder.iterdir()} == CLUSTER_FILES | {"megatron.sh"}
    plan = load(Plan, megatron_plan)
    checked = planner("check", folder / "megatron.sh", "--cluster", "dgx-h100", "--nodes", "2",
                      "--json")  # fmt: skip
    found = json.loads(checked.stdout)
    assert found["problems"] == found["silent"] == found["unknown"] == []
    shown = re.match(r"Estimated step time ([\d.]+) s ", found["details"][0])
    assert shown
    assert float(shown[1]) == pytest.approx(plan.estimate.step_time_s, rel=0.01)


def test_what_a_format_cannot_carry_is_said(tmp_path: Path) -> None:
    file, folder = tmp_path / "plan.json", tmp_path / "ds"
    plan = build_plan(load_model("llama-3-8b"), dp=8, zero=3, recompute_layers=32)
    file.write_text(plan.model_dump_json())

    result = planner("export", file, "--target", "deepspeed", "--output", folder)

    assert result.exit_code == 0
    assert result.stdout == f"{folder}/deepspeed.json\n"
    assert "not carried over: model 'llama-3-8b'" in result.stderr
    assert "not carried over: recompute full" in result.stderr
    assert {path.name for path in folder.iterdir()} == {"deepspeed.json", "plan.json"}


def test_plan_that_torch_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "eight-bit.json"
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64 --precision fp8"
    planner(words, "--seq-len", "2048", "--keep", "1", "--output", file)

    result = planner("export", file, "--output", tmp_path / "bundle")

    assert result.exit_code == 2
    assert "precision='fp8'" in result.stderr
    assert not (tmp_path / "bundle").exists()
