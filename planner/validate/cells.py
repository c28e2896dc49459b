"""Cells of a row of measured runs."""

import re


class Skip(Exception):  # noqa: N818 - an answer, not an error
    """A row that cannot be estimated, and why."""


def number(row: dict[str, str], column: str) -> float | None:
    """Return a cell as a number, or None when it is empty or a word."""
    try:
        return float(row.get(column, ""))
    except ValueError:
        return None


def note(row: dict[str, str], key: str) -> str:
    """Return ``value`` of ``key=value`` in the notes, or an empty string."""
    match = re.search(rf"(?:^|;)\s*{key}=([^;\s]+)", row.get("notes", ""))
    return match[1] if match else ""
