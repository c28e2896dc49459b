"""Commands that a page shows with a few lines of their answers, and whether those still hold.

A block ```` ```text ```` that begins with ``$ `` holds files (``$ cat NAME`` and its lines) and
commands (``$ planner ...`` and lines of its answer, ``...`` where some are left out). Numbers may
have changed since; words may not. A block ```` ```bash ```` holds commands alone, a block
```` ```yaml ```` that begins with ``# NAME.yaml`` that file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
GAP = "..."
_BLOCK = re.compile(r"^```text\n(\$ .*?)^```$", re.S | re.M)
_ANY_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
_FILE = re.compile(r"# (\S+\.yaml)\n")
_STEP = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.M)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page, in one line, and the lines that stand below it."""

    command: str
    shown: str


def sections(page: str) -> dict[str, str]:
    """Return the text of each section of a page that shows a command, by its heading."""
    parts = re.split(r"^##? (.+)$", page, flags=re.M)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {name: text for name, text in named if _BLOCK.search(text)}


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of all blocks, in order."""
    for block in _BLOCK.findall(text):
        for command, shown in _STEP.findall(block):
            yield Step(re.sub(r"\\\n\s*", "", command), shown)


def every_step(page: str) -> Iterator[Step]:
    """Yield all that a reader would type, in order: also commands without answers, and files."""
    for match in _ANY_BLOCK.finditer(page):
        kind, text = match.groups()
        if kind == "bash":
            lines = re.sub(r"(\\|&&)\n\s*", r"\1 ", text).replace("\\ ", "").splitlines()
            yield from (Step(line.partition(" #")[0].rstrip(), "") for line in lines if line)
        elif kind == "yaml" and (file := _FILE.match(text)):
            yield Step(f"cat {file[1]}", text)
        else:
            yield from steps(match[0])


def _pattern(shown: str) -> re.Pattern[str]:
    chunks = []
    for chunk in shown.split(GAP):
        words = (NUMBER.split(word) for word in chunk.split())
        number = f"({NUMBER.pattern})"
        chunks.append(r"\s+".join(number.join(map(re.escape, parts)) for parts in words))
    return re.compile(".*?".join(chunks), re.S)


def fresh(shown: str, printed: str) -> str | None:
    """Return ``shown`` with the numbers of ``printed``; None where the words are not there."""
    found = _pattern(shown).search(printed)
    if found is None:
        return None
    numbers = iter(found.groups())
    return NUMBER.sub(lambda _: next(numbers), shown)
