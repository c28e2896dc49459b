"""The answer of ``planner explain experts``: static placement against copies of loaded experts."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.cost.experts import zipf_loads
from planner.report.layout import column_table, section
from planner.report.words import gib, seconds
from planner.simulate.materialised import Routed

STATIC, KEPT, AGAIN = "experts at home", "copies kept (FSSDP)", "copies gathered twice (FSSDP)"


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways to place experts by name, the step with even routing, and room of a GPU."""

    label: str
    even_step_s: float
    ways: dict[str, Routed]
    capacity_bytes: float


def experts_report(found: Ways) -> Group:
    """Return the answer for a terminal."""
    fitting = {name: way for name, way in found.ways.items()
               if way.memory_bytes <= found.capacity_bytes} or found.ways  # fmt: skip
    best = min(fitting, key=lambda name: fitting[name].step_time_s)
    home = found.ways[STATIC].step_time_s
    gain = home / fitting[best].step_time_s
    first = (
        f"{found.label}: {seconds(found.even_step_s)} per step with even routing, {seconds(home)} "
        f"with these loads. Fastest: {best}, {gain:.2f} times as fast."
    )
    parts: list[RenderableType] = [Text(first), section("Ways to place experts", _table(found))]
    return Group(*parts)


def _table(found: Ways) -> Table:
    table = column_table(
        ("", "left"), ("step", "right"), ("fullest rank", "right"), ("exchanged", "right"),
        ("copies", "right"), ("slots", "right"), ("exposed", "right"), ("memory GiB", "right"),
    )  # fmt: skip
    for name, way in found.ways.items():
        table.add_row(
            name,
            seconds(way.step_time_s),
            f"{way.balance.fullest:.2f}",
            f"{way.balance.exchanged:.2f}",
            f"{1 + way.balance.sparsity:.2f}",
            f"{way.slots:.1f}",
            seconds(way.exposed_s),
            gib(way.memory_bytes),
        )
    return table


def experts_json(found: Ways) -> dict[str, object]:
    """Return the answer as data."""
    return {
        "even_step_time_s": found.even_step_s,
        "capacity_bytes": found.capacity_bytes,
        "ways": {
            name: {
                "step_time_s": way.step_time_s,
                "fullest_rank": way.balance.fullest,
                "exchanged": way.balance.exchanged,
                "copies": list(way.balance.copies),
                "sparsity": way.balance.sparsity,
                "slots": way.slots,
                "exposed_s": way.exposed_s,
                "memory_bytes": way.memory_bytes,
            }
            for name, way in found.ways.items()
        },
    }


def loads_of(text: str, experts: int) -> tuple[float, ...]:
    """Return loads written as a Zipf exponent (``zipf:1.2``) or as one number for each expert.

    Raises ``ValueError`` for another count, for a negative number, or for none above zero.
    """
    words = text.replace(",", " ").split()
    try:
        if text.startswith("zipf:"):
            exponent = float(text.removeprefix("zipf:"))
            if not 0 <= exponent <= 20:
                raise ValueError
            return zipf_loads(experts, exponent)
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} are no loads; write zipf:1.2, or tokens of each expert"
        ) from None
    if len(numbers) != experts:
        raise ValueError(f"{len(numbers)} loads for {experts} experts; write one for each")
    total = sum(numbers)
    if min(numbers) < 0 or not 0 < total < float("inf"):
        raise ValueError("loads are token counts; none may be negative, and one must be above zero")
    return tuple(number / total for number in numbers)
