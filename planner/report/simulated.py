"""The answer of ``planner simulate``: where the seconds of a step go, and its critical path."""

from collections import defaultdict
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.layout import column_table, section
from planner.report.memory import Checked
from planner.report.words import percent, seconds
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


def simulated_report(timeline: Timeline, schedule: str, fits: str = "") -> Group:
    """Return the answer for a terminal; ``fits`` is the sentence on memory, if there is one."""
    where = f"slowest on pipeline rank {timeline.critical_rank} of {timeline.layout.pp}"
    parts: list[RenderableType] = [
        Text(f"Step {seconds(timeline.step_time_s)} with schedule {schedule}, {where}"),
        *([Text(fits)] if fits else []),
        section("Where each second goes", _causes_table(timeline)),
        section("Critical path", _path_table(timeline)),
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
        "memory": {
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
