"""nccl-tests logs: any collective, nodes, prefixes and mixed output, and what is wrong in one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.formats.nccl_tests import is_nccl_tests, read_nccl_tests
from tests.formats.measured import OLD_HEADER, SIZES, nccl_tests, seconds

LOG = Path("nccl.log")

# what the log is of, and the curve's kind, ranks, level, ranks per node
CURVES: list[tuple[dict[str, Any], tuple[str, int, str, int]]] = [
    ({}, ("all_reduce", 8, "domain", 8)),
    ({"kind": "all_gather", "ranks": 4}, ("all_gather", 4, "domain", 4)),
    ({"kind": "reduce_scatter", "ranks": 16, "nodes": 2}, ("reduce_scatter", 16, "cluster", 8)),
    ({"kind": "alltoall", "ranks": 8, "nodes": 8}, ("all_to_all", 8, "cluster", 1)),
    ({"kind": "sendrecv", "ranks": 2}, ("send_recv", 2, "domain", 2)),
]


@pytest.mark.parametrize(("printed", "curve"), CURVES)
@pytest.mark.parametrize("prefix", ["", "0: ", "[1,0]<stdout>:"])
def test_a_log_is_a_curve(printed: dict[str, Any], curve: tuple[Any, ...], prefix: str) -> None:
    text = "".join(f"{prefix}{line}\n" for line in nccl_tests(**printed).splitlines())

    reading = read_nccl_tests(LOG, text)

    (link,) = reading.links
    assert (link.kind, link.ranks, link.level, link.ranks_per_node) == curve
    assert [size for size, _ in link.points] == SIZES
    for size, time in link.points:
        assert time == pytest.approx(seconds(size), abs=1e-9)
    assert reading.device == "NVIDIA H100 80GB HBM3"
    assert (reading.backend, reading.world_size) == ("nccl", curve[1])
    assert reading.source == "NCCL tests 2.17.6, nccl.log"
    assert is_nccl_tests(text)


def test_tests_one_after_the_other_are_several_curves() -> None:
    text = nccl_tests("all_reduce", 8) + nccl_tests("all_gather", 4) + nccl_tests("alltoall", 16, 2)

    links = read_nccl_tests(LOG, text).links

    found = [(link.kind, link.ranks, link.level) for link in links]
    assert found == [("all_reduce", 8, "domain"), ("all_gather", 4, "domain"),
                     ("all_to_all", 16, "cluster")]  # fmt: skip


def test_lines_of_nccl_in_between_do_not_matter() -> None:
    lines = nccl_tests().splitlines()
    mixed = [part for line in lines for part in (line, "node-0:900:912 [0] NCCL INFO Ring 0 of 8")]

    assert read_nccl_tests(LOG, "\n".join(mixed)).links == read_nccl_tests(LOG, nccl_tests()).links


# how logs reach the web: what stands before each line, and what older programs print otherwise
STAMP = "2025-03-01T10:00:00.123456789Z "
SHAPES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "mpirun --tag-output": lambda line: f"[1,0]<stdout>:{line}",
    "srun --label": lambda line: f"00: {line}",
    "torchrun": lambda line: f"[default0]:{line}",
    "container runtime": lambda line: f"{STAMP}stdout F {line}",
    "kubectl logs --timestamps --prefix": lambda line: f"[pod/job-worker-0/nccl] {STAMP}{line}",
    "bus numbers of 2020": lambda line: line.replace("[0000:", "[0x").replace(":00:00]", "]"),
    "ranks without groups": lambda line: re.sub(r" Group\s+\d+", "", line),
    "rccl-tests": lambda line: line.replace("nccl-tests version", "rccl-tests: RCCL version"),
}


@pytest.mark.parametrize("kind", ["all_reduce", "alltoall"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logs_of_every_shape_hold_the_same_curve(shape: str, kind: str) -> None:
    plain = nccl_tests(kind, 16, 2)
    text = "".join(f"{SHAPES[shape](line)}\n" for line in plain.splitlines())

    assert is_nccl_tests(text)
    assert read_nccl_tests(LOG, text).links == read_nccl_tests(LOG, plain).links


# a log that does not name its test: file, collective and ranks, what is said with --collective
UNNAMED = [
    ("all_reduce_8.txt", "all_reduce", 8, None, "all_reduce"),
    ("allgather.log", "all_gather", 8, None, "all_gather"),
    ("run.log", "all_reduce", 8, None, "all_reduce"),
    ("run.log", "reduce_scatter", 8, None, "reduce_scatter"),
    ("run.log", "sendrecv", 8, None, "send_recv"),
    ("run.log", "alltoall", 8, "alltoall", "all_to_all"),
    ("run.log", "all_gather", 8, "all_gather", "all_gather"),
    ("run.log", "all_gather", 8, None, None),
    ("run.log", "all_reduce", 2, None, None),
]


@pytest.mark.parametrize(("file", "printed", "ranks", "asked", "kind"), UNNAMED)
def test_an_unnamed_test_is_told_by_file_or_columns_or_the_user(
    file: str, printed: str, ranks: int, asked: str | None, kind: str | None
) -> None:
    text = nccl_tests(printed, ranks, named=False)
    if kind is None:
        with pytest.raises(SpecError, match="does not say which collective ran; add --collective"):
            read_nccl_tests(Path(file), text, asked)
    else:
        assert read_nccl_tests(Path(file), text, asked).links[0].kind == kind


def test_older_columns_are_read_by_name() -> None:
    head, _, tail = nccl_tests().partition("#                                  ")
    rows = [line.split() for line in tail.splitlines() if line.strip()[:1].isdigit()]
    kept = [" ".join([*row[:4], *row[5:8], "5e-07", *row[9:12], "5e-07"]) for row in rows]

    link = read_nccl_tests(LOG, "\n".join([head, OLD_HEADER, *kept])).links[0]

    assert link.points == read_nccl_tests(LOG, nccl_tests()).links[0].points


def cut(text: str) -> str:
    lines = text.splitlines()
    row = next(index for index, line in enumerate(lines) if line.strip()[:1].isdigit())
    lines[row] = " ".join(lines[row].split()[:6])
    return "\n".join(lines)


def spoiled(text: str, column: int, cell: str) -> str:
    lines = text.splitlines()
    row = next(index for index, line in enumerate(lines) if line.strip()[:1].isdigit())
    words = lines[row].split()
    words[column] = cell
    lines[row] = " ".join(words)
    return "\n".join(lines)


WHOLE = nccl_tests()
NO_RANKS = "\n".join(line for line in WHOLE.splitlines() if "Rank" not in line)
NO_ROWS = "\n".join(line for line in WHOLE.splitlines() if not line.strip()[:1].isdigit())
# a log, and what is wrong with it
BAD = [
    ("hello\n", "no table of nccl-tests"),
    (NO_RANKS, "nccl.log:8: no 'Rank' lines before this table; keep the head"),
    (NO_ROWS, "nccl.log:16: the table has no rows; let the test finish"),
    (cut(WHOLE), "nccl.log:18: 6 cells under 13 columns; the line is cut short"),
    (spoiled(WHOLE, 5, "fast"), "nccl.log:18: time: 'fast' is not a number of microseconds"),
    (spoiled(WHOLE, 8, "17"), "nccl.log:18: #wrong: 17 wrong values; repair the link"),
    (nccl_tests(ranks=1), "a single rank talks to nobody"),
    (nccl_tests(ranks=9, nodes=2), "ranks per node differ (node-0 5, node-1 4)"),
    (nccl_tests().replace("all_reduce_perf", "broadcast_perf"), "broadcast is not priced"),
    (nccl_tests() + nccl_tests(device="NVIDIA A100"), "ranks on different GPUs: NVIDIA A100, N"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_nccl_tests(LOG, text)

    assert said in str(caught.value)
    assert all(str(LOG) in problem for problem in caught.value.problems)


def test_all_bad_lines_are_named_and_a_flood_is_cut() -> None:
    text = nccl_tests(sizes=[4**power for power in range(3, 17)])
    lines = [
        " ".join(line.split()[:6]) if line.strip()[:1].isdigit() else line
        for line in text.splitlines()
    ]

    with pytest.raises(SpecError) as caught:
        read_nccl_tests(LOG, "\n".join(lines))

    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1] == "and 4 more of this kind"
