"""How answers are laid out on a terminal: sections with a title, tables without rules."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def section(title: str, body: RenderableType) -> Group:
    """Return an indented part of an answer under its title."""
    return Group(Text(), Text(title, style="bold cyan"), Padding(body, (0, 0, 0, 2), expand=False))


def listed(lines: Iterable[str]) -> RenderableType:
    """Return lines one below the other, each behind a dash; what wraps stays to its right."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("-", Text(line))
    return Padding(table, (0, 0, 0, 2), expand=False)


def column_table(*columns: tuple[str, str]) -> Table:
    """Return an empty table; each column is (title, ``left`` or ``right``), right for numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in columns:
        right = justify == "right"
        table.add_column(title, justify="right" if right else "left", no_wrap=right)
    return table
