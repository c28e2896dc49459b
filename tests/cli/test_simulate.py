"""``planner simulate``: from a written plan to words, data and a trace."""

import gzip
import json
from pathlib import Path

import pytest

from planner.layout.layout import Layout
from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import planner


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("simulate") / "plan.json"
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096"
    assert planner(words, "--target", "megatron", "--output", file).exit_code == 0
    return file


def with_schedule(plan_file: Path, folder: Path, schedule: str, **layout: int) -> Path:
    """Write the plan again with another pipeline."""
    document = json.loads(plan_file.read_text())
    document["schedule"] = schedule
    document["layout"] |= dict.fromkeys(("tp", "cp", "vpp"), 1) | {"shard_optimizer": 1} | layout
    document["layout"]["sequence_parallel"] = False
    layers = document["model"]["layers"]
    stages = layout["pp"] * document["layout"]["vpp"]
    document["stages"] = [
        {"stage": number, "first_layer": number * layers // stages, "layers": layers // stages}
        for number in range(stages)
    ]
    file = folder / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_the_plans_own_step_time_is_found_again(plan_file: Path) -> None:
    result = planner("simulate", plan_file, "--json")
    answer = json.loads(result.stdout)

    assert result.exit_code == 0, result.stderr
    assert answer["step_time_s"] == pytest.approx(load(Plan, plan_file).estimate.step_time_s)
    for causes in answer["causes_s"]:
        assert sum(causes.values()) == pytest.approx(answer["step_time_s"])
    assert answer["critical_path"]["tasks"]


def test_words_name_every_second(plan_file: Path) -> None:
    result = planner("simulate", plan_file)

    assert result.exit_code == 0
    for words in ("Where each second goes", "forward compute", "optimizer", "Critical path", "100"):
        assert words in result.stdout


def test_the_trace_is_written_once(plan_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json.gz"

    assert planner("simulate", plan_file, "--trace", file).exit_code == 0
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    again = planner("simulate", plan_file, "--trace", file)
    assert again.exit_code == 2
    assert "add --force" in again.stderr
    assert planner("simulate", plan_file, "--trace", file, "--force").exit_code == 0


def test_a_plan_may_name_another_schedule(plan_file: Path, tmp_path: Path) -> None:
    changed = with_schedule(plan_file, tmp_path, "zb_h1", pp=4, dp=4)
    answer = json.loads(planner("simulate", changed, "--json").stdout)

    assert load(Plan, changed).to_layout().schedule == "zb_h1"
    assert answer["schedule"] == "zb_h1"
    assert all(causes["weight_gradient"] > 0 for causes in answer["causes_s"])
    refused = planner("export", changed, "--target", "megatron", "--output", tmp_path / "b")
    assert refused.exit_code == 2
    assert "zb_h1 is simulated only" in refused.stderr


def test_the_usual_schedules_are_no_name(plan_file: Path) -> None:
    plan = load(Plan, plan_file)

    assert plan.schedule in ("1f1b", "interleaved_1f1b")
    assert plan.to_layout().schedule == Layout().schedule == ""


def test_an_unknown_schedule_is_named(plan_file: Path, tmp_path: Path) -> None:
    changed = with_schedule(plan_file, tmp_path, "zigzag", pp=4, dp=4)
    result = planner("simulate", changed)

    assert result.exit_code == 2
    assert "'zigzag' is not a schedule; use one of 1f1b" in result.stderr


def test_a_missing_plan_is_an_error(tmp_path: Path) -> None:
    result = planner("simulate", tmp_path / "none.json")

    assert result.exit_code == 2
    assert "none.json" in result.stderr
