"""Reader of the text that nccl-tests and rccl-tests print: seconds of a collective by size.

A log may hold several tests one after the other, lines of NCCL in between, and the prefix that a
launcher puts before each line. Sizes are in bytes of the full buffer, times in microseconds; of the
two columns of times the first is taken, out of place.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import SpecError
from planner.formats.reading import Reading, first
from planner.spec.gpu import bus_factor
from planner.spec.measured import Kind, LinkCurve

COLLECTIVES: dict[str, Kind] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
}
NOT_PRICED = ("broadcast", "reduce", "gather", "scatter", "hypercube")
# of mpirun, of srun and torchrun, of Kubernetes (time, perhaps stream and flag, perhaps pod first)
_PREFIX = re.compile(
    r"^\s*(?:\[pod/\S+\]\s)?(?:\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)\s(?:std\w+\s[FP]\s)?)?"
    r"(?:\[\d+,\d+\]<std\w+>:?|\[\w+\d+\]:|\d+:)?\s?"
)
_TEST = re.compile(r"\b(\w+?)_perf\b")
_HEADER = re.compile(r"^\s*#\s*size\s.*\btime\b.*$")
_RANK = re.compile(r"Rank\s+(\d+)\s.*?\bon\s+(\S+)\s+device\s+\d+\s+\[[^\]]*\]\s+(.+?)\s*$")
_VERSION = re.compile(r"(?:nccl-tests version|NCCL version|RCCL version)\s+([\w.+-]+)")
_NEAR = 0.03  # of a ratio of two bandwidths that are printed with two decimals


@dataclass
class _Test:
    """One table of a log: what ran on which hosts, and its rows."""

    line: int
    name: str
    columns: list[str]
    hosts: list[str]
    devices: list[str]
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)


def is_nccl_tests(text: str) -> bool:
    """Whether a text holds a table of nccl-tests."""
    return any(_HEADER.match(_PREFIX.sub("", line)) for line in text.splitlines())


def read_nccl_tests(path: Path, text: str, collective: str | None = None) -> Reading:
    """Return the curves of a log; ``collective`` names the test where the log does not say it."""
    found = list(_tests(text))
    problems: list[str] = []
    if not found:
        raise SpecError(f"{path}: no table of nccl-tests; give what all_reduce_perf prints")
    links = []
    for test in found:
        try:
            links.append(_link(path, test, collective))
        except SpecError as error:
            problems += error.problems
    devices = sorted({device for test in found for device in test.devices})
    if len(devices) > 1:
        problems.append(
            f"{path}: ranks on different GPUs: {', '.join(devices)}; one kind each file"
        )
    if problems:
        raise SpecError(first(problems))
    version = _VERSION.search(text)
    said = f"NCCL tests {version[1]}" if version else "NCCL tests"
    return Reading(
        devices[0],
        max(link.ranks for link in links),
        "rccl" if devices[0].startswith("AMD") or "rccl" in text.lower() else "nccl",
        f"{said}, {path.name}",
        tuple(links),
    )


def _tests(text: str) -> Iterator[_Test]:
    """Yield the tables of a log; ranks and the name of a test stand before its table."""
    ranks: dict[int, tuple[str, str]] = {}
    name, test = "", None
    for number, raw in enumerate(text.splitlines(), 1):
        line = _PREFIX.sub("", raw)
        if rank := _RANK.search(line):
            if rank[1] == "0":
                ranks = {}
            ranks[int(rank[1])] = (rank[2], rank[3])
        elif _HEADER.match(line):
            columns = line.split("#", 1)[1].split()
            hosts, devices = ([pair[side] for pair in ranks.values()] for side in (0, 1))
            if test is not None:
                yield test
            test, name = _Test(number, name, columns, hosts, devices), ""
        elif test is not None and line.split()[:1] and line.split()[0].isdigit():
            test.rows.append((number, dict(_cells(test.columns, line.split()))))
        elif said := _TEST.search(line):
            name = said[1]
    if test is not None:
        yield test


def _cells(columns: list[str], words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (column, cell), of columns that stand twice the first; ``cells`` is their number."""
    yield "cells", str(len(words))
    yield from reversed(list(zip(columns, words, strict=False)))


