"""What the commands share: where answers, progress and files go."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from planner.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment

Value = TypeVar("Value")


def show(answer: "RenderableType") -> None:
    """Print an answer on stdout, in colour where that is a terminal.

    Commands to copy stay on one line, however long: nothing is cropped. No line ends in blanks.
    """
    from rich.segment import Segment, Segments

    out = console()
    lines = [_bare(line) for line in Segment.split_lines(out.render(answer))]
    out.print(Segments([piece for line in lines for piece in (*line, Segment.line())]),
              crop=False, end="")  # fmt: skip


def _bare(line: "list[Segment]") -> "list[Segment]":
    """Return a line without the blanks that pad its last cell or follow its last word."""
    pieces = list(line)
    while pieces and not pieces[-1].text.strip():
        pieces.pop()
    if pieces:
        last = pieces.pop()
        pieces.append(last._replace(text=last.text.rstrip()))
    return pieces


def console() -> "Console":
    """Return the console of stdout. Numbers and brackets keep their plain look."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """Print a remark on stderr, where it stays out of the answer."""
    print(text, file=sys.stderr)


@contextmanager
def working(text: str, most_s: float | None = None) -> Iterator[None]:
    """Show on a terminal what is under way, how far, and how long it will take; else stay silent.

    What is told to ``planner.progress`` is counted, one kind of thing after the other: the time
    left is that of the present one. ``most_s``: when the work settles at the latest.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from planner.progress import listening

    end = [TextColumn(f"of at most {most_s:,.0f} s", style="dim")] if most_s else []
    whole = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), *end)
    whole.add_task(text, total=None)
    left = (TimeRemainingColumn(), TextColumn("left", style="dim"))
    part = Progress(BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), *left)
    counts = part.add_task("", total=None, visible=False)
    now = ""

    def listener(what: str, done: int, total: int) -> None:
        nonlocal now
        if what != now:
            now = what
            part.reset(counts, total=total, description=what, visible=True)
        part.update(counts, completed=done, total=total)

    group = Group(whole, part)
    with Live(group, console=Console(stderr=True), transient=True), listening(listener):
        yield


def option(name: str, parse: Callable[[str], Value], text: str) -> Value:
    """Parse the text of an option; a ``ValueError`` becomes a message that names the option."""
    try:
        return parse(text)
    except ValueError as error:
        raise SpecError(f"{name}: {error}") from None


def check_free(path: Path | None, force: bool) -> None:
    """Refuse a file that holds something, before any work is spent on it."""
    if path is None:
        return
    if path.is_dir():
        raise SpecError(f"{path}: is a folder; name a file in it, such as {path / 'plan.json'}")
    if not path.resolve().parent.is_dir():
        raise SpecError(f"{path}: its folder does not exist; create {path.parent} first")
    if path.is_file() and path.stat().st_size and not force:
        raise SpecError(f"{path}: exists; name another file, or add --force to replace it")


def save(path: Path, content: str | bytes) -> None:
    """Write a file whole. A device or a pipe is written to, never replaced."""
    from planner.spec.files import write_whole

    if path.exists() and not path.is_file():
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        write_whole(path, content)


def repeated(ctx: typer.Context) -> str:
    """Return the command that is running, as one would type it again; defaults are left out."""
    words = ["planner", str(ctx.info_name)]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value is None or value == parameter.default:
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(max(parameter.opts if value else parameter.secondary_opts, key=len))
        else:
            words += [max(parameter.opts, key=len), str(value)]
    return shlex.join(words)
