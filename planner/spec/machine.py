"""How a cluster takes over what a profile measured, and the cluster that a profile alone describes.

A measurement always beats a shipped curve, and one of the very shape beats a fitted curve.
"""

from statistics import median
from typing import Any

from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec, HostSpec, ScaleOutSpec, ScaleUpSpec
from planner.spec.fit import GemmPoint, fit_attention, fit_collective, fit_gemm, fit_kernel
from planner.spec.gpu import (
    CollectiveCurve,
    GpuSpec,
    GroupCurve,
    KernelCurve,
    bus_factor,
    load_gpu,
    operation_key,
)
from planner.spec.measured import Kind
from planner.spec.nodes import NodeLinks
from planner.spec.profile import Profile

HEALTHY_SHARE = 0.8  # of the fastest pair's rate: pairs above it are alike
BROKEN_SHARE = 1e-6  # what a pair that carries nothing is counted as


def apply_profile(cluster: ClusterSpec, profile: Profile) -> ClusterSpec:
    """Return the cluster with every curve that the profile measured fitted to its points.

    What was not measured keeps its shipped value; ``sources`` says which is which and how far the
    fit is from its points.
    """
    gpu, inside = _with_collectives(cluster.gpu, profile)
    gpu = _with_kernels(_with_gemms(gpu, profile), profile)
    if profile.memory_bytes is not None:
        gpu = _changed(gpu, "memory_bytes", profile.memory_bytes, profile.origin)
    cluster = _with_host(cluster, profile)
    if cluster.scale_out is None:
        return cluster.model_copy(update={"gpu": gpu})
    net, source = _with_network(cluster, profile, inside)
    sources = cluster.sources | ({"scale_out": source} if source else {})
    return cluster.model_copy(update={"gpu": gpu, "scale_out": net, "sources": sources})


def _changed(gpu: GpuSpec, field: str, value: Any, source: str) -> GpuSpec:
    return gpu.model_copy(update={field: value, "sources": gpu.sources | {field: source}})


def _groups(profile: Profile, level: str) -> dict[tuple[Kind, int, int], list[tuple[float, float]]]:
    """Return (bus bytes, seconds) of all points by kind, ranks and ranks per node."""
    groups: dict[tuple[Kind, int, int], list[tuple[float, float]]] = {}
    for link in profile.links:
        if link.level == level:
            factor = bus_factor(link.kind, link.ranks)
            points = [(factor * size, seconds) for size, seconds in link.points]
            groups.setdefault((link.kind, link.ranks, link.ranks_per_node), []).extend(points)
    return groups


def _with_collectives(gpu: GpuSpec, profile: Profile) -> tuple[GpuSpec, list[CollectiveCurve]]:
    """Return the GPU with measured curves inside a domain, and those of all_reduce."""
    curves = {kind: {curve.ranks: curve for curve in own} for kind, own in gpu.collectives.items()}
    residuals: dict[str, list[float]] = {}
    for (kind, ranks, _), points in _groups(profile, "domain").items():
        curve, residual = fit_collective(ranks, points)
        curves.setdefault(kind, {})[ranks] = curve
        residuals.setdefault(kind, []).append(residual)
    all_reduce = list(curves.get("all_reduce", {}).values())
    if not residuals:
        return gpu, all_reduce
    shown = "; ".join(f"{kind} median error {median(r):.1%}" for kind, r in residuals.items())
    prior = gpu.sources.get("collectives", "no source given")
    source = f"{profile.origin}: {shown}; other groups: {prior}"
    ordered = {kind: tuple(own[r] for r in sorted(own)) for kind, own in curves.items()}
    return _changed(gpu, "collectives", ordered, source), all_reduce


def _with_gemms(gpu: GpuSpec, profile: Profile) -> GpuSpec:
    """Return the GPU with its matrix-product curves fitted, one for each measured dtype."""
    curves, shown = dict(gpu.gemm), []
    single = [product for product in profile.gemms if product.copies == 1]
    for dtype in dict.fromkeys(product.dtype for product in single):
        products = [p for p in single if p.dtype == dtype]
        points = [GemmPoint(p.m, p.n, p.k, p.seconds) for p in products]
        curves[dtype], residual = fit_gemm(points, gpu, dtype)
        shown.append(f"{dtype} median error {residual:.1%} of {len(points)} shapes")
    if not shown:
        return gpu
    prior = gpu.sources.get("gemm", "no source given")
    return _changed(gpu, "gemm", curves, f"{profile.origin}: {'; '.join(shown)}; other: {prior}")


def _with_kernels(gpu: GpuSpec, profile: Profile) -> GpuSpec:
    """Return the GPU with single operations as measured, host time, and loss by overlap."""
    update: dict[str, Any] = {}
    if shapes := _measured_shapes(profile):
        update["measured_s"] = gpu.measured_s | shapes
    if profile.attention:
        dims = {one.head_dim for one in profile.attention}
        curves = {dim: fit_attention(profile.attention, dim, gpu) for dim in dims}
        update["attention"] = gpu.attention | curves
    if profile.kernels:
        update["kernels"] = gpu.kernels | _kernel_curves(profile)
    if profile.launch:
        update |= _host_times(profile)
        update["in_order"] = any(one.in_order for one in profile.launch)
    if profile.overlaps:
        update["interference"] = median(one.interference for one in profile.overlaps)
    if not update:
        return gpu
    sources = {name: profile.origin for name in update}
    return gpu.model_copy(update=update | {"sources": gpu.sources | sources})


