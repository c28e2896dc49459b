"""The answer of ``planner explain speed``: the waterfall from the card's peak to the step time."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.layout import column_table, section
from planner.report.placement import link_lines
from planner.report.words import interval, peak_name, percent, seconds
from planner.search.changes import SingleChange
from planner.search.placed import SlowLink
from planner.simulate.step import StepEstimate, step_interval
from planner.simulate.waterfall import Waterfall
from planner.spec.cluster import ClusterSpec
from planner.units import GIB

LEAST_PART = 0.0005  # of the step; smaller causes are not listed
CAUSES = {
    "ideal": "model FLOPs at dense peak",
    "precision": "peak of the products' precision",
    "products": "matrix products below peak",
    "attention": "attention below peak",
    "memory_bound": "memory-bound kernels",
    "recompute": "recompute",
    "tensor_parallel": "tensor-parallel communication, exposed",
    "context_parallel": "context-parallel communication, exposed",
    "expert_parallel": "expert-parallel communication, exposed",
    "host": "host: kernels wait to be launched",
    "data_parallel": "data-parallel communication, exposed",
    "pipeline_parallel": "transfers between stages, exposed",
    "offload": "offload, exposed",
    "optimizer": "clipping and optimizer",
    "imbalance": "imbalance: the busiest rank above the mean",
    "slow_nodes": "slow nodes",
    "bubble": "pipeline bubble",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """One step by cause, what was measured (None: nothing), and what would be faster."""

    step: StepEstimate
    cluster: ClusterSpec
    waterfall: Waterfall
    changes: list[SingleChange]
    measured_s: float | None = None
    slow_links: tuple[SlowLink, ...] = ()
    notes: tuple[str, ...] = ()  # on what leaves the GPU

    @property
    def interval_s(self) -> tuple[float, float]:
        """Seconds between which about four of five measured runs lie."""
        return step_interval(self.step, self.cluster)

    @property
    def judgement(self) -> str:
        """Return ``inside``, ``slower`` or ``faster``; empty where nothing was measured."""
        if self.measured_s is None:
            return ""
        low, high = self.interval_s
        if self.measured_s > high:
            return "slower"
        return "faster" if self.measured_s < low else "inside"


_REMEDIES = {
    "inside": "as close as estimates are: about four of five runs lie inside",
    "slower": "more than the model explains: look for low clocks, data loading, evaluation or "
    "checkpoints inside the step, and slow nodes; or fit the estimate to your runs (planner "
    "calibrate)",
    "faster": "less than the model allows: check that the time is that of one step of this batch, "
    "and the layout; or fit the estimate to your runs (planner calibrate)",
}


def speed_report(found: Explained) -> Group:
    """Return the step time, the waterfall, the verdict on a measured time and faster layouts."""
    parts: list[RenderableType] = [
        _sentence(found),
        section("From the card's peak to the step", _table(found)),
        *map(Text, found.notes),
    ]
    if found.measured_s is not None:
        parts += [Text(), _verdict(found, found.measured_s)]
    if found.slow_links:
        lines = "\n".join(link_lines(found.slow_links))
        parts.append(section("Slow links between nodes", Text(lines)))
    if found.changes:
        parts.append(
            section(
                "Single changes that make it faster",
                faster_table(found.changes, found.step.step_time_s),
            )
        )
    else:
        parts += [Text(), Text("No single change of the layout that fits is faster.")]
    return Group(*parts)


def _sentence(found: Explained) -> Text:
    step, falls = found.step, found.waterfall
    peak = peak_name(found.cluster.gpu, falls.peak_flops)
    return Text(
        f"{step.layout.label()}: {seconds(step.step_time_s)} per step "
        f"({interval(*found.interval_s)}), {percent(falls.mfu)} MFU and {percent(falls.hfu)} HFU "
        f"of {peak}",
        style="bold",
    )


def _table(found: Explained) -> Table:
    table = column_table(
        ("cause", "left"), ("adds", "right"), ("share", "right"), ("step so far", "right")
    )
    total, so_far = found.waterfall.step_time_s, 0.0
    for name, part_s in found.waterfall.parts_s.items():
        so_far += part_s
        if abs(part_s) >= LEAST_PART * total:
            share = percent(part_s / total)
            table.add_row(CAUSES[name], seconds(part_s), share, seconds(so_far))
    table.add_row("estimated step", "", "", seconds(total))
    if found.measured_s is not None:
        rest = found.measured_s - total
        share = percent(rest / total)
        table.add_row("not explained", seconds(rest), share, seconds(found.measured_s))
    return table


def _verdict(found: Explained, measured_s: float) -> Text:
    falls = found.waterfall
    rest = measured_s - falls.step_time_s
    side = "above" if rest >= 0 else "below"
    where = {"inside": "inside", "slower": "above", "faster": "below"}[found.judgement]
    return Text(
        f"Measured {seconds(measured_s)} ({percent(falls.mfu_at(measured_s))} MFU, "
        f"{percent(falls.hfu_at(measured_s))} HFU) is {seconds(abs(rest))} {side} the estimate and "
        f"{where} its interval, {interval(*found.interval_s)}: {_REMEDIES[found.judgement]}."
    )


def faster_table(changes: Sequence[SingleChange], before_s: float) -> Table:
    """Return what each change gains of a step of ``before_s`` and takes in memory."""
    table = column_table(
        ("change", "left"), ("step", "right"), ("faster", "right"), ("peak GiB", "right"),
        ("more GiB", "right"),
    )  # fmt: skip
    for change in changes:
        table.add_row(
            change.text,
            seconds(change.step_time_s),
            percent(-change.slower_s / before_s),
            f"{change.device_bytes / GIB:.1f}",
            f"{-change.saved_bytes / GIB:+.1f}",
        )
    return table


def speed_json(found: Explained) -> dict[str, object]:
    """Return the same as plain data."""
    falls, (low, high) = found.waterfall, found.interval_s
    answer: dict[str, object] = {
        "layout": found.step.layout.label(),
        "step_time_s": falls.step_time_s,
        "step_time_low_s": low,
        "step_time_high_s": high,
        "mfu": falls.mfu,
        "hfu": falls.hfu,
        "peak_flops": falls.peak_flops,
        "parts_s": falls.parts_s,
        "changes": [_change_json(change) for change in found.changes],
    }
    if found.slow_links:
        answer["slow_links"] = [link._asdict() for link in found.slow_links]
    if found.notes:
        answer["notes"] = list(found.notes)
    if found.measured_s is not None:
        answer |= {
            "measured_s": found.measured_s,
            "not_explained_s": found.measured_s - falls.step_time_s,
            "judgement": found.judgement,
            "measured_mfu": falls.mfu_at(found.measured_s),
            "measured_hfu": falls.hfu_at(found.measured_s),
        }
    return answer


def _change_json(change: SingleChange) -> dict[str, object]:
    return {
        "text": change.text,
        "layout": change.layout.label(),
        "step_time_s": change.step_time_s,
        "faster_s": -change.slower_s,
        "device_bytes": change.device_bytes,
        "more_bytes": -change.saved_bytes,
    }
