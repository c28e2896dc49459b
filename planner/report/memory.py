"""The answers of ``planner check`` and ``planner explain memory``: bytes by rank and component."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.memory.estimate import RankMemory, fullest_moments, rank_memory, rank_timeline
from planner.memory.host import node_host_bytes
from planner.memory.interval import Verdict, memory_interval, verdict
from planner.report.host import HostNode, host_nodes, host_table
from planner.report.layout import column_table, listed, section
from planner.report.offload import offload_lines
from planner.report.words import gib, percent, seconds
from planner.schedule.passes import Order
from planner.search.changes import SingleChange
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.parts import part_of

COMPONENTS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim",
    "buffers": "buffers",
    "activations": "activ",
    "working": "working",
}
NO_CHANGES = (
    "No single change is proposed for nodes of several kinds: the stages of each layout differ "
    "(planner recommend finds them)."
)


@dataclass(frozen=True, slots=True)
class Checked:
    """One layout on one cluster: the memory of every pipeline rank, and what that means.

    ``host_bytes`` lie in the memory of the fullest node, which has ``host_capacity_bytes``.
    ``gpus`` are those under each rank: nodes may be of several kinds.
    """

    label: str
    problems: tuple[str, ...]
    ranks: tuple[RankMemory, ...]
    gpus: tuple[GpuSpec, ...]
    verdict: Verdict
    host_bytes: float = 0.0
    host_capacity_bytes: float = 0.0
    notes: tuple[str, ...] = ()  # on what leaves the GPU
    moments: tuple[RankMemory, ...] = ()  # the fullest rank through its step
    host_nodes: tuple[HostNode, ...] = ()  # where something leaves the GPUs

    @property
    def fullest(self) -> RankMemory:
        """Return the memory of the rank that has least to spare."""
        return self.ranks[_fullest(self.ranks, self.gpus)]

    @property
    def gpu(self) -> GpuSpec:
        """Return the GPU of the fullest rank; the smallest where no rank was asked."""
        if not self.ranks:
            return min(self.gpus, key=lambda gpu: gpu.memory_bytes)
        return self.gpus[_fullest(self.ranks, self.gpus)]

    @property
    def of_kinds(self) -> bool:
        """Whether ranks are on GPUs of several kinds."""
        return len(set(self.gpus)) > 1

    @property
    def capacity_bytes(self) -> float:
        """Return the memory of the fullest rank's GPU."""
        return float(self.gpu.memory_bytes)


def _fullest(ranks: Sequence[RankMemory], gpus: Sequence[GpuSpec]) -> int:
    """Return the rank that fills most of its GPU."""
    return max(range(len(ranks)), key=lambda at: ranks[at].device / gpus[at].memory_bytes)


def checked(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    split: Split | None,
    problems: list[str],
    custom: Order | None = None,
) -> Checked:
    """Return the memory of every rank of ``layout``; one with ``problems`` does not even start.

    ``custom`` replaces the order of the layout's schedule.
    """
    if problems:
        gpus = tuple(one.gpu for one in cluster.node_groups) or (cluster.gpu,)
        return Checked(layout.label(), tuple(problems), (), gpus, Verdict.DOES_NOT_FIT)
    size = layout.gpus // layout.pp
    gpus = tuple(part_of(cluster, rank * size, size).gpu for rank in range(layout.pp))
    ranks = tuple(rank_memory(model, job, layout, rank, split, custom) for rank in range(layout.pp))
    fullest = _fullest(ranks, gpus)
    timeline = rank_timeline(model, job, layout, fullest, split, custom=custom)
    notes = offload_lines(Prices(model, cluster, job), layout, split)
    return Checked(
        layout.label(),
        (),
        ranks,
        gpus,
        verdict(ranks[fullest], gpus[fullest].memory_bytes),
        node_host_bytes(model, cluster, job, layout, split),
        cluster.host.memory_bytes if cluster.host else 0.0,
        tuple(notes),
        fullest_moments(timeline),
        host_nodes(ranks, layout, cluster),
    )


def check_sentence(found: Checked) -> str:
    """Return the verdict with the bytes it rests on."""
    if found.problems:
        return f"Does not start: {found.label} breaks these rules"
    low, high = memory_interval(found.fullest)
    margin = found.capacity_bytes - found.fullest.device
    side = f"{gib(margin)} GiB free" if margin >= 0 else f"{gib(-margin)} GiB short"
    said = found.verdict[0].upper() + found.verdict[1:]
    return (
        f"{said}: {found.label} needs {gib(found.fullest.device)} GiB ({gib(low)} to {gib(high)}) "
        f"on its fullest GPU, {side} of {gib(found.capacity_bytes)} GiB ({found.gpu.name})"
    )


def _sentence(found: Checked) -> Text:
    return Text(check_sentence(found), style="bold")


def check_report(found: Checked) -> Group:
    """Return the verdict; of a layout that does not start, every rule it breaks."""
    problems = [listed(found.problems)] if found.problems else []
    return Group(_sentence(found), *problems, *map(Text, found.notes))


