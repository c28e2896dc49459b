"""Orders in files: torch's notation of a pipeline schedule, read and written.

One row for each rank, one cell for each task: the stage, ``F``, ``I`` (input gradient), ``W``
(weight gradient) or ``B`` (both), and the micro-batch, such as ``2F0``; two that run side by side
are ``(2F1;3B0)OVERLAP_F_B``. A CSV file is what ``_dump_csv(..., "compute_only")`` of
``torch.distributed.pipelining`` writes; a JSON file holds the same as a list of lists.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from planner.errors import SpecError
from planner.schedule.listed import BACKWARD, FORWARD, WEIGHT, Task, listed
from planner.schedule.passes import Order

CUSTOM = "custom"
MOST_SHOWN = 20  # complaints about one file
_ACTION = re.compile(r"(\d+)([FIBW])(\d+)")
_SIDE_BY_SIDE = re.compile(r"\(([^()]*)\)OVERLAP_F_B")
_TRANSFER = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD|SEND_F|RECV_F|SEND_B|RECV_B)\d*")
Action = tuple[int, str, int]  # stage; F, I, W or B; micro-batch
Row = list[tuple[Action, ...]]


def read_order(path: Path) -> Order:
    """Return the order of a ``.csv`` or ``.json`` file.

    SpecError with every complaint at once: cells that say nothing, passes missing, twice or too
    early, stages on two ranks, and ranks that would wait for each other for ever.
    """
    problems: list[str] = []
    rows: list[Row] = []
    for rank, (where, cells) in enumerate(_cells(path)):
        rows.append([])
        for number, cell in enumerate(cells, 1):
            try:
                if cell.strip():
                    rows[rank].append(_task(cell.strip()))
            except ValueError as error:
                problems.append(f"{where}: cell {number}: {error}")
    problems = problems or [f"{path}: {problem}" for problem in _problems(rows)]
    if problems:
        more = [f"{path}: and {len(problems) - MOST_SHOWN} more"]
        raise SpecError(problems[:MOST_SHOWN] + (more if len(problems) > MOST_SHOWN else []))
    return _order(rows)


def actions(order: Order) -> list[list[str]]:
    """Return the tasks of each rank in torch's notation, rows for a file.

    It has no words for two pipelines that cross: their stages are counted one after the other.
    """
    written = []
    for rank in range(order.stages):
        row: list[str] = []
        stages = order.virtual_stage()[rank].tolist()
        for place, stage in enumerate(stages):
            what = "I" if order.splits_backward else "B"
            if not order.backward[rank, place]:
                what = "W" if order.weight[rank, place] else "F"
            action = f"{stage}{what}{order.micro_batch[rank, place]}"
            if not order.joined[rank, place]:
                row.append(action)
            elif what == "W":
                row[-1] = "B".join(row[-1].rsplit("I", 1))
            else:
                row[-1] += f";{action}"
        written.append([f"({task})OVERLAP_F_B" if ";" in task else task for task in row])
    return written


def _cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where each rank's row stands, for messages, and its cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SpecError(f"{path}: cannot be read: {reason}; name a CSV or JSON file") from None
    if path.suffix != ".json":
        for line, row in enumerate(csv.reader(text.splitlines()), 1):
            if any(cell.strip() for cell in row):
                yield f"{path}:{line}", row
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    good = isinstance(rows, list) and all(
        isinstance(row, list) and all(isinstance(cell, str) for cell in row) for row in rows
    )
    if not good:
        raise SpecError(
            f"{path}:1: not a list of ranks; write one list of texts for each rank, "
            'like [["0F0", "0B0"], ["1F0", "1B0"]]'
        )
    yield from ((f"{path}: rank {rank}", row) for rank, row in enumerate(rows))


def _task(cell: str) -> tuple[Action, ...]:
    """Return the actions of a cell; ValueError says what is wrong with it."""
    if _TRANSFER.fullmatch(cell):
        raise ValueError(
            f"{cell!r} moves data, which is added by the simulation; write computation alone "
            "(compute_only)"
        )
    pair = _SIDE_BY_SIDE.fullmatch(cell)
    parts = [part.strip() for part in pair[1].split(";")] if pair else [cell]
    found = [_ACTION.fullmatch(part) for part in parts]
    made = tuple((int(m[1]), m[2], int(m[3])) for m in found if m)
    if len(made) < len(parts):
        raise ValueError(
            f"{cell!r} is no pass; write stage, F, I, W or B, and micro-batch, like 2F0, or a "
            "forward and a backward pass side by side, like (2F1;3B0)OVERLAP_F_B"
        )
    if pair and "".join(what for _, what, _ in made) not in ("FB", "FI"):
        raise ValueError(f"{cell!r} does not hold one F and then one B or I; write these two")
    return made


def _problems(rows: list[Row]) -> Iterator[str]:
    """Yield what keeps rows of good cells from being an order."""
    if not any(rows):
        yield "holds no passes; write one row of cells like 0F0 for each rank"
        return
    held = [sorted({stage for task in row for stage, _, _ in task}) for row in rows]
    count = Counter(stage for stages in held for stage in stages)
    yield from (
        f"stage {stage} stands in the rows of ranks "
        f"{', '.join(str(rank) for rank, mine in enumerate(held) if stage in mine)}; "
        "a stage is held by one rank"
        for stage, times in sorted(count.items())
        if times > 1
    )
    batches = 1 + max(action[2] for row in rows for task in row for action in task)
    passes = sum(len(task) for row in rows for task in row)
    if max(count) * batches > passes:  # each stage has two passes of each micro-batch
        yield (
            f"{passes} passes are too few for the stages up to {max(count)} and the micro-batches "
            f"up to {batches - 1} that it names; number both from 0 up, without gaps"
        )
        return
    missing = sorted(set(range(max(count) + 1)) - set(count))
    yield from (f"stage {stage} has no pass; number stages from 0 up" for stage in missing)
    if len({len(stages) for stages in held}) > 1:
        sizes = ", ".join(str(len(stages)) for stages in held)
        yield f"ranks hold {sizes} stages; give every rank as many as the others"
    told = False
    for rank, row in enumerate(rows):
        for problem in _row_problems(rank, row, held[rank], batches):
            told = True
            yield problem
    if not told and not missing and max(count.values()) == 1:
        yield from _deadlock(rows)


def _row_problems(rank: int, row: Row, stages: list[int], batches: int) -> Iterator[str]:
    """Yield the passes of a rank that are missing, there twice or too early."""
    place: dict[Action, int] = {}
    for number, task in enumerate(row):
        for action in task:
            if action in place:
                yield f"rank {rank}: {_name(action)} stands twice; remove one"
            place.setdefault(action, number)
    for stage in stages:
        for batch in range(batches):
            first, whole, inputs, weights = (
                place.get((stage, what, batch)) for what in ("F", "B", "I", "W")
            )
            if first is None:
                yield f"rank {rank}: {stage}F{batch} is missing"
            halves = (inputs is not None) + (weights is not None)
            if (whole is None and halves < 2) or (whole is not None and halves):
                yield (
                    f"rank {rank}: the backward pass of stage {stage}, micro-batch {batch} is not "
                    f"whole; write {stage}B{batch}, or {stage}I{batch} and {stage}W{batch}"
                )
                continue
            back = inputs if whole is None else whole
            if first is not None and back is not None and back <= first:
                yield f"rank {rank}: stage {stage}, micro-batch {batch}: backward before forward"
            if inputs is not None and weights is not None and weights < inputs:
                yield f"rank {rank}: {stage}W{batch} stands before {stage}I{batch}"


def _deadlock(rows: list[Row]) -> Iterator[str]:
    """Yield the pass at which each rank waits for ever, if there is one."""
    last = max(stage for row in rows for task in row for stage, _, _ in task)
    done: set[tuple[int, str, int]] = set()
    place, moved = [0] * len(rows), True

    def needs(action: Action) -> Action | None:
        stage, what, batch = action
        if what == "F":
            return (stage - 1, "F", batch) if stage else None
        return (stage + 1, "B", batch) if what != "W" and stage < last else None

    def waits(task: tuple[Action, ...]) -> Action | None:
        before = (needs(action) for action in task)
        return next((action for action in before if action and action not in done), None)

    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while place[rank] < len(row) and waits(row[place[rank]]) is None:
                for stage, what, batch in row[place[rank]]:
                    done.add((stage, "B" if what == "I" else what, batch))
                place[rank] += 1
                moved = True
    for rank, row in enumerate(rows):
        if place[rank] < len(row):
            task = row[place[rank]]
            need = waits(task)
            assert need is not None
            yield (
                f"rank {rank} waits for ever at {_name(task[0])} for {_name(need)}: the ranks wait "
                "for each other; change their order"
            )


def _name(action: Action) -> str:
    stage, what, batch = action
    return f"{stage}{what}{batch}"


def _order(rows: list[Row]) -> Order:
    """Return checked rows as an order; a rank's chunks are its stages from the lowest up."""
    held = [sorted({stage for task in row for stage, _, _ in task}) for row in rows]
    splits = any(what == "W" for row in rows for task in row for _, what, _ in task)
    batches = 1 + max(action[2] for row in rows for task in row for action in task)
    ranks: list[list[Task]] = []
    for row, stages in zip(rows, held, strict=True):
        tasks: list[Task] = []
        for task in row:
            passes = []
            for stage, what, batch in task:
                chunk = stages.index(stage)
                kind = {"F": FORWARD, "W": WEIGHT}.get(what, BACKWARD)
                passes.append((kind, batch, chunk))
                if what == "B" and splits:
                    passes.append((WEIGHT, batch, chunk))
            tasks.append(tuple(passes))
        ranks.append(tasks)
    return listed(CUSTOM, np.array(held).T, batches, ranks)
