"""What each node holds for its GPUs: offloaded optimizer and activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.table import Table

from planner.layout.layout import Layout
from planner.memory.estimate import RankMemory
from planner.memory.room import node_sums
from planner.report.layout import column_table
from planner.report.words import gib
from planner.spec.cluster import ClusterSpec

MOST_ROWS = 16


@dataclass(frozen=True, slots=True)
class HostNode:
    """Bytes of one node in its memory, and of activations on its drives."""

    optimizer_bytes: float
    activation_bytes: float
    drive_bytes: float


def host_nodes(
    ranks: Sequence[RankMemory], layout: Layout, cluster: ClusterSpec
) -> tuple[HostNode, ...]:
    """Return what every node holds, in the order of the ranks; empty if nothing leaves the GPUs."""
    if not any(rank.host or rank.offloaded for rank in ranks):
        return ()
    states = node_sums([rank.host for rank in ranks], layout, cluster)
    away = node_sums([rank.offloaded for rank in ranks], layout, cluster)
    drives = layout.offload.target == "ssd"
    return tuple(
        HostNode(state, 0.0 if drives else moved, moved if drives else 0.0)
        for state, moved in zip(states, away, strict=True)
    )


def host_rows(nodes: Sequence[HostNode]) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells in GiB; neighbours that are alike share a row."""
    columns = {
        "optimizer": [node.optimizer_bytes for node in nodes],
        "activations": [node.activation_bytes for node in nodes],
        "on drives": [node.drive_bytes for node in nodes],
    }
    used = {title: sizes for title, sizes in columns.items() if any(sizes)}
    cells = [tuple(map(gib, sizes)) for sizes in zip(*used.values(), strict=True)]
    rows = []
    for alike, members in groupby(range(len(nodes)), cells.__getitem__):
        first, *rest = members
        rows.append([f"{first}-{rest[-1]}" if rest else str(first), *alike])
    return ["node", *used], rows


def host_table(nodes: Sequence[HostNode]) -> Table:
    """Return the rows for a terminal."""
    titles, rows = host_rows(nodes)
    table = column_table(*((title, "right" if at else "left") for at, title in enumerate(titles)))
    for row in rows[:MOST_ROWS]:
        table.add_row(*row)
    if len(rows) > MOST_ROWS:
        table.add_row(f"and {len(rows) - MOST_ROWS} more in --json")
    return table