def memory_report(found: Checked, changes: list[SingleChange]) -> Group:
    """Return the verdict, the bytes of every rank by component and the cheapest changes."""
    full = found.fullest
    peak = (
        f"The peak is rank {found.ranks.index(full)}, {full.moment} (*). {gib(full.allocated)} GiB "
        f"are allocated, {gib(full.reserved)} GiB reserved by torch; context and communicators, "
        f"which torch does not count, take {gib(full.outside)} GiB."
    )
    parts: list[RenderableType] = [
        _sentence(found),
        section("Memory of each pipeline rank at its peak, GiB", _rank_table(found)),
        section(f"Rank {found.ranks.index(full)} through a step, GiB", _moment_table(found)),
        Text(),
        Text(peak),
        *map(Text, found.notes),
    ]
    if found.host_bytes:
        parts.append(Text(_host_sentence(found)))
    if found.host_nodes:
        parts.append(section("Away from the GPUs, GiB on each node", host_table(found.host_nodes)))
    if found.of_kinds:
        parts += [Text(), Text(NO_CHANGES)]
    if changes:
        parts.append(
            section("Single changes that lower the peak, cheapest first", smaller_table(changes))
        )
    return Group(*parts)


def _host_sentence(found: Checked) -> str:
    moved = ", and activations" if any(node.activation_bytes for node in found.host_nodes) else ""
    return (
        f"The host of the fullest node holds {gib(found.host_bytes)} of its "
        f"{gib(found.host_capacity_bytes)} GiB: the offloaded optimizer, fp32 gradients on their "
        f"way to it, and offloaded weights{moved}."
    )


def _rank_table(found: Checked) -> Table:
    titles = (*COMPONENTS.values(), "reserve", "outside", "total")
    kind = (("GPU", "left"),) if found.of_kinds else ()
    table = column_table(("rank", "left"), *((title, "right") for title in titles), *kind)
    for rank, memory in enumerate(found.ranks):
        sizes = [getattr(memory, name) for name in COMPONENTS]
        sizes += [memory.reserved - memory.allocated, memory.outside, memory.device]
        name = [found.gpus[rank].name] if found.of_kinds else []
        table.add_row(str(rank), *(gib(size) for size in sizes), *name)
    return table


def _moment_table(found: Checked) -> Table:
    """Return what is alive at each moment of the fullest rank, in the order of a step."""
    table = column_table(
        ("moment", "left"), *((title, "right") for title in COMPONENTS.values()),
        ("total", "right"), ("", "left"),
    )  # fmt: skip
    for memory in found.moments:
        sizes = [getattr(memory, name) for name in COMPONENTS]
        peak = "*" if memory.moment == found.fullest.moment else ""
        table.add_row(memory.moment, *(gib(size) for size in (*sizes, memory.allocated)), peak)
    return table


def smaller_table(changes: Sequence[SingleChange]) -> Table:
    """Return what each change saves of the peak, and costs of the step."""
    table = column_table(
        ("change", "left"), ("peak GiB", "right"), ("saves GiB", "right"), ("step", "right"),
        ("slower", "right"),
    )  # fmt: skip
    for change in changes:
        before = change.step_time_s - change.slower_s
        table.add_row(
            change.text,
            gib(change.device_bytes),
            gib(change.saved_bytes),
            seconds(change.step_time_s),
            percent(change.slower_s / before),
        )
    return table


def check_json(found: Checked) -> dict[str, object]:
    """Return the verdict as plain data."""
    answer: dict[str, object] = {
        "verdict": str(found.verdict),
        "starts": not found.problems,
        "problems": list(found.problems),
        "layout": found.label,
        "capacity_bytes": found.capacity_bytes,
    }
    if found.notes:
        answer["notes"] = list(found.notes)
    if found.ranks:
        low, high = memory_interval(found.fullest)
        answer |= {
            "memory_bytes": found.fullest.device,
            "memory_low_bytes": low,
            "memory_high_bytes": high,
        }
        if found.host_bytes:
            answer |= {"host_bytes": found.host_bytes,
                       "host_capacity_bytes": found.host_capacity_bytes}  # fmt: skip
    return answer


def explanation_json(found: Checked, changes: list[SingleChange]) -> dict[str, object]:
    """Return the verdict with the bytes of every rank and moment, and the changes, as data.

    ``moments`` are of the fullest rank, ``peak_rank``, in the order of a step.
    """
    ranks = [
        asdict(memory) | {"reserved": memory.reserved, "device": memory.device}
        for memory in found.ranks
    ]
    listed = [
        {name: value for name, value in asdict(change).items() if name != "layout"}
        | {"layout": change.layout.label()}
        for change in changes
    ]
    moments = [
        {"moment": memory.moment, "peak": memory.moment == found.fullest.moment}
        | {name: getattr(memory, name) for name in COMPONENTS}
        | {"allocated": memory.allocated}
        for memory in found.moments
    ]
    answer = check_json(found) | {
        "ranks": ranks,
        "peak_rank": found.ranks.index(found.fullest),
        "moments": moments,
        "changes": listed,
    }
    if found.host_nodes:
        answer["host_nodes"] = [asdict(node) for node in found.host_nodes]
    return answer
