"""Words that are missing or wrong: all at once, each with its value and remedy, and exit code 2."""

import pytest

from tests.cli.command import planner

JOB = "--global-batch 8 --seq-len 64"
TABLE = [  # what is typed, what each line says
    ("recommend tiny-llama --cluster dgx-h100",
     ["--global-batch: is needed; sequences of one step",
      "--seq-len: is needed; tokens of one sequence"]),
    ("recommend --cluster dgx-h100 --nodes x --global-batch 0 --seq-len 8k",
     ["MODEL: is needed; a shipped name (planner models)",
      "--global-batch: '0' is too small, 1 is the least",
      "--seq-len: '8k' is not a whole number, like 8192",
      "--nodes: 'x' is not a whole number"]),
    (f"recommend nope --cluster dgx-h10 {JOB}",
     ["model 'nope' is not shipped; give the path of a file",
      "cluster 'dgx-h10' is not shipped; did you mean 'dgx-h100'?"]),
    (f"recommend tiny-lama {JOB}",
     ["model 'tiny-lama' is not shipped; did you mean 'tiny-llama'?", "--cluster: is needed"]),
    ("max-seq nope --cluster dgx-h10 --global-batch 8",
     ["model 'nope' is not shipped", "cluster 'dgx-h10' is not shipped"]),
    ("check nope", ["model 'nope' is not shipped", "--cluster: is needed, unless a plan",
                    "--global-batch: is needed, unless a plan", "--seq-len: is needed, unless"]),
    ("check plan.json", ["plan.json: no such file; check the path"]),
    ("check train.sh --cluster dgx-h100", ["train.sh: no such file; check the path"]),
    ("explain speed --zero 7",
     ["MODEL|PLAN: is needed", "--zero: '7' is too large, 3 is the most; ZeRO"]),
    ("recommend tiny-llama --globalbatch 8",
     ["--globalbatch: no such option; did you mean --global-batch or --micro-batch?"]),
    ("convert", ["FILE: is needed", "--to: is needed"]),
    ("explain mem", ["No such command 'mem'"]),
    ("recommand", ["No such command 'recommand'"]),
    (f"check tiny-llama --cluster dgx-h100 {JOB} --tp 3",
     ["tp*cp*pp=3 does not divide the 32 GPUs, 2 and 4 do; change a degree or --nodes"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "wanted"), TABLE, ids=[words for words, _ in TABLE])
def test_all_that_is_wrong_at_once(words: str, wanted: list[str]) -> None:
    result = planner(words)

    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2
    assert len(said) == len(wanted)
    assert all(f"error: {start}" in line for line, start in zip(said, wanted, strict=True))


@pytest.mark.parametrize("words", ["recommend", "explain mem", "profile show", "recommand"])
def test_a_wrong_word_is_told_where_to_read_more(words: str) -> None:
    start, _, command = planner(words).stderr.splitlines()[-1].partition(": ")

    assert start == "options and examples"
    assert planner(command.partition(" ")[2]).exit_code == 0


def test_a_group_without_a_command_shows_its_help() -> None:
    assert "Commands:" in planner("explain").output
