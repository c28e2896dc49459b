"""Every command that a page shows is run; what a page quotes of its answer must still be printed.

What is not run stands in ``NOT_RUN`` with its reason. Lines with placeholders, as ``planner cost
PLAN``, are no commands: their names and options are checked.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from planner.cli import app
from scripts.quoted import Step, every_step, fresh, sections, steps
from tests.cli.command import planner

ROOT = Path(__file__).parents[2]
QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
PAGES = {
    path.name: path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "questions.md"  # each of its sections is a test of its own
}
NOT_RUN = {  # the start of a command: why it is not run here
    ("README.md", "python3 -m venv"): "downloads the dependencies; CI does it before these tests",
    ("README.md", "bash scripts/test"): "is what runs these tests",
    ("README.md", "bash tiny/launch.sh"): "eight processes train; tests/launcher starts them",
    ("accuracy.md", "planner validate"): "the files of measured runs do not ship",
    ("contributing.md", "bash scripts/test"): "is what runs these tests",
    ("contributing.md", "COVER=1 bash scripts/test"): "is what runs these tests",
}
WRITTEN = re.compile(
    r"^<!-- (\S+) -->\n.*?^<!-- /\1 -->", re.S | re.M
)  # whole, by scripts/refresh.py
GOOD = (0, 1, 3)  # yes, an honest no, too close to tell; not bad input (2), not a bug (70)


def run(step: Step) -> str:
    """Run one step in the working directory and return its answer; a ``cat`` writes its file."""
    words = shlex.split(step.command)
    if words[0] == "cat":
        Path(words[1]).write_text(step.shown)
        return step.shown
    assert words[0] == "planner", f"{step.command}: say in NOT_RUN why this is not run"
    result = planner("", *words[1:], columns=100)
    assert result.exit_code in GOOD, f"{step.command}\n{result.stderr}"
    return result.stdout


def reason(page: str, command: str) -> str | None:
    """Return why a command of a page is not run; None: it is."""
    found = [
        why for (name, start), why in NOT_RUN.items() if name == page and command.startswith(start)
    ]
    return found[0] if found else None


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
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if [*every_step(text)]])
def test_commands_of_the_other_pages_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compared = [*every_step(WRITTEN.sub("", PAGES[page]))]

    for step in every_step(PAGES[page]):
        if reason(page, step.command):
            continue
        printed = run(step)
        if step in compared:
            assert fresh(step.shown, printed) is not None, f"{step.command} prints\n{printed}"


@pytest.mark.parametrize(("page", "start"), NOT_RUN)
def test_what_is_not_run_is_still_there(page: str, start: str) -> None:
    assert any(step.command.startswith(start) for step in every_step(PAGES[page]))


def mentions(text: str) -> list[str]:
    """Return what begins with ``planner`` in code spans and in blocks, each in one line."""
    text = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.S | re.M)
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    found = [" ".join(one.split()) for one in (*lines, *spans)]
    return [one for one in found if one.startswith("planner ")]


def unknown_options(mention: str) -> list[str]:
    """Return the options of a mention that its command does not have; no such command: raises."""
    command: Any = typer.main.get_command(app)
    words = [word for word in re.split(r"[\s\[\]|=]+", mention)[1:] if word not in ("", "...")]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        context = command.make_context("planner", words)
        words = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, words)
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return [word for word in words if word.startswith("-") and word not in {*known, "--help"}]


@pytest.mark.parametrize("page", [*PAGES, "questions.md"])
def test_names_and_options_of_commands_exist(page: str) -> None:
    found = {one: unknown_options(one) for one in mentions(PAGES.get(page, QUESTIONS))}

    assert {mention: unknown for mention, unknown in found.items() if unknown} == {}


@pytest.mark.parametrize("page", [*PAGES, "questions.md"])
def test_commands_without_placeholders_are_run(page: str) -> None:
    text = PAGES.get(page, QUESTIONS)
    blocks = re.findall(r"^```text\n(?!\$ )(.*?)^```", text, re.S | re.M)
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()

    typed = [line for line in lines if line.startswith("planner ")]
    assert [line for line in typed if not re.search(r"\b[A-Z]{3,}\b", line)] == []
    assert not any("..." in step.command for step in every_step(text))


@pytest.mark.parametrize("page", [*PAGES, "questions.md"])
def test_files_that_a_page_names_are_here(page: str) -> None:
    text = PAGES.get(page, QUESTIONS)
    files = set(re.findall(r"\b(?:tests|scripts|benchmarks|planner)/[a-z0-9_/]+\.py\b", text))
    modules = re.findall(r"python -m (benchmarks\.[a-z0-9_]+)", text)
    files |= {f"{name.replace('.', '/')}.py" for name in modules}

    assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []


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
