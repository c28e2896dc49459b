"""Another schedule for a plan: a name, or a file that holds the order of passes."""

from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import LayoutError
from planner.layout.layout import Layout
from planner.layout.stages import Split, split_layers
from planner.schedule.custom import read_order
from planner.schedule.kinds import SCHEDULES, kind_of
from planner.schedule.passes import Order
from planner.spec.job import JobSpec

USUAL = ("1f1b", "interleaved_1f1b")


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """A layout under another schedule, its stages, and its order where a file gave one."""

    layout: Layout
    split: Split
    order: Order | None
    changed_stages: bool


def rescheduled(text: str, layout: Layout, split: Split, job: JobSpec) -> Rescheduled:
    """Return ``layout`` under the schedule or the file called ``text``.

    Stages follow the schedule's chunks; SpecError or LayoutError where the two do not fit.
    """
    order = None
    if text not in SCHEDULES and Path(text).suffix in (".csv", ".json"):
        order = read_order(Path(text))
        asked = (layout.pp, layout.micro_batches(job.global_batch))
        if (order.stages, order.micro_batches) != asked:
            raise LayoutError(
                f"{text}: holds {order.stages} ranks and {order.micro_batches} micro-batches; the "
                f"plan has {asked[0]} pipeline ranks and {asked[1]} micro-batches"
            )
        schedule, chunks = "", order.chunks
    else:
        kind = kind_of(text)
        schedule = "" if text in USUAL else text
        chunks = kind.chunks // kind.pipelines or max(2, layout.vpp)
    if chunks == layout.vpp:
        return Rescheduled(replace(layout, schedule=schedule), split, order, False)
    changed = replace(layout, schedule=schedule, vpp=chunks)
    return Rescheduled(changed, _resplit(split, layout.pp * chunks), order, True)


def _resplit(split: Split, stages: int) -> Split:
    """Return the same layers over another number of stages, the same share recomputed."""
    layers = split_layers(sum(split.layers), stages)
    share = sum(split.recomputed or ()) / max(sum(split.layers), 1)
    return Split(layers, tuple(round(share * count) for count in layers))
