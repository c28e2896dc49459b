"""What is wrong with the words of a command: all of it at once, each with its value and remedy."""

import re
from typing import Any

import typer
from typer.core import TyperCommand

from planner.errors import SpecError

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer does not export it


class BadUsageError(SpecError):
    """Options that are missing, unknown or of the wrong kind; ``hint`` says where to read more."""

    def __init__(self, problems: list[str], command_path: str) -> None:
        super().__init__(problems)
        self.hint = f"options and examples: {command_path} --help"


class Command(TyperCommand):
    """A command that names every missing and wrong option, not only the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command; ``BadUsageError`` with all that is wrong."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if is_help(error):
                raise
            found = self._problems(ctx, words) or [said(error)]
            raise BadUsageError(found, ctx.command_path) from None

    def _problems(self, ctx: Any, words: list[str]) -> list[str]:
        try:
            given, left, _ = self.make_parser(ctx).parse_args(args=words)
        except UsageError:
            return []  # an unknown option: what the other words mean is not known
        problems = []
        for param in self.get_params(ctx):
            try:
                param.handle_parse_result(ctx, given, left)
            except UsageError as error:
                problems.append(_of(param, given.get(param.name), str(error)))
        return problems


def is_help(error: Exception) -> bool:
    """Whether nothing is wrong: a group without a command shows its help."""
    return type(error).__name__ == "NoArgsIsHelpError"


def said(error: Exception) -> str:
    """Return a complaint about the words themselves as a sentence like all others."""
    message = str(getattr(error, "message", error))
    option = getattr(error, "option_name", None)
    if option is None or not message.startswith("No such option"):
        return message
    near = sorted(getattr(error, "possibilities", None) or ())
    remedy = f"did you mean {' or '.join(near)}?" if near else "leave it out"
    return f"{option}: no such option; {remedy}"


def _of(param: Any, value: object, message: str) -> str:
    """Return what is wrong with one option or argument, and what it takes."""
    if param.param_type_name == "argument":
        name = param.metavar or str(param.name).upper()
    else:
        name = max(param.opts, key=len)
    takes = (param.help or "").rstrip(".")
    if not any(letter.isupper() for letter in takes.partition(" ")[0][1:]):  # no abbreviation
        takes = takes[:1].lower() + takes[1:]
    if value is None:
        return f"{name}: is needed; {takes}"
    text = repr(value if isinstance(value, str) else str(value))
    if least := re.search(r"greater than or equal to (\d+)|x>=(\d+)", message):
        return f"{name}: {text} is too small, {least[1] or least[2]} is the least; {takes}"
    if most := re.search(r"less than or equal to (\d+)|<=x?(\d+)", message):
        return f"{name}: {text} is too large, {most[1] or most[2]} is the most; {takes}"
    if "integer" in message:
        return f"{name}: {text} is not a whole number, like 8192; {takes}"
    return f"{name}: {text} is not valid, {message[:1].lower()}{message[1:].rstrip('.')}; {takes}"
