"""What a new user sees: ``--help`` of every command, with an example that works."""

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from planner.cli import app
from planner.cli.examples import EXAMPLES
from tests.cli.command import planner

ROOT: Any = typer.main.get_command(app)


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command and group below ``group`` with the words that call it."""
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        yield words, command
        if hasattr(command, "commands"):
            yield from commands(command, words)


ALL = dict(commands(ROOT))


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("name", ["", *ALL])
def test_help_is_whole_and_fits(name: str, columns: int) -> None:
    lines = planner(f"{name} --help", columns=columns).stdout.splitlines()
    listed = "\n".join(lines).partition("Commands:")[2]

    assert [line for line in lines if len(line) > columns or line != line.rstrip()] == []
    assert "..." not in listed  # no first line of a command is cut


def test_every_command_has_an_example() -> None:
    assert set(EXAMPLES) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_examples_are_shown_and_understood(name: str) -> None:
    shown = planner(f"{name} --help").stdout
    typed = " ".join(shown.replace("\\\n", " ").partition("Example")[2].split())

    for example in EXAMPLES[name]:
        assert f"planner {example}" in typed
        context = ROOT.make_context("planner", shlex.split(example))
        words = [*context._protected_args, *context.args]
        group = ROOT
        while hasattr(group, "commands"):  # what is left is for the command that is named first
            word, group, words = group.resolve_command(context, words)
            context = group.make_context(word, words, parent=context)
            words = [*context._protected_args, *context.args]
        assert not words


def test_questions_about_one_layout_have_the_same_options() -> None:
    own = {"named", "variables", "measured", "model"}
    listed = [
        [(one.name, one.default, one.opts) for one in ALL[name].params if one.name not in own]
        for name in ("check", "explain memory", "explain speed")
    ]

    assert listed[0] == listed[1] == listed[2]
    assert len(listed[0]) > 20


def test_a_shell_can_complete_commands() -> None:
    env = {"_PLANNER_COMPLETE": "complete_bash", "COMP_WORDS": "planner expl", "COMP_CWORD": "1"}

    assert CliRunner(env=env).invoke(app, prog_name="planner").stdout.split() == ["explain"]
