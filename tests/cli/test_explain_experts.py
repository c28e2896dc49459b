"""``planner explain experts``: loads in, ways to place experts out."""

import json
from pathlib import Path

import pytest

from tests.cli.command import planner

JOB = "mixtral-8x7b --cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096 --ep 8 --pp 2"


def test_ways_are_told_as_data() -> None:
    result = planner(f"explain experts {JOB} --recompute full --loads zipf:1 --json")
    answer = json.loads(result.stdout)

    assert result.exit_code == 0, result.stderr
    home, kept, again = answer["ways"].values()
    assert answer["even_step_time_s"] < home["step_time_s"]
    assert home["copies"] == [1] * 8
    assert again["fullest_rank"] <= kept["fullest_rank"] <= home["fullest_rank"]
    assert home["memory_bytes"] <= again["memory_bytes"]


def test_a_file_of_even_loads_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("5,5,5,5\n5,5,5,5\n")
    result = planner(f"explain experts {JOB} --recompute full --json --loads", file)
    answer = json.loads(result.stdout)

    home = answer["ways"]["experts at home"]
    assert home["step_time_s"] == pytest.approx(answer["even_step_time_s"])


def test_words_name_the_ways() -> None:
    result = planner(f"explain experts {JOB} --recompute full --loads zipf:1.5", columns=120)

    for words in ("experts at home", "FSSDP", "fullest rank", "with even routing"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{JOB} --loads zipf:x", "--loads: 'zipf:x' are no loads"),
        (f"{JOB} --loads zipf:-1", "are no loads"),
        (f"{JOB} --loads nowhere.csv", "nowhere.csv: no such file"),
        (JOB.replace("--ep 8", "--ep 1") + " --loads zipf:1", "has no ranks with different"),
        (JOB.replace("mixtral-8x7b", "llama-3-8b") + " --loads zipf:1", "experts"),
    ],
)
def test_bad_loads_are_named(words: str, said: str) -> None:
    result = planner(f"explain experts {words}")

    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("text", "said"), [("1 2 3", "3 loads for 8 experts"), ("-1 1 1 1 1 1 1 1", "negative")]
)
def test_bad_files_of_loads_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "loads.txt"
    file.write_text(text)
    result = planner(f"explain experts {JOB} --loads", file)

    assert result.exit_code == 2
    assert said in result.stderr
