"""A profile for people: what was measured, what looks wrong, and two profiles side by side."""

from collections.abc import Iterator
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table

from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import bus_factor
from planner.spec.measured import LinkCurve
from planner.spec.profile import Profile
from planner.units import format_s, format_size

SLOW_PAIR = 0.9  # of the median of its level
SLOW_GROUP = 1.2  # times the median of its siblings
SLOW_RANK = 1.1  # times the median of all ranks
FAR_BELOW = 0.4  # of the line rate: no healthy fabric is that far below
CHANGED = 0.1  # what a diff shows by default
HINTS = {
    "domain": "PCIe or host memory instead of the fabric?",
    "cluster": "sockets instead of RDMA?",
}


def profile_report(profile: Profile, cluster: ClusterSpec | None = None) -> RenderableType:
    """Return what a profile holds, and every doubt about it."""
    head = Table.grid(padding=(0, 2))
    for name, value in _head(profile):
        head.add_row(name, value)
    parts: list[RenderableType] = [head, "", _links(profile)]
    if rates := list(_rates(profile)):
        table = Table(box=None, show_header=False, title="Device and host", title_justify="left")
        for row in rates:
            table.add_row(*row)
        parts += ["", table]
    if doubts := list(findings(profile, cluster)):
        parts += ["", "Look at", *(f"  - {doubt}" for doubt in doubts)]
    return Group(*parts)


def _head(profile: Profile) -> Iterator[tuple[str, str]]:
    yield "device", f"{profile.world_size} x {profile.device}"
    yield "measured", f"{profile.date}, {profile.source or 'planner profile'}"
    libraries = (f"torch {profile.torch_version}", profile.library, profile.driver)
    yield "with", ", ".join(part for part in libraries if part and part != "torch ")
    if profile.hosts:
        yield "hosts", ", ".join(profile.hosts)
    counts = {
        "curves": profile.links,
        "pairs": profile.pairs,
        "products": profile.gemms,
        "attention": profile.attention,
        "memory-bound kernels": profile.kernels,
        "not believed": profile.rejected,
    }
    yield "holds", ", ".join(f"{len(own)} {name}" for name, own in counts.items() if own)


def bus_bytes_per_s(link: LinkCurve) -> float:
    """Return bus bandwidth at the largest size."""
    size, seconds = max(link.points)
    return bus_factor(link.kind, link.ranks) * size / seconds


def _links(profile: Profile) -> Table:
    table = Table(box=None, title="Links", title_justify="left")
    columns = ("collective", "ranks", "per node", "smallest", "largest", "bus bandwidth")
    for column in columns:
        table.add_column(column, justify="left" if column == "collective" else "right")
    for link in profile.links:
        size, seconds = min(link.points)
        largest, _ = max(link.points)
        table.add_row(
            link.kind, str(link.ranks), str(link.ranks_per_node),
            f"{format_s(seconds)} for {format_size(size)}", format_size(largest),
            f"{bus_bytes_per_s(link) / 1e9:.2f} GB/s",
        )  # fmt: skip
    return table


def _rates(profile: Profile) -> Iterator[tuple[str, str]]:
    if single := [gemm for gemm in profile.gemms if gemm.copies == 1]:
        best = max(2.0 * g.m * g.n * g.k / g.seconds for g in single)
        yield "fastest product", f"{best / 1e12:.4g} TFLOP/s"
    for name, split in (("host time of a kernel", False), ("the same in a split layer", True)):
        if found := [one.host_op_s for one in profile.launch if (one.tp > 1) is split]:
            yield name, f"{1e6 * median(found):.1f} us"
    if profile.overlaps:
        share = median(one.interference for one in profile.overlaps)
        yield "lost where communication runs beside compute", f"{100 * share:.0f} %"
    if profile.host is not None:
        for name, value in profile.host.model_dump(exclude_none=True).items():
            if name.endswith("bytes_per_s"):
                yield name.removesuffix("_bytes_per_s").replace("_", " "), f"{value / 1e9:.3g} GB/s"
            elif name.endswith("parameters_per_s"):
                yield "AdamW on the CPU", f"{value / 1e9:.3g} G parameters/s"