def _link(path: Path, test: _Test, collective: str | None) -> LinkCurve:
    """Return the curve of one table."""
    place = f"{path}:{test.line}"
    if not test.hosts:
        raise SpecError(
            f"{place}: no 'Rank' lines before this table; keep the head of the output, which "
            "says how many GPUs took part"
        )
    per_node = Counter(test.hosts)
    if len(set(per_node.values())) > 1:
        counts = ", ".join(f"{host} {count}" for host, count in sorted(per_node.items()))
        raise SpecError(f"{place}: ranks per node differ ({counts}); run with equal nodes")
    points = _points(path, test)
    ranks = len(test.hosts)
    if ranks < 2:
        raise SpecError(f"{place}: a single rank talks to nobody; run with two GPUs or more")
    return LinkCurve(
        kind=_kind(path, test, ranks, collective),
        ranks=ranks,
        level="domain" if len(per_node) == 1 else "cluster",
        ranks_per_node=ranks // len(per_node),
        points=tuple(points),
    )


def _points(path: Path, test: _Test) -> list[tuple[int, float]]:
    """Return (bytes, seconds) of the rows of a table."""
    points: list[tuple[int, float]] = []
    problems = []
    for number, cells in test.rows:
        place = f"{path}:{number}"
        if int(cells["cells"]) != len(test.columns):
            said = f"{cells['cells']} cells under {len(test.columns)} columns"
            problems.append(f"{place}: {said}; the line is cut short or mixed with another")
            continue
        try:
            size, seconds = int(cells["size"]), float(cells["time"]) * 1e-6
        except ValueError:
            problems.append(f"{place}: time: {cells['time']!r} is not a number of microseconds")
            continue
        wrong = cells.get("#wrong", "0")
        if wrong not in ("0", "N/A") and "e" not in wrong:  # older versions print an error there
            problems.append(f"{place}: #wrong: {wrong} wrong values; repair the link, run it again")
        if size and seconds > 0:
            points.append((size, seconds))
    if not points and not problems:
        problems.append(f"{path}:{test.line}: the table has no rows; let the test finish")
    if problems:
        raise SpecError(problems)
    return points


def _kind(path: Path, test: _Test, ranks: int, collective: str | None) -> Kind:
    """Return the collective: as asked, as the log or the file says, or as the columns tell."""
    bare = path.name.lower().replace("-", "_")
    near = (name for name in COLLECTIVES if name in bare or name.replace("_", "") in bare)
    name = collective or test.name or next(near, "") or _by_columns(test, ranks)
    if name in NOT_PRICED:
        known = ", ".join(COLLECTIVES)
        raise SpecError(f"{path}:{test.line}: {name} is not priced; measure one of {known}")
    if name not in COLLECTIVES:
        known = ", ".join(COLLECTIVES)
        said = f"{name!r} is no collective" if name else "the log does not say which collective ran"
        raise SpecError(f"{path}:{test.line}: {said}; add --collective, one of {known}")
    return COLLECTIVES[name]


def _by_columns(test: _Test, ranks: int) -> str:
    """Return the collective whose bus bandwidth has the printed ratio, where only one has it."""
    cells = test.rows[-1][1]
    try:
        ratio = float(cells["busbw"]) / float(cells["algbw"])
    except (KeyError, ValueError, ZeroDivisionError):
        return ""
    reduces = cells.get("redop", "") not in ("", "none")
    names = ("all_reduce", "reduce_scatter", "sendrecv") if reduces else ()
    fitting = [
        name for name in names
        if abs(ratio / bus_factor(COLLECTIVES[name], ranks) - 1) < _NEAR
    ]  # fmt: skip
    return fitting[0] if len(fitting) == 1 else ""
