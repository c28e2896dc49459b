"""The terminal answer of ``planner recommend``: the plan, why it won, and what to type next."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.cost.layer import Prices
from planner.plan import CandidateRecord, Plan, StageRecord
from planner.report.certainty import partition_line, stability_lines
from planner.report.layout import column_table, section
from planner.report.offload import offload_lines
from planner.report.placement import placement_text
from planner.report.words import (
    gib,
    interval,
    layout_words,
    peak_name,
    percent,
    recomputed,
    schedule_words,
    seconds,
)
from planner.search.answer import NoFit
from planner.spec.cluster import ClusterSpec
from planner.spec.parts import part_of

LEAST_PART = 0.005  # of the step; smaller causes are not listed
MOST_FAMILIES = 10
MOST_STAGES = 16
EXPORT_TARGETS = {"torch-launcher": "torch", "megatron-core": "megatron"}
CAUSES = {
    "compute": "compute",
    "recompute": "recompute",
    "tensor_parallel": "tensor-parallel communication, exposed",
    "context_parallel": "context-parallel communication, exposed",
    "expert_parallel": "expert-parallel communication, exposed",
    "data_parallel": "data-parallel communication, exposed",
    "pipeline": "pipeline bubble and transfers",
    "host": "kernel launches",
    "offload": "offload, exposed",
    "optimizer": "optimizer",
}


def plan_report(plan: Plan, saved: Path | None = None, command: str = "") -> Group:
    """Return the whole answer; ``command`` is what to repeat if the plan was not ``saved``."""
    parts: list[RenderableType] = [
        *_answer(plan),
        section("Where the step goes", _parts_table(plan)),
    ]
    if offloaded := _offload(plan):
        parts += [Text(), *map(Text, offloaded)]
    if plan.layout.pp > 1:
        parts.append(section("Stages", _stage_table(plan)))
    if plan.node_choices:
        parts.append(section("Kinds of nodes", _alternatives_table(plan.node_choices, "nodes")))
    if plan.placement is not None:
        parts.append(section("Order of nodes", placement_text(plan.placement, plan.hosts)))
    if plan.alternatives:
        parts.append(section("Next best layouts", _alternatives_table(plan.alternatives)))
    if plan.lost:
        parts.append(section("Why other families lost", _lost_list(plan.lost)))
    firm = [Text(line) for line in (partition_line(plan), *stability_lines(plan)) if line]
    parts += [Text(), Text(search_line(plan)), *firm, *_next(plan, saved, command)]
    return Group(*parts)


def answer_line(plan: Plan) -> str:
    """Return the answer in one sentence."""
    estimate = plan.estimate
    return (
        f"Fastest: {layout_words(plan.layout)}{schedule_words(plan)}, {recomputed(plan)}: "
        f"{seconds(estimate.step_time_s)} per step "
        f"({interval(estimate.step_time_low_s, estimate.step_time_high_s)}), "
        f"{estimate.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, "
        f"{percent(estimate.mfu)} MFU of {peak_name(plan.cluster.gpu, estimate.peak_flops)}, "
        f"{gib(estimate.memory_bytes)} of {gib(estimate.capacity_bytes)} GiB "
        f"on the fullest GPU."
    )


def search_line(plan: Plan) -> str:
    """Return what the search covered and proved."""
    search = plan.search
    any_stages = f", {percent(search.gap_any_stages)} with any" if search.gap_any_stages else ""
    return (
        f"{search.layouts:,} layouts, {search.fitting:,} fit, {search.simulated:,} simulated, "
        f"proved within {percent(search.gap)} of the best with equal stages{any_stages}, "
        f"{seconds(search.seconds)}"
    )


def _offload(plan: Plan) -> list[str]:
    prices = Prices(plan.model, plan.cluster, plan.job)
    return offload_lines(prices, plan.to_layout(), plan.to_split())


def _answer(plan: Plan) -> list[RenderableType]:
    job, cluster = plan.job, plan.cluster
    asked = (
        f"{plan.model.name} on {cluster.gpu_words(len(plan.rank_map))} ({cluster.name}), "
        f"{job.global_batch} sequences of {job.seq_len} tokens, {job.precision}, "
        f"run by {job.software.name}"
    )
    head, _, rest = answer_line(plan).partition(", nothing recomputed: ")
    if not rest:
        return [Text(answer_line(plan), style="bold"), Text(asked, style="dim")]
    return [Text(f"{head}: {rest}", style="bold"), Text(asked, style="dim")]


def _parts_table(plan: Plan) -> Table:
    total = plan.estimate.step_time_s
    table = column_table(("cause", "left"), ("time", "right"), ("share", "right"))
    parts = sorted(plan.estimate.parts_s.items(), key=lambda part: -part[1])
    for name, part_s in parts:
        if part_s > LEAST_PART * total:
            table.add_row(CAUSES.get(name, name), seconds(part_s), percent(part_s / total))
    return table


def _stage_table(plan: Plan) -> Table:
    """Return one line for each pipeline rank; neighbours that are alike share one."""
    pp, per_stage = plan.layout.pp, len(plan.rank_map) // plan.layout.pp
    kinds = [part_of(plan.cluster, rank * per_stage, per_stage).gpu.name for rank in range(pp)]
    mixed = [("GPU", "left")] if len(set(kinds)) > 1 else []
    table = column_table(
        ("rank" if plan.layout.vpp > 1 else "stage", "left"),
        ("layers", "left"),
        ("count", "right"),
        ("recomputed", "right"),
        ("memory GiB", "right"),
        ("also holds", "left"),
        *mixed,
    )
    ranks = [plan.stages_of_rank(rank) for rank in range(plan.layout.pp)]
    alike = groupby(enumerate(ranks), lambda one: (kinds[one[0]], _alike(one[1])))
    groups = [list(group) for _, group in alike]
    for group in groups[:MOST_STAGES]:
        (first, stages), (last, last_stages) = group[0], group[-1]
        table.add_row(
            _span(first, last),
            _layers(stages, last_stages),
            str(sum(stage.layers for stage in stages)),
            str(sum(stage.recompute_layers for stage in stages)),
            gib(max(stage.memory_bytes for stage in stages)),
            ", ".join(_ends(stages)),
            *([kinds[first]] if mixed else []),
        )
    if len(groups) > MOST_STAGES:
        table.add_row(f"and {len(groups) - MOST_STAGES} more in --json")
    return table


def _ends(stages: Sequence[StageRecord]) -> list[str]:
    ends = ["embedding"] if any(stage.embedding for stage in stages) else []
    return ends + (["head"] if any(stage.head for stage in stages) else [])


def _alike(stages: Sequence[StageRecord]) -> tuple[object, ...]:
    """Return what ranks have in common that share one line of the table."""
    sizes = tuple((stage.layers, stage.recompute_layers) for stage in stages)
    return sizes, gib(stages[0].memory_bytes), tuple(_ends(stages))


def _layers(first: Sequence[StageRecord], last: Sequence[StageRecord]) -> str:
    """Return the span of layers of ranks with one chunk each, else the size of the chunks."""
    if len(first) == 1:
        return _span(first[0].first_layer, last[0].first_layer + last[0].layers - 1)
    sizes = sorted({stage.layers for stage in first})
    return f"{len(first)} chunks of {_span(sizes[0], sizes[-1])}"


def _span(first: int, last: int) -> str:
    return str(first) if first >= last else f"{first}-{last}"


def _alternatives_table(alternatives: Iterable[CandidateRecord], what: str = "layout") -> Table:
    table = column_table(
        (what, "left"), ("step", "right"), ("memory GiB", "right"), ("against the best", "left")
    )
    for other in alternatives:
        step = "" if other.step_time_s is None else seconds(other.step_time_s)
        memory = "" if other.memory_bytes is None else gib(other.memory_bytes)
        table.add_row(other.label, step, memory, other.reason)
    return table


def _lost_list(lost: Sequence[CandidateRecord]) -> Table:
    """Return one entry for each family, fastest first, trimmed."""
    entries = Table.grid(padding=(0, 1, 0, 0))
    for family in lost[:MOST_FAMILIES]:
        entries.add_row("-", Text.assemble((f"{family.label}: ", "bold"), family.reason))
    if len(lost) > MOST_FAMILIES:
        entries.add_row("", f"and {len(lost) - MOST_FAMILIES} more in --json")
    return entries


def bundle_name(plan: Plan) -> str:
    """Return a folder name for the bundle of a plan."""
    return f"{plan.model.name}-{len(plan.rank_map)}gpu"


def launch_lines(plan: Plan, folder: Path, script: str = "launch.sh") -> list[str]:
    """Return the commands that start an exported plan where it belongs."""
    place = shlex.quote(str(folder))
    if len(plan.rank_map) > plan.cluster.gpus_per_node:
        return [f"cd {place} && sbatch job.sbatch"]
    return [f"bash {place}/{script}"]


def next_steps(plan: Plan, file: Path) -> list[str]:
    """Return the commands that export and start a plan; none if nothing exports it."""
    target = EXPORT_TARGETS.get(plan.job.software.name)
    if target is None:
        return []
    folder = Path(bundle_name(plan))
    words = ["planner", "export", str(file), "--target", target, "--output", str(folder)]
    script = "launch.sh" if target == "torch" else f"{target}.sh"
    return [shlex.join(words), *launch_lines(plan, folder, script)]


def _next(plan: Plan, saved: Path | None, command: str) -> list[RenderableType]:
    """Return the commands to type next: export and launch."""
    file = saved or Path("plan.json")
    steps = next_steps(plan, file)
    if not steps:
        return [
            Text(f"Next: {plan.job.software.name} plans cannot be exported; the layout above"),
            Text("names its degrees. A plan for --target torch can be exported and run."),
        ]
    if not saved:
        steps.insert(0, f"{command or 'planner recommend ...'} --output {file}")
    lines = [Text(f"  {step}", "green", no_wrap=True, overflow="ignore") for step in steps]
    return [Text(), Text("Next", style="bold cyan"), *lines]


def no_fit_report(found: NoFit, cluster: ClusterSpec) -> Group:
    """Return the honest no: the smallest shortfall and what would make the job fit."""
    kept = cluster.gpu.memory_bytes - found.limit_bytes
    gpu = f"{cluster.gpu.name}: {gib(cluster.gpu.memory_bytes)} GiB"
    of_gpu = f" ({gpu}, {gib(kept)} GiB kept free)."
    lines = [
        Text(
            f"Nothing fits: {gib(found.shortfall_bytes)} GiB short. The most frugal layout, "
            f"{found.label}, needs {gib(found.needed_bytes)} GiB on its fullest GPU; "
            f"{gib(found.limit_bytes)} GiB may be used" + ("." if cluster.node_groups else of_gpu),
            style="bold",
        )
    ]
    if not found.changes:
        return Group(*lines, Text("No change of nodes, GPU or sequence length was found to help."))
    table = column_table(("change", "left"), ("costs", "right"))
    for change in found.changes:
        table.add_row(change.text, f"{change.factor:.3g} x")
    return Group(*lines, section("What would make it fit, cheapest first", table))


def no_fit_json(found: NoFit) -> str:
    """Return the honest no as JSON."""
    answer = {"fits": False, **asdict(found), "shortfall_bytes": found.shortfall_bytes}
    return json.dumps(answer, indent=1)
