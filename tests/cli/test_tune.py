"""``planner tune``: real runs of two gloo processes, logs of others, and what is refused."""

import json
from pathlib import Path

import pytest

from planner.plan import Plan
from tests.cli.command import planner
from tests.spec.test_machine import profile


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plan for the two processes that a profile describes."""
    folder = tmp_path_factory.mktemp("tune")
    measured, file = folder / "profile.json", folder / "plan.json"
    measured.write_text(profile().model_dump_json())
    words = "recommend tiny-llama --global-batch 4 --seq-len 64 --profile"
    result = planner(words, measured, "--output", file)
    assert result.exit_code == 0, result.stderr
    return file


def test_a_profile_alone_is_a_cluster(plan: Path) -> None:
    found = Plan.model_validate_json(plan.read_text())

    assert found.cluster.name == "as profiled"
    assert found.cluster.gpus == 2


def test_neither_cluster_nor_profile() -> None:
    result = planner("recommend tiny-llama --global-batch 4 --seq-len 64")

    assert result.exit_code == 2
    assert "--cluster: is needed, unless --profile says what the machine does" in result.stderr


@pytest.mark.slow
def test_runs_plans_and_keeps_the_fastest(plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    best, runs = tmp_path / "best.json", tmp_path / "runs.csv"

    words = f"tune {plan} --top 2 --steps 4 --backend gloo --json --output {best} --runs {runs}"
    result = planner(words)

    assert result.exit_code == 0, result.stderr
    tried = json.loads(result.stdout)
    assert len(tried) == 2
    assert all(one["measured_step_time_s"] > 0 for one in tried)
    fastest = min(tried, key=lambda one: one["measured_step_time_s"])
    kept = Plan.model_validate_json(best.read_text())
    assert kept.to_layout().label() == fastest["layout"]
    assert len(runs.read_text().splitlines()) == 3


def test_logs_need_no_run(plan: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(f"elapsed time per iteration (ms): {ms} |\n" for ms in (9, 8, 7, 5)))

    result = planner("tune", plan, "--log", log)

    assert result.exit_code == 0, result.stderr
    assert "Fastest measured: " in result.stdout
    assert "6 ms" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--log a --log b", "--log: 2 logs for 1 plans; give one for each"),
        ("--timeout forever", "--timeout: 'forever' is not a duration"),
    ],
)
def test_bad_options(plan: Path, words: str, said: str) -> None:
    result = planner(f"tune {plan} {words}")

    assert result.exit_code == 2
    assert said in result.stderr
