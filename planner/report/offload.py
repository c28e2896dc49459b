"""What a layout's activation offload moves, needs and wears out, in sentences."""

from planner.cost.layer import Prices
from planner.layout.layout import Layout, offload_words
from planner.layout.stages import Split
from planner.memory.room import fullest_node_bytes, room_bytes
from planner.report.words import gib
from planner.search.offload import LEAST_LIFE_YEARS
from planner.simulate.offload import OffloadFacts, offload_facts
from planner.simulate.step import estimate_step
from planner.units import GB


def offload_lines(prices: Prices, layout: Layout, split: Split | None) -> list[str]:
    """Return the sentences on the layout's offload; none where nothing leaves the GPU."""
    if not layout.offload.fraction:
        return []
    step = estimate_step(prices, layout, split)
    facts = offload_facts(prices, layout, split, step.step_time_s)
    assert facts is not None
    needed = fullest_node_bytes(prices.model, prices.cluster, prices.job, layout, split)
    room = room_bytes(layout, prices.cluster)
    exposed_s = step.parts_s["offload"]
    cost = (
        f"adds {100 * exposed_s / step.step_time_s:.1f} % to the step" if exposed_s else "is free"
    )
    lines = [
        f"Offload: {offload_words(layout.offload)}, {gib(facts.moved_bytes)} GiB per GPU and step "
        f"each way; it needs {facts.needed_bytes_per_s / GB:.1f} GB/s of "
        f"{facts.store_bytes_per_s / GB:.1f} GB/s per GPU and {cost}. A node holds up to "
        f"{gib(needed)} of {gib(room)} GiB."
    ]
    return lines + wear_lines(facts)


def wear_lines(facts: OffloadFacts) -> list[str]:
    """Return how long the drives live; a warning where that is less than a year."""
    if facts.life_years is None:
        return []
    if facts.life_years < LEAST_LIFE_YEARS:
        return [
            f"Warning: the drives would be worn out after {12 * facts.life_years:.1f} months of "
            "such steps; offload less, or to host memory"
        ]
    return [f"The drives endure {facts.life_years:.1f} years of such steps."]