def findings(profile: Profile, cluster: ClusterSpec | None = None) -> Iterator[str]:
    """Yield what is slow or doubtful: pairs, groups, ranks, and a fabric far below its line rate.

    ``cluster`` is what the machine should be.
    """
    yield from _slow_pairs(profile)
    for link in profile.links:
        if link.slowest_ratio > SLOW_GROUP:
            ranks = ", ".join(map(str, link.slowest_group))
            yield f"{link.kind} of ranks {ranks}: {link.slowest_ratio:.2f} times its siblings"
    for one in profile.spread:
        usual = median(one.seconds)
        for rank, seconds in enumerate(one.seconds):
            if seconds > SLOW_RANK * usual:
                yield f"rank {rank} takes {seconds / usual:.2f} times the median ({one.what})"
    if cluster is not None:
        yield from _below_datasheet(profile, cluster)
    for rejected in profile.rejected:
        yield f"not believed: {rejected.what}: {rejected.reason}"


def _slow_pairs(profile: Profile) -> Iterator[str]:
    for level in ("domain", "cluster"):
        own = [pair for pair in profile.pairs if pair.level == level]
        usual = median(pair.bytes_per_s for pair in own) if own else 0.0
        for pair in own:
            if pair.bytes_per_s < SLOW_PAIR * usual:
                a, b = pair.ranks
                rate, share = pair.bytes_per_s / 1e9, pair.bytes_per_s / usual
                yield f"rank {a} to rank {b}: {rate:.3g} GB/s, {share:.0%} of the median pair"


def _below_datasheet(profile: Profile, cluster: ClusterSpec) -> Iterator[str]:
    """Yield the fabrics whose best collective is far below the line rate of the cluster."""
    net = cluster.scale_out
    nominal = {"domain": cluster.scale_up.bytes_per_s}
    if net is not None:
        nominal["cluster"] = net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node
    for level, line_rate in nominal.items():
        rates = [
            bus_bytes_per_s(link) / (link.ranks_per_node if level == "cluster" else 1)
            for link in profile.links
            if link.level == level
        ]
        rates += [pair.bytes_per_s for pair in profile.pairs if pair.level == level]
        if rates and max(rates) < FAR_BELOW * line_rate:
            where = "inside a node" if level == "domain" else "between nodes"
            yield (
                f"{where}: at best {max(rates) / 1e9:.3g} GB/s, {max(rates) / line_rate:.0%} of "
                f"nominal {line_rate / 1e9:.3g} GB/s; {HINTS[level]}"
            )


def values(profile: Profile) -> dict[str, float]:
    """Return every measured number by a name that is the same in all profiles: seconds or rates."""
    found: dict[str, float] = {}
    for link in profile.links:
        for size, seconds in link.points:
            name = f"{link.kind} {link.ranks} ranks, {link.ranks_per_node} per node, {size} B"
            found[name] = seconds
    for pair in profile.pairs:
        found[f"pair {pair.ranks[0]} to {pair.ranks[1]}, seconds of a GB"] = 1e9 / pair.bytes_per_s
    for gemm in profile.gemms:
        skew = ", skewed" if gemm.skewed else ""
        shape = f"{gemm.m} x {gemm.n} x {gemm.k} x {gemm.copies}{skew}"
        found[f"{gemm.dtype} {gemm.pass_name} product {shape}".replace("  ", " ")] = gemm.seconds
    for core in profile.attention:
        way = "backward" if core.backward else "forward"
        shape = f"{core.heads} heads of {core.head_dim}, {core.seq_q} x {core.seq_kv}"
        found[f"attention {way}, {shape}"] = core.seconds
    for kernel in profile.kernels:
        way = " backward" if kernel.backward else ""
        found[f"{kernel.name}{way}, {kernel.moved_bytes:.0f} B"] = kernel.seconds
    return found


def diff_report(before: Profile, after: Profile, least: float = CHANGED) -> RenderableType:
    """Return which measurements of two profiles differ by more than ``least``, largest first."""
    old, new = values(before), values(after)
    both = [name for name in old if name in new]
    changes = {name: new[name] / old[name] - 1 for name in both}
    shown = [name for name in both if abs(changes[name]) > least]
    table = Table(box=None)
    for column in ("measurement", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "measurement" else "right")
    for name in sorted(shown, key=lambda name: -abs(changes[name])):
        table.add_row(name, format_s(old[name]), format_s(new[name]), f"{changes[name]:+.0%}")
    usual = f"median {median(changes.values()):+.1%}" if changes else "none in both"
    only = f"{len(old) - len(both)} only before, {len(new) - len(both)} only after"
    summary = f"{len(both)} measurements in both, {usual}; {len(shown)} differ by over {least:.0%}"
    return Group(f"{summary}; {only}", *([table] if shown else []))
