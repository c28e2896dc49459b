"""Checkpoints: a job that was saved goes on exactly, in its own layout and in any other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from planner.launcher import saved
from planner.launcher.main import main
from planner.launcher.plan_file import PlanFile, parse_plan
from planner.plan import Plan
from tests.formats.plans import build_plan, deepseek, gpt, llama
from tests.launcher.launch import ROOT, Case, launch
from tests.launcher.reference import reference_losses
from tests.launcher.test_equivalence import ADAMW_TOLERANCE, TOLERANCE

SP: dict[str, Any] = {"sequence_parallel": True}
TP2: dict[str, Any] = {"tp": 2, "dp": 2, "micro_batch": 2}
HALF: dict[str, Any] = {"shard_weights": 2, "shard_gradients": 2, "shard_optimizer": 2}
DEEPSEEK, GPT = deepseek(layers=2), gpt(layers=2)
# of each model, the layout that saves and those that go on; the first goes on in its own
LAYOUTS: dict[str, list[Plan]] = {
    "deepseek": [
        build_plan(DEEPSEEK, **TP2, **SP, zero=3, ep=2, etp=2),
        build_plan(DEEPSEEK, dp=4, zero=3),
        build_plan(DEEPSEEK, dp=4, ep=4, **HALF),
        build_plan(DEEPSEEK, pp=2, cp=2, micro_batch=2, ep=2, shard_optimizer=2),
    ],
    "tied": [
        build_plan(GPT, pp=2, dp=2, zero=1),
        build_plan(GPT, tp=4, micro_batch=4),
        build_plan(GPT, pp=2, tp=2, micro_batch=4, **SP),
    ],
}
SAVED, ALL = 2, 4  # steps
SETTINGS: dict[str, dict[str, Any]] = {"sgd": {}, "adamw": {"optimizer": "adamw", "lr": 0.01}}
PAIRS = [(m, o, i) for m, plans in LAYOUTS.items() for o in SETTINGS for i in range(len(plans))]

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("saved")
    cases = {}
    for model, plans in LAYOUTS.items():
        for name, settings in SETTINGS.items():
            place = folder / f"{model}-{name}"
            cases[f"{model} {name} whole"] = Case(plans[0], **settings, steps=ALL)
            cases[f"{model} {name} first"] = Case(plans[0], **settings, steps=SAVED, save=place)
            for i, plan in enumerate(plans):
                again = Case(plan, **settings, steps=ALL, resume=place)
                cases[f"{model} {name} {i}"] = again
    return launch(cases, 4, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer", "index"), PAIRS)
def test_any_layout_goes_on(model: str, optimizer: str, index: int, results: Results) -> None:
    plan = LAYOUTS[model][index]
    expected = reference_losses(plan, ALL, **{"lr": 0.5} | SETTINGS[optimizer])
    tolerance = TOLERANCE if optimizer == "sgd" else ADAMW_TOLERANCE

    losses = results[f"{model} {optimizer} {index}"]["losses"]

    assert losses == pytest.approx(expected[SAVED:], rel=0, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("model", LAYOUTS)
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_same_layout_goes_on_to_the_bit(model: str, optimizer: str, results: Results) -> None:
    whole = results[f"{model} {optimizer} whole"]["losses"]

    assert results[f"{model} {optimizer} 0"]["losses"] == whole[SAVED:]


def command(plan: Plan, folder: Path, *arguments: str, processes: int = 2) -> list[str]:
    path = folder / "plan.json"
    path.write_text(plan.model_dump_json())
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    program = [str(processes), "-m", "--", "planner.launcher.main", str(path), "--backend", "gloo"]
    saving = ["--checkpoint", str(folder / "saved"), "--log", str(folder / "run.jsonl")]
    return [*start, *program, *saving, *arguments]


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(folder: Path, event: str) -> list[int]:
    return [found["step"] for found in events(folder) if found["event"] == event]


@pytest.mark.slow
def test_terminated_run_saves_and_the_next_one_goes_on(tmp_path: Path) -> None:
    plan = build_plan(llama(layers=2), dp=2, zero=3)
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        command(plan, tmp_path, "--steps", "100000"),
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(numbers(tmp_path, "step")) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    run.wait(60)
    last = numbers(tmp_path, "step")[-1]

    assert numbers(tmp_path, "save") == numbers(tmp_path, "stop") == [last]
    assert events(tmp_path)[-1]["event"] == "end"
    again = subprocess.run(
        command(plan, tmp_path, "--steps", str(last + 3), "--save-every", "2"),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert numbers(tmp_path, "step") == list(range(1, last + 4))
    due = {n for n in range(last + 1, last + 4) if n % 2 == 0} | {last + 3}
    assert numbers(tmp_path, "save")[1:] == sorted(due)


def parsed(**layout: Any) -> PlanFile:
    return parse_plan(build_plan(llama(), **layout).model_dump(mode="json"))


def make(directory: Path, step: int, *, complete: bool = True, seed: int = 0) -> Path:
    target = saved.step_directory(directory, step)
    saved.write_job(target, saved.job_facts(parsed(), seed, "adamw"))
    if complete:
        (target / ".metadata").touch()
    return target


def test_newest_is_the_latest_complete_one(tmp_path: Path) -> None:
    assert saved.newest(tmp_path) is None
    make(tmp_path, 9)
    latest = make(tmp_path, 100000000)
    make(tmp_path, 100000001, complete=False)

    assert saved.newest(tmp_path) == latest
    assert saved.saved_step(latest) == 100000000


def test_other_layout_may_go_on_and_other_job_may_not(tmp_path: Path) -> None:
    make(tmp_path, 5)
    same = saved.job_facts(parsed(dp=4, zero=3), 0, "adamw")
    other = saved.job_facts(parse_plan(build_plan(gpt()).model_dump(mode="json")), 0, "sgd")

    assert saved.resume_problems(tmp_path, same) == []
    found = "\n".join(saved.resume_problems(tmp_path, other))
    assert "saved with optimizer='adamw', this job has 'sgd'" in found
    assert "saved with kv_heads=4, this job has 8" in found
    assert "name another --checkpoint directory" in found


def test_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    target = make(tmp_path, 5)
    (target / "job.json").write_text("{")

    (problem,) = saved.resume_problems(tmp_path, {})

    assert str(target / "job.json") in problem
    assert "cannot be read" in problem


def test_wrong_arguments_are_said_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, file = tmp_path / "plan.json", tmp_path / "file"
    plan.write_text(build_plan().model_dump_json())
    file.touch()

    code = main([str(plan), "--check", "--save-every", "-1", "--checkpoint", str(file)])

    assert code == 2
    error = capsys.readouterr().err
    assert "--save-every -1 must be at least 0" in error
    assert f"--checkpoint {file}: is a file; name a directory" in error
    assert main([str(plan), "--check", "--save-every", "3"]) == 2
    assert "--save-every 3 needs --checkpoint DIR" in capsys.readouterr().err
