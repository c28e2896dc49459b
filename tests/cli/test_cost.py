"""``planner cost``: a plan and a number of tokens in, days and money out."""

import json
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import planner, tiny_plan


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_plan(tmp_path_factory.mktemp("cost"))


def test_data_adds_up(plan_file: Path) -> None:
    result = planner(
        "cost", plan_file, "--tokens", "1T", "--price", "2.10", "--grid-gco2", "400", "--json"
    )
    answer = json.loads(result.stdout)

    assert result.exit_code == 0, result.stderr
    assert sum(answer["time_s"].values()) == pytest.approx(answer["days"] * 86400)
    assert answer["gpu_hours"] == pytest.approx(8 * 24 * answer["days"])
    assert answer["money"] == pytest.approx(2.10 * answer["gpu_hours"])
    assert answer["co2_kg"] == pytest.approx(0.4 * answer["energy_kwh"])
    undisturbed_s = answer["steps"] * load(Plan, plan_file).estimate.step_time_s
    assert answer["time_s"]["training"] == pytest.approx(undisturbed_s)
    assert 0.9 < answer["effective_training_time"] < 1


def test_words_name_everything(plan_file: Path) -> None:
    result = planner("cost", plan_file, "--tokens", "300B", "--price", "2", "--grid-gco2", "50")

    assert result.exit_code == 0
    for words in ("300B tokens", "GPU-hours", "money", "MWh", "CO2", "repeated steps", "one in"):
        assert words in result.stdout


def test_what_is_not_asked_is_not_said(plan_file: Path) -> None:
    result = planner("cost", plan_file, "--tokens", "300B")

    assert "money" not in result.stdout
    assert "CO2" not in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tokens lots", "--tokens: 'lots' is not a number; write a number and a unit"),
        ("--tokens 0", "--tokens: '0' is not above zero"),
        ("--tokens 1T --detect soon", "--detect: 'soon' is not a duration"),
        ("--tokens 1T --checkpoint-every 0s", "--checkpoint-every: '0s' is not above zero"),
    ],
)
def test_bad_options_are_named(plan_file: Path, words: str, said: str) -> None:
    result = planner("cost", plan_file, *words.split())

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_run_that_never_ends_is_an_honest_no(plan_file: Path) -> None:
    result = planner("cost", plan_file, "--tokens", "1T", "--gpu-hours-per-interruption", "0.01")

    assert result.exit_code == 1
    assert "an interruption every 4 s leaves no time" in result.stderr


def test_an_interval_shorter_than_storage_allows_is_remarked(plan_file: Path) -> None:
    result = planner("cost", plan_file, "--tokens", "1T", "--checkpoint-every", "1 us")

    assert "longer to reach storage" in result.stderr
