"""Memory of each pipeline rank by component, against the capacity."""

from collections.abc import Sequence
from itertools import groupby

from planner.memory.estimate import RankMemory
from planner.memory.interval import memory_interval
from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, card, details, number, percent_of, table, tag
from planner.report.page.track import track_parts
from planner.report.words import gib

MOST_ROWS = 8  # with a second line each
COMPONENTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations kept for backward",
    "working": "working memory at the peak",
    "buffers": "communication buffers",
    "reserve": "reserved by torch, not allocated",
    "outside": "CUDA context and communicators",
}


def memory_card(facts: Facts) -> Markup:
    """Return a bar for each pipeline rank; neighbours that are alike share one."""
    capacity = facts.plan.estimate.capacity_bytes
    scale = max(1.03 * capacity, *(memory_interval(rank)[1] for rank in facts.memory))
    groups = [
        [rank for rank, _ in group]
        for _, group in groupby(
            enumerate(facts.memory),
            lambda one: (*_alike(one[1]), facts.capacity_bytes(one[0])),
        )
    ]
    head = tag(
        "tr",
        tag("th", "rank", scope="col"),
        tag("th", _scale(capacity, scale), scope="col"),
        tag("th", "GiB", scope="col", class_="right"),
    )
    rows = [_row(facts, group, scale) for group in groups]
    full = facts.memory.index(facts.fullest)
    lead = (
        f"The peak is pipeline rank {full}, in this moment: {facts.fullest.moment}. "
        "The thin line under a bar is the interval of about four of five measured runs."
    )
    bars = tag(
        "table",
        tag("caption", "Peak memory of each pipeline rank", class_="hidden"),
        tag("thead", head),
        tag("tbody", *rows),
        class_="bars" if len(groups) <= MOST_ROWS else "bars compact",
    )
    return card(
        "memory", "Memory", lead, _legend(facts), bars, _numbers(facts, groups), track_parts(facts)
    )


def sizes(memory: RankMemory) -> dict[str, float]:
    """Return the bytes of each component; together they are ``memory.device``."""
    found = {name: getattr(memory, name) for name in COMPONENTS if name != "reserve"}
    found["reserve"] = memory.reserved - memory.allocated
    return {name: found[name] for name in COMPONENTS}


def _alike(memory: RankMemory) -> tuple[str, ...]:
    return (*(gib(size) for size in sizes(memory).values()), memory.moment)


def _scale(capacity: float, scale: float) -> Markup:
    text = tag("b", f"capacity {gib(capacity)}", style=f"left:{percent_of(capacity, scale)}")
    return tag("span", text, class_="scale")


def _row(facts: Facts, group: Sequence[int], scale: float) -> Markup:
    memory, capacity = facts.memory[group[0]], facts.capacity_bytes(group[0])
    low, high = memory_interval(memory)
    parts = [
        tag(
            "i",
            class_=f"part m-{name}",
            style=f"width:{percent_of(size, scale)}",
            data_tip=f"{COMPONENTS[name]}: {gib(size)} GiB",
        )
        for name, size in sizes(memory).items()
    ]
    span = f"left:{percent_of(low, scale)};width:{percent_of(high - low, scale)}"
    bar = tag(
        "div",
        *parts,
        tag("i", class_="capacity", style=f"left:{percent_of(capacity, scale)}"),
        tag("i", class_="interval", style=span),
        class_="bar",
        aria_hidden="true",
    )
    note = tag("small", f"peak: {memory.moment}; {gib(low)} to {gib(high)}")
    return tag(
        "tr",
        tag("th", _span(group), tag("small", _layers(facts, group)), scope="row"),
        tag("td", bar, note),
        tag("td", number(memory.device, gib(memory.device)), class_="right"),
        class_="full" if memory == facts.fullest else None,
    )


def _span(group: Sequence[int]) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"


def _layers(facts: Facts, group: Sequence[int]) -> str:
    """Return what the ranks hold, in a few words."""
    stages = facts.plan.stages_of_rank(group[0])
    text = f"{sum(stage.layers for stage in stages)} layers"
    ends = [
        word
        for word in ("embedding", "head")
        if any(getattr(stage, word) for rank in group for stage in _stages(facts, rank))
    ]
    kind = f" on {facts.part(group[0]).gpu.name}" if facts.plan.cluster.node_groups else ""
    return " + ".join([text, *ends]) + kind


def _stages(facts: Facts, rank: int) -> Sequence[object]:
    return facts.plan.stages_of_rank(rank)


def _legend(facts: Facts) -> Markup:
    shown = [name for name in COMPONENTS if any(sizes(rank)[name] for rank in facts.memory)]
    items = [tag("li", tag("i", class_=f"m-{name}"), COMPONENTS[name]) for name in shown]
    return tag("ul", *items, class_="legend", aria_label="Components")


def _numbers(facts: Facts, groups: Sequence[Sequence[int]]) -> Markup:
    rows: list[list[str]] = []
    for group in groups:
        memory = facts.memory[group[0]]
        cells = [number(size, gib(size)) for size in sizes(memory).values()]
        low, high = memory_interval(memory)
        total = number(memory.device, gib(memory.device))
        ends = [f"{gib(low)} to {gib(high)}", memory.moment]
        rows.append([_span(group), _layers(facts, group), *cells, total, *ends])
    titles = ["rank", "holds", *COMPONENTS.values(), "total", "four of five runs", "peak in"]
    return details("All numbers", table("Memory by component, GiB", titles, rows))
