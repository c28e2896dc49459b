"""The answer of ``planner simulate``: where the seconds of a step go, and its critical path."""

from collections import defaultdict
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.layout import column_table, section
from planner.report.memory import Checked
from planner.report.words import gib, percent, seconds
from planner.simulate.timeline import Timeline

WORDS = {
    "forward": "forward compute",
    "backward": "backward compute",
    "weight_gradient": "weight gradients",
    "recompute": "recompute",
    "host": "host, too slow to issue kernels",
    "tensor_parallel": "tensor parallel, exposed",
    "context_parallel": "context parallel, exposed",
    "expert_parallel": "expert parallel, exposed",
    "pipeline": "pipeline transfers, exposed",
    "data_parallel": "data parallel, exposed",
    "offload": "offload, exposed",
    "optimizer": "optimizer",
    "bubble": "bubble",
}
PASSES = {"F": "forward passes", "B": "backward passes", "W": "weight-gradient passes"}
WAITING = "transfers between"
SHOWN_RANKS = 8


def simulated_report(timeline: Timeline, schedule: str, fits: str = "") -> Group:
    """Return the answer for a terminal; ``fits`` is the sentence on memory, if there is one."""
    where = f"slowest on pipeline rank {timeline.critical_rank} of {timeline.layout.pp}"
    parts: list[RenderableType] = [
        Text(f"Step {seconds(timeline.step_time_s)} with schedule {schedule}, {where}"),
        *([Text(fits)] if fits else []),
        section("Where each second goes", _causes_table(timeline)),
        section("Critical path", _path_table(timeline)),
        section(_memory_title(timeline), _memory_table(timeline)),
    ]
    return Group(*parts)


def path_summary(timeline: Timeline) -> dict[str, tuple[int, float]]:
    """Return (tasks, seconds) of the critical path by kind, and what lies between its tasks."""
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    path = [timeline.slices[place] for place in timeline.path]
    for piece in path:
        count, total = found[piece.kind]
        found[piece.kind] = count + 1, total + piece.end_s - piece.start_s
    length = path[-1].end_s - path[0].start_s
    ranks = sum(a.rank != b.rank for a, b in pairwise(path))
    rest = length - sum(total for _, total in found.values())
    return {kind: value for kind, value in found.items() if value[1] > 0} | {WAITING: (ranks, rest)}


def simulated_json(timeline: Timeline, schedule: str, memory: Checked) -> dict[str, object]:
    """Return the answer as data, with the memory of every rank under this schedule."""
    names = [(piece := timeline.slices[place]).name + f" rank {piece.rank}"
             for place in timeline.path]  # fmt: skip
    summary = {
        kind: {"tasks": count, "seconds": total}
        for kind, (count, total) in path_summary(timeline).items()
    }
    return {
        "schedule": schedule,
        "step_time_s": timeline.step_time_s,
        "critical_rank": timeline.critical_rank,
        "causes_s": list(timeline.causes_s),
        "critical_path": {"by_kind": summary, "tasks": names},
        "memory": [
            {
                "rank": rank,
                "peak_allocated_bytes": track.peak.allocated,
                "peak_s": track.peak_s,
                "moment": track.peak.moment,
                "during": running(timeline, rank),
            }
            for rank, track in enumerate(timeline.memory)
        ],
        "fit": {
            "verdict": memory.verdict,
            "device_bytes": [rank.device for rank in memory.ranks],
            "capacity_bytes": memory.capacity_bytes,
        },
    }


def _causes_table(timeline: Timeline) -> Table:
    """Return seconds by cause on the slowest rank, and the range over all of them."""
    columns = [("", "left"), ("seconds", "right"), ("share", "right")]
    several = timeline.layout.pp > 1
    table = column_table(*columns, *([("all ranks", "left")] if several else []))
    mine = timeline.causes_s[timeline.critical_rank]
    for cause, words in WORDS.items():
        over_ranks = [causes[cause] for causes in timeline.causes_s]
        if max(over_ranks) < 1e-6 * timeline.step_time_s:
            continue
        low, high = (percent(edge / timeline.step_time_s) for edge in
                     (max(0.0, min(over_ranks)), max(over_ranks)))  # fmt: skip
        span = [low if low == high else f"{low} to {high}"] if several else []
        share = percent(mine[cause] / timeline.step_time_s)
        table.add_row(words, seconds(max(0.0, mine[cause])), share, *span)
    table.add_row("step", seconds(timeline.step_time_s), percent(1.0))
    return table


def _path_table(timeline: Timeline) -> Table:
    table = column_table(("", "left"), ("tasks", "right"), ("seconds", "right"), ("share", "right"))
    summary = path_summary(timeline)
    length = sum(total for _, total in summary.values())
    for kind, (count, total) in summary.items():
        if kind != WAITING or count:
            share = percent(total / length)
            table.add_row(PASSES.get(kind, kind), str(count), seconds(max(0.0, total)), share)
    return table


def running(timeline: Timeline, rank: int) -> str:
    """Return what a rank runs while its memory is fullest, as the trace calls it."""
    peak_s = timeline.memory[rank].peak_s
    mine = (s for s in timeline.slices if s.rank == rank and s.kind in ("F", "B", "W", "optimizer"))
    return next((piece.name for piece in mine if piece.start_s <= peak_s < piece.end_s), "")


def _memory_title(timeline: Timeline) -> str:
    ranks = timeline.layout.pp
    shown = f", {SHOWN_RANKS} fullest of {ranks} ranks" if ranks > SHOWN_RANKS else ""
    return f"Memory that torch allocates, at its peak{shown}"


def _memory_table(timeline: Timeline) -> Table:
    """Return the peak of every rank and when it is; of many ranks the fullest."""
    table = column_table(
        ("rank", "left"), ("GiB", "right"), ("at", "right"), ("while", "left"), ("moment", "left")
    )
    fullest = sorted(
        range(timeline.layout.pp), key=lambda rank: -timeline.memory[rank].peak.allocated
    )
    for rank in sorted(fullest[:SHOWN_RANKS]):
        track = timeline.memory[rank]
        when = seconds(track.peak_s)
        moment = track.peak.moment
        table.add_row(str(rank), gib(track.peak.allocated), when, running(timeline, rank), moment)
    return table
