"""The answer of ``planner check FILE``: what was understood, what breaks, what does nothing."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from planner.report.layout import column_table, listed, section
from planner.report.memory import smaller_table
from planner.report.speed import faster_table
from planner.search.changes import SingleChange

Row = tuple[str, str, str]  # setting, value, meaning


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a framework's file says and whether it starts, fits and how fast, in sentences."""

    title: str
    verdict: str
    details: tuple[str, ...]
    understood: tuple[Row, ...]
    unknown: tuple[Row, ...]
    neutral: tuple[Row, ...]
    problems: tuple[str, ...]
    silent: tuple[str, ...]
    assumed: tuple[str, ...]
    unpriced: tuple[str, ...]
    better: "Better | None" = None


@dataclass(frozen=True, slots=True)
class Better:
    """The best single changes: faster ones of a layout that fits, smaller ones of another."""

    fits: bool
    step_time_s: float
    changes: tuple[SingleChange, ...]

    def section(self) -> Group:
        """Return them as a table under what they are good for."""
        if self.fits:
            title = "Single changes that make it faster"
            return section(title, faster_table(self.changes, self.step_time_s))
        return section("Single changes that lower the peak", smaller_table(self.changes))


def file_report(found: FileReport) -> Group:
    """Return the verdict first, then the rules, the settings and what was assumed."""
    parts: list[RenderableType] = [Text(found.verdict, style="bold")]
    if found.problems:
        parts.append(listed(found.problems))
    parts += [Text(line) for line in found.details]
    if found.better and found.better.changes:
        parts.append(found.better.section())
    table = column_table(("setting", "left"), ("value", "left"), ("meaning", "left"))
    table.columns[0].no_wrap = True  # a setting is searched for by its whole name
    for row in found.understood:
        table.add_row(*(cut(cell) for cell in row))
    if found.understood:
        parts.append(section(f"Understood in {found.title}", table))
    for head, lines in (
        ("Does nothing", found.silent),
        ("Not understood", [f"{name} {value}".strip() for name, value, _ in found.unknown]),
        ("Assumed", found.assumed),
        ("Understood, but not in the estimate", found.unpriced),
    ):
        if lines:
            parts += [Text(), Text(head, style="bold cyan"), listed(lines)]
    if found.neutral:
        more = f"{len(found.neutral)} more {'setting' if len(found.neutral) == 1 else 'settings'}"
        parts += [Text(), Text(f"Without a part in layout, memory or step time: {more}.")]
    return Group(*parts)


def cut(text: str, most: int = 60) -> str:
    """Return text that stays in its column."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def file_json(found: FileReport) -> dict[str, object]:
    """Return the same as plain data."""
    rows = {name: [dict(zip(("setting", "value", "meaning"), row, strict=True)) for row in rows]
            for name, rows in (("understood", found.understood), ("unknown", found.unknown),
                               ("neutral", found.neutral))}  # fmt: skip
    return {
        "verdict": found.verdict,
        "details": list(found.details),
        "starts": not found.problems,
        "problems": list(found.problems),
        "silent": list(found.silent),
        "assumed": list(found.assumed),
        "unpriced": list(found.unpriced),
        "changes": [
            {"text": one.text, "step_time_s": one.step_time_s, "device_bytes": one.device_bytes}
            for one in (found.better.changes if found.better else ())
        ],
        **rows,
    }
