"""Which rank sits on which GPU: the attention grid and the expert grid on the machines."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from planner.layout.ranks import ATTENTION_AXES, EXPERT_AXES
from planner.plan import Plan
from planner.report.page.links import WORDS, link_table
from planner.report.page.markup import Markup, card, join, tag

IntArray = NDArray[np.int64]
MOST_NODES = 32  # drawn one by one; beyond, neighbours of the same stages share one drawing
MOST_GROUPS = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """The coordinates of every GPU in one grid, ``[nodes, gpus_per_node, axes]``; -1 unused."""

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    places: IntArray
    ranks: IntArray


def grids_card(plan: Plan) -> Markup:
    """Return both grids; a dense model has no second one."""
    lead = (
        "Each small square is a GPU with the rank it runs, each box a machine. Point at a GPU, or "
        "walk with the arrow keys, to see its group along the chosen axis."
    )
    grids = [("attention", ATTENTION_AXES), *([("expert", EXPERT_AXES)] if plan.model.moe else [])]
    parts = [_drawn(grid_of(plan, *one), link_table(plan, *one), plan.hosts) for one in grids]
    if not plan.model.moe:
        text = "The model has no experts, so there is no expert grid."
        parts.append(tag("p", text, class_="hint"))
    return card("grids", "Ranks on the machines", lead, *parts)


def grid_of(plan: Plan, name: str, axes: tuple[str, ...]) -> Grid:
    """Return where the ranks of the plan are in a grid."""
    layout = plan.to_layout()
    sizes = tuple(int(getattr(layout, axis)) for axis in axes)
    per_node = plan.cluster.gpus_per_node
    slots = -(-len(plan.rank_map) // per_node) * per_node
    ranks = np.full(slots, -1, dtype=np.int64)
    ranks[: len(plan.rank_map)] = plan.rank_map
    # the innermost axis comes first in our grids and last in numpy's
    places = np.stack(np.unravel_index(np.maximum(ranks, 0), sizes[::-1])[::-1], axis=-1)
    places = np.where(ranks[:, None] < 0, -1, places)
    return Grid(
        name, axes, sizes, places.reshape(-1, per_node, len(axes)), ranks.reshape(-1, per_node)
    )


def node_groups(grid: Grid) -> list[list[int]]:
    """Return the nodes that share one drawing: neighbours whose GPUs have the same stages."""
    nodes = range(len(grid.ranks))
    if len(nodes) <= MOST_NODES:
        return [[node] for node in nodes]
    # the pipeline axis is the last one
    return [
        list(group) for _, group in groupby(nodes, lambda n: tuple(grid.places[n, :, -1].tolist()))
    ]


def _drawn(grid: Grid, links: Markup, hosts: tuple[str, ...]) -> Markup:
    groups = node_groups(grid)
    used = [axis for axis, size in zip(grid.axes, grid.sizes, strict=True) if size > 1]
    chosen = used[-1] if used else grid.axes[-1]
    at = grid.axes.index(chosen)
    drawn = [_node(grid, group, at, hosts) for group in groups[:MOST_GROUPS]]
    title = f"{grid.name.capitalize()} grid"
    sizes = " · ".join(f"{axis} {size}" for axis, size in zip(grid.axes, grid.sizes, strict=True))
    notes = []
    if len(groups) < len(grid.ranks):
        notes.append("Machines whose GPUs have the same stages share one box.")
    if len(groups) > MOST_GROUPS:
        notes.append(f"{len(groups) - MOST_GROUPS} more boxes are left out.")
    return tag(
        "div",
        tag("h3", title, " ", tag("span", sizes)),
        tag("p", " ".join(notes), class_="hint") if notes else Markup(),
        _axis_buttons(grid, used, chosen),
        tag(
            "div",
            *drawn,
            class_="nodes",
            role="grid",
            aria_label=f"{title}: machines and their GPUs",
            data_axes=",".join(grid.axes),
            data_sizes=",".join(map(str, grid.sizes)),
            data_chosen=grid.axes.index(chosen),
        ),
        links,
        class_="grid",
        id=f"{grid.name}-grid",
    )


def _axis_buttons(grid: Grid, used: list[str], chosen: str) -> Markup:
    if len(used) < 2:
        return Markup()
    buttons = [
        tag(
            "button",
            f"{axis} {WORDS[axis]}",
            type="button",
            data_axis=grid.axes.index(axis),
            aria_pressed="true" if axis == chosen else "false",
        )
        for axis in used
    ]
    label = f"Axis of the {grid.name} grid that colours stand for"
    return tag("div", *buttons, class_="buttons axes", role="group", aria_label=label)


def _node(grid: Grid, group: list[int], chosen: int, hosts: tuple[str, ...]) -> Markup:
    cells = [
        _cell(grid, group, gpu, chosen, first=group[0] == 0 and gpu == 0)
        for gpu in range(grid.ranks.shape[1])
    ]
    nodes = f"node {group[0]}" if len(group) == 1 else f"nodes {group[0]}-{group[-1]}"
    if hosts:
        ends = dict.fromkeys((hosts[group[0]], hosts[group[-1]]))
        nodes += f": {' to '.join(ends)}"
    return tag(
        "div", tag("span", nodes, aria_hidden="true"), *cells, class_="node", role="row",
        aria_label=nodes,
    )  # fmt: skip


def _cell(grid: Grid, group: list[int], gpu: int, chosen: int, first: bool) -> Markup:
    rank = int(grid.ranks[group[0], gpu])
    if rank < 0:
        return tag("i", class_="unused", role="gridcell", aria_label="unused")
    spans = [
        _span(grid.places[group[0] : group[-1] + 1, gpu, axis]) for axis in range(len(grid.axes))
    ]
    where = ", ".join(f"{axis} {span}" for axis, span in zip(grid.axes, spans, strict=True))
    ranks = _span(grid.ranks[group[0] : group[-1] + 1, gpu])
    place = grid.places[group[0], gpu]
    return tag(
        "i",
        str(rank),
        role="gridcell",
        tabindex=0 if first else -1,
        style=f"--hue:{hue(int(place[chosen]), grid.sizes[chosen])}",
        data_at=",".join(map(str, place.tolist())),
        aria_label=f"rank {ranks}: {where}",
    )


def hue(place: int, size: int) -> int:
    """Return a colour for one place of an axis; neighbours are far enough apart to tell."""
    return round(210 + 360 * place / max(size, 2)) % 360


def _span(values: IntArray) -> str:
    low, high = int(values.min()), int(values.max())
    return join(str(low) if low == high else f"{low} to {high}")
