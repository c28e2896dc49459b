"""What users reported about memory and legality, and what the planner says about it.

    python -m benchmarks.reports [--bytes]          (from the root of the repository)

Tables: ``tests/data/reports`` (its README has columns and rules of reading). A memory case goes the
way of ``planner check``; a rule case is typed at the command line.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from typer.testing import CliRunner

from planner.cli import app
from planner.layout.rules import layout_problems
from planner.memory.interval import Verdict
from planner.report.memory import COMPONENTS, Checked, checked
from planner.spec.huggingface import load_model
from planner.spec.job import SoftwareSpec
from planner.units import GIB
from planner.validate.cases import Case, read_case, read_rows

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "reports"
MEMORY_FILE, RULE_FILE = FOLDER / "memory_cases.csv", FOLDER / "rule_cases.yaml"
Row = dict[str, str]
RuleRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the planner says of a memory case; ``right``: whether the user saw that."""

    row: Row
    case: Case
    found: Checked
    right: bool


@cache
def memory_rows() -> list[Row]:
    """Return every row of the memory table, used or not."""
    return read_rows(MEMORY_FILE)


def memory_case(row: Row) -> Case:
    """Return the case of a row, read as ``planner validate`` reads measured runs.

    ``shipped`` names a model of the package, ``software`` properties of the run that differ from
    its framework's default.
    """
    case = read_case(row)
    if row["shipped"]:
        case = replace(case, model=load_model(row["shipped"]))
    changes = dict(word.split("=") for word in row["software"].split())
    name = " ".join([case.job.software.name, *row["software"].split()])
    fields = case.job.software.model_dump() | changes | {"name": name}
    job = case.job.model_copy(update={"software": SoftwareSpec.model_validate(fields)})
    return replace(case, job=job)


def is_right(outcome: str, found: Checked) -> bool:
    """Return whether a verdict is what the user saw.

    ``oom``: the planner says "does not fit", or "too close to tell" with the estimate over the
    capacity. ``fits``: it does not say "does not fit", and the estimate is under the capacity.
    """
    over = found.fullest.device > found.capacity_bytes
    if outcome == "oom":
        return over and found.verdict is not Verdict.FITS
    return not over and found.verdict is not Verdict.DOES_NOT_FIT


def memory_answer(row: Row) -> Answer:
    """Return what the planner says of a used row; ValueError where it refuses the layout."""
    case = memory_case(row)
    problems = layout_problems(case.model, case.cluster, case.job, case.layout)
    found = checked(case.model, case.cluster, case.job, case.layout, case.split, problems)
    if found.problems:
        raise ValueError(f"{row['id']}: the planner refuses the layout: {found.problems}")
    return Answer(row, case, found, is_right(row["outcome"], found))


@cache
def rule_rows() -> list[RuleRow]:
    """Return every row of the table of rules and questions, used or not."""
    rows: list[RuleRow] = yaml.safe_load(RULE_FILE.read_text("utf-8"))
    return rows


def rule_answer(row: RuleRow) -> tuple[int, str]:
    """Return exit code and words of the planner; the row's file lies in a folder of its own."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / row.get("file", "none")
        if "text" in row:
            file.write_text(row["text"])
        words = row["command"].format(file=file).split()
        result = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(app, words)
    return result.exit_code, result.output


def rule_right(row: RuleRow) -> bool:
    """Return whether the planner gives the answer that the row asks for."""
    code, said = rule_answer(row)
    return code == row["exit"] and all(words in said for words in row["answer"])


def bytes_lines() -> Iterator[str]:
    """Yield one line for each used memory case: what it needs by component, in GiB."""
    titles = (*COMPONENTS.values(), "reserve", "outside", "total", "of")
    yield f"{'id':12}{'reported':9}{'answer':6}" + "".join(f"{title:>8}" for title in titles)
    for row in used(memory_rows()):
        answer = memory_answer(row)
        full = answer.found.fullest
        sizes = [getattr(full, name) for name in COMPONENTS]
        sizes += [full.reserved - full.allocated, full.outside, full.device]
        sizes.append(answer.found.capacity_bytes)
        said = "right" if answer.right else "wrong"
        cells = "".join(f"{size / GIB:8.1f}" for size in sizes)
        yield f"{row['id']:12}{row['outcome']:9}{said:6}{cells}  {full.moment}"


def used(rows: Sequence[Any]) -> list[Any]:
    """Return the rows that are asked."""
    return [row for row in rows if row["used"] in ("yes", True)]


def _counts(rows: Sequence[Any], right: Callable[[Any], bool]) -> Iterator[str]:
    """Yield a table line for each class of reports."""
    for kind in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == kind]
        asked = used(mine)
        good = sum(map(right, asked))
        yield (
            f"| {kind} | {len(mine)} | {len(mine) - len(asked)} | {len(asked)} | {good} "
            f"| {len(asked) - good} |"
        )


def summary() -> Iterator[str]:
    """Yield the summary as Markdown: counts by class and outcome, unusable rows, wrong answers."""
    answers = {row["id"]: memory_answer(row) for row in used(memory_rows())}
    yield "| class | rows | unusable | used | right | wrong |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    yield from _counts(memory_rows(), lambda row: answers[row["id"]].right)
    yield from _counts(rule_rows(), rule_right)
    yield ""
    for outcome, words in (("oom", "ran out of memory"), ("fits", "ran")):
        mine = [answer for answer in answers.values() if answer.row["outcome"] == outcome]
        good = sum(answer.right for answer in mine)
        yield f"Of {len(mine)} memory cases that {words}, {good} answers are right."
    yield ""
    yield "Why memory rows are unusable:"
    yield ""
    reasons = Counter(
        row["reason"].split(":")[0].split(";")[0] for row in memory_rows() if row["used"] == "no"
    )
    yield from (f"- {reason}: {count}" for reason, count in reasons.most_common())
    yield ""
    yield "| wrong | thread | reported | estimate | of | cause |"
    yield "| --- | --- | --- | ---: | ---: | --- |"
    yield from (_wrong(answer) for answer in answers.values() if not answer.right)
    yield from (
        f"| {row['id']} | {row['thread']} | {row['reported']} | | | {row['cause']} |"
        for row in used(rule_rows())
        if not rule_right(row)
    )


def _wrong(answer: Answer) -> str:
    row, found = answer.row, answer.found
    sizes = (found.fullest.device / GIB, found.capacity_bytes / GIB)
    cells = " | ".join(f"{size:.1f} GiB" for size in sizes)
    return f"| {row['id']} | {row['thread']} | {row['outcome']} | {cells} | {row['cause']} |"


def main() -> None:
    """Print the summary, or the bytes of every memory case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", action="store_true", help="bytes of every memory case")
    chosen = bytes_lines() if parser.parse_args().bytes else summary()
    print("\n".join(chosen))


if __name__ == "__main__":
    main()