def _host_times(profile: Profile) -> dict[str, float]:
    """Return host seconds of one kernel in whole layers and in layers that several ranks split."""
    found: dict[str, list[float]] = {}
    for one in profile.launch:
        found.setdefault("host_split_op_s" if one.tp > 1 else "host_op_s", []).append(one.host_op_s)
    return {name: median(values) for name, values in found.items()}


def _measured_shapes(profile: Profile) -> dict[str, float]:
    """Return seconds by ``operation_key``; skewed experts are not what is priced."""
    found = {}
    for one in profile.gemms:
        if one.pass_name and not one.skewed:
            kind = f"{one.dtype} {one.pass_name}" + " accumulated" * one.accumulates
            found[operation_key(kind, one.m, one.n, one.k, one.copies)] = one.seconds
    for core in profile.attention:
        way = "backward" if core.backward else "forward"
        sizes = (core.heads, core.seq_q, core.seq_kv, core.head_dim)
        found[operation_key(f"attention {way}", *sizes)] = core.seconds
    return found


def _kernel_curves(profile: Profile) -> dict[str, KernelCurve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for one in profile.kernels:
        name = f"{one.name} backward" if one.backward else one.name
        points.setdefault(name, []).append((one.moved_bytes, one.seconds))
    return {name: fit_kernel(own) for name, own in points.items()}


def _with_host(cluster: ClusterSpec, profile: Profile) -> ClusterSpec:
    """Return the cluster with the rates that copies and drives of a node reached.

    Copies were measured while all GPUs of a node copied, so what they share is in their rate.
    """
    host, ssd, measured = cluster.host, cluster.ssd, profile.host
    sources = dict(cluster.sources)
    if measured is None:
        return cluster
    if host is not None and measured.all_h2d_bytes_per_s is not None:
        rates = [measured.all_h2d_bytes_per_s, measured.all_d2h_bytes_per_s]
        rate = min(rate for rate in rates if rate is not None)
        host = host.model_copy(update={"gpu_link_bytes_per_s": rate, "link_gpus": 1})
        sources["host"] = f"gpu_link_bytes_per_s {profile.origin}"
    read, write = measured.ssd_read_bytes_per_s, measured.ssd_write_bytes_per_s
    if ssd is not None and read is not None and write is not None and measured.ssd_direct:
        rates_of_drives = {"read_bytes_per_s": read, "write_bytes_per_s": write}
        ssd = ssd.model_copy(update=rates_of_drives)
        sources["ssd"] = f"rates {profile.origin}"
    return cluster.model_copy(update={"host": host, "ssd": ssd, "sources": sources})


def _with_network(
    cluster: ClusterSpec, profile: Profile, inside: list[CollectiveCurve]
) -> tuple[ScaleOutSpec, str]:
    """Return the network with measured shares of line rate and latency, and their source.

    A group with ``g`` ranks on each node drives ``g`` shares of its NICs. An all-reduce tree
    crosses the network ``2 log2(nodes)`` times; its start and its hops inside a node are those of
    a node-sized group. What slow links of the measured groups took is their own, not the network's.
    """
    net = cluster.scale_out
    assert net is not None
    share = net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node
    found: dict[str, list[float]] = {}
    own: dict[str, list[GroupCurve]] = {}
    for (kind, ranks, g), points in _groups(profile, "cluster").items():
        curve, _ = fit_collective(ranks, points)
        nodes = -(-ranks // g)
        slow, late = _slowest_links(profile.node_links, nodes)
        if slow > HEALTHY_SHARE:  # else it says nothing about groups elsewhere
            own.setdefault(kind, []).append(GroupCurve(**curve.model_dump(), inside=g))
        rate = curve.bytes_per_s / share / slow
        if kind == "send_recv":
            found.setdefault("p2p_efficiency", []).append(rate)
        elif kind == "all_to_all":
            leaving = (ranks - g) / (ranks - 1)  # of the bus bytes, the part that leaves the node
            found.setdefault("all_to_all_efficiency", []).append(rate * leaving)
        elif nodes > 2 or kind != "all_reduce":  # two nodes all-reduce by a tree: twice the rate
            found.setdefault("efficiency", []).append(rate / g)
        if kind == "all_reduce":
            start = min((c.alpha_s for c in inside if c.ranks == g), default=0.0)
            steps = 2 * max(1, (nodes - 1).bit_length())
            found.setdefault("latency_s", []).append(max(0.0, curve.alpha_s - start) / steps / late)
    if not found:
        return net, ""
    shares = {name: median(values) for name, values in found.items()}
    shares = {name: v if name == "latency_s" else min(1.0, v) for name, v in shares.items()}
    curves = net.collectives | {kind: tuple(group) for kind, group in own.items()}
    prior = cluster.sources.get("scale_out", "no source given")
    source = f"{', '.join(shares)} {profile.origin}; other: {prior}"
    return net.model_copy(update={**shares, "collectives": curves}), source


def _slowest_links(links: NodeLinks | None, nodes: int) -> tuple[float, float]:
    """Return the rate ÷ a healthy one's and latency ÷ a healthy one's of the slowest link used.

    By the rings of so many neighbouring nodes, as the profiler forms its groups.
    """
    if links is None:
        return 1.0, 1.0
    starts = range(0, len(links.hosts) - nodes + 1, nodes)
    pairs = [(low + i, low + (i + 1) % nodes) for low in starts for i in range(nodes)]
    pairs = [way for a, b in pairs for way in ((a, b), (b, a))]
    if not pairs:
        return 1.0, 1.0
    slow = min(links.bytes_per_s[a][b] for a, b in pairs) / links.healthy_rate
    if not links.latency_s or not links.healthy_wait_s:
        return max(slow, BROKEN_SHARE), 1.0
    late = max(links.latency_s[a][b] for a, b in pairs) / links.healthy_wait_s
    return max(slow, BROKEN_SHARE), max(late, 1.0)


def cluster_of(profile: Profile, nodes: int | None = None) -> ClusterSpec:
    """Return the cluster that a profile alone describes; ``nodes`` of its kind.

    A GPU that ships keeps its datasheet. Of a CPU nothing is known but what was measured: its peak
    is the fastest product, its line rates are the fastest pairs.
    """
    on_cpu = profile.device.startswith("CPU")
    gpu = _cpu(profile) if on_cpu else _shipped(profile)
    per_node = profile.ranks_per_node or profile.world_size
    count = nodes or profile.world_size // per_node
    link = ScaleUpSpec(
        kind="host" if on_cpu else "nvlink", bytes_per_s=_fastest(profile, "domain", 1e9)
    )
    net = None
    if any(link.level == "cluster" for link in profile.links):
        net = ScaleOutSpec(
            fabric="ethernet" if on_cpu else "ib",
            nics_per_node=per_node,
            nic_bytes_per_s=_fastest(profile, "cluster", 1e9) / (per_node if on_cpu else 1),
        )
    elif count > 1:
        raise SpecError(
            f"--nodes: {count} nodes, but the profile measured one; profile two nodes, or describe "
            "the network in a cluster file and add --cluster"
        )
    host = None
    if profile.memory_bytes and on_cpu:
        copies = profile.host.copy_bytes_per_s if profile.host else None
        memory = profile.memory_bytes * per_node
        host = HostSpec(memory_bytes=memory, gpu_link_bytes_per_s=copies or 1e10)
    links = profile.node_links
    if links is not None and (len(links.hosts) < count or (profile.domain_ranks or 0) > per_node):
        links = None  # of more nodes than were measured, or inside a fabric: as if all were alike
    cluster = ClusterSpec(
        name="as profiled",
        gpu=gpu,
        nodes=count,
        gpus_per_node=per_node,
        domain_gpus=profile.domain_ranks or per_node,
        scale_up=link,
        scale_out=net,
        host=host,
        node_links=links if count > 1 else None,
        sources={"scale_up": profile.origin, "scale_out": profile.origin},
    )
    return apply_profile(cluster, profile)


def _fastest(profile: Profile, level: str, otherwise: float) -> float:
    """Return bytes/s of the fastest pair of a level, or of its fastest collective."""
    rates = [pair.bytes_per_s for pair in profile.pairs if pair.level == level]
    rates = rates or [
        bus_factor(link.kind, link.ranks) * link.points[-1][0] / link.points[-1][1]
        for link in profile.links
        if link.level == level
    ]
    return max(rates, default=otherwise)


def _shipped(profile: Profile) -> GpuSpec:
    try:
        return load_gpu(profile.device)
    except SpecError:
        raise SpecError(
            f"the profile is of {profile.device!r}, which does not ship (planner gpus); describe "
            "the machine in a cluster file and add --cluster"
        ) from None


def _cpu(profile: Profile) -> GpuSpec:
    """Return one rank of a CPU run as a device: what was measured, nothing else."""
    rates = [2.0 * p.m * p.n * p.k * p.copies / p.seconds for p in profile.gemms]
    copy = profile.host.copy_bytes_per_s if profile.host else None
    if not rates or not copy:
        raise SpecError(
            "the profile of a CPU has no kernels to price a step with; profile a model on it: "
            "planner profile MODEL --nproc N"
        )
    return GpuSpec(
        name=profile.device,
        memory_bytes=profile.memory_bytes or 2**33,
        hbm_bytes_per_s=copy,
        sm_count=1,
        peak_flops={"bf16": max(rates)},
        ranks_per_core=profile.ranks_per_core,
        launch_s=min((one.op_s for one in profile.launch), default=2e-6),
        sources={"peak_flops": f"the fastest product {profile.origin}",
                 "hbm_bytes_per_s": f"a copy in memory {profile.origin}"},
    )  # fmt: skip
