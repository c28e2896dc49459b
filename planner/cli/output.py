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
    """Show on a terminal what is under way and since when; elsewhere stay silent.

    ``most_s``: when the work settles at the latest. How long it really takes is not known before.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    end = [TextColumn(f"of at most {most_s:,.0f} s", style="dim")] if most_s else []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), *end)
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(text, total=None)
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
