"""A profile: what the profiler measured on one machine, and how a cluster takes it over.

A measurement always beats a shipped curve. Points stay in the file as they were measured; curves
are fitted when a profile is applied, so a better fit needs no new measurement.
"""

from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from planner.spec.cluster import ClusterSpec, ScaleOutSpec
from planner.spec.files import load
from planner.spec.fit import GemmPoint, fit_collective, fit_gemm
from planner.spec.gpu import Bytes, CollectiveCurve, GpuSpec, bus_factor
from planner.spec.measured import (
    AttentionMeasurement,
    GemmMeasurement,
    HostMeasurement,
    KernelMeasurement,
    Kind,
    LaunchMeasurement,
    LinkCurve,
    NodeMatrix,
    OverlapMeasurement,
    PairLink,
    RankSpread,
    Rejected,
    SharingMeasurement,
)

PROFILE_VERSION = 2
READABLE = (1, PROFILE_VERSION)  # 1 had links and gemms only


def _readable(version: int) -> int:
    if version not in READABLE:
        raise ValueError(f"{version} is not {PROFILE_VERSION}; profile again with this planner")
    return version


def _as_text(value: object) -> object:
    """YAML reads an unquoted date as a date."""
    return value.isoformat() if isinstance(value, date) else value


class Profile(BaseModel):
    """Measurements of one machine, with what is needed to tell where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, AfterValidator(_readable)] = PROFILE_VERSION
    device: str = Field(description="As the driver names it.")
    world_size: PositiveInt
    backend: str = Field(description="nccl, gloo, rccl…")
    date: Annotated[str, BeforeValidator(_as_text)] = Field("", description="Like 2025-01-31.")
    torch_version: str = ""
    driver: str = Field("", description="Version of the GPU driver, or the kernel of a CPU run.")
    library: str = Field("", description="Collective library and version, like NCCL 2.27.3.")
    hosts: tuple[str, ...] = Field((), description="Names of the nodes, in the order of ranks.")
    ranks_per_node: PositiveInt | None = None
    domain_ranks: PositiveInt | None = Field(None, description="Ranks of one scale-up fabric.")
    topology: tuple[str, ...] = Field((), description="What the driver or sysfs says of links.")
    source: str = Field("", description="Files of other programs that this was read from.")
    memory_bytes: Bytes | None = Field(None, description="Of one GPU, as the driver reports it.")
    links: tuple[LinkCurve, ...] = ()
    pairs: tuple[PairLink, ...] = ()
    node_links: NodeMatrix | None = Field(None, description="Pairs of nodes: rate and latency.")
    sharing: tuple[SharingMeasurement, ...] = ()
    gemms: tuple[GemmMeasurement, ...] = ()
    attention: tuple[AttentionMeasurement, ...] = ()
    kernels: tuple[KernelMeasurement, ...] = ()
    launch: LaunchMeasurement | None = None
    overlaps: tuple[OverlapMeasurement, ...] = ()
    spread: tuple[RankSpread, ...] = ()
    host: HostMeasurement | None = None
    rejected: tuple[Rejected, ...] = Field((), description="Named, and used by no estimate.")

    @property
    def origin(self) -> str:
        """Where and when this was measured, in one phrase."""
        if self.source:
            return f"measured on {self.device} ({self.source})"
        return (
            f"measured on {self.device}, {self.date} ({self.backend}, torch {self.torch_version})"
        )


def load_profile(path: str | Path) -> Profile:
    """Read a profile from the JSON or YAML file that the profiler wrote."""
    return load(Profile, path)


def apply_profile(cluster: ClusterSpec, profile: Profile) -> ClusterSpec:
    """Return the cluster with every curve that the profile measured fitted to its points.

    What was not measured keeps its shipped value; ``sources`` says which is which and how far the
    fit is from its points.
    """
    gpu, inside = _with_collectives(cluster.gpu, profile)
    gpu = _with_gemms(gpu, profile)
    if profile.memory_bytes is not None:
        gpu = _changed(gpu, "memory_bytes", profile.memory_bytes, profile.origin)
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
    for dtype in dict.fromkeys(product.dtype for product in profile.gemms):
        products = [p for p in profile.gemms if p.dtype == dtype]
        points = [GemmPoint(p.m, p.n, p.k, p.seconds) for p in products]
        curves[dtype], residual = fit_gemm(points, gpu, dtype)
        shown.append(f"{dtype} median error {residual:.1%} of {len(points)} shapes")
    if not shown:
        return gpu
    prior = gpu.sources.get("gemm", "no source given")
    return _changed(gpu, "gemm", curves, f"{profile.origin}: {'; '.join(shown)}; other: {prior}")


def _with_network(
    cluster: ClusterSpec, profile: Profile, inside: list[CollectiveCurve]
) -> tuple[ScaleOutSpec, str]:
    """Return the network with measured shares of line rate and latency, and their source.

    A group with ``g`` ranks on each node drives ``g`` shares of its NICs. An all-reduce tree
    crosses the network ``2 log2(nodes)`` times; its start and its hops inside a node are those of
    a node-sized group.
    """
    net = cluster.scale_out
    assert net is not None
    share = net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node
    found: dict[str, list[float]] = {}
    for (kind, ranks, g), points in _groups(profile, "cluster").items():
        curve, _ = fit_collective(ranks, points)
        rate, nodes = curve.bytes_per_s / share, -(-ranks // g)
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
            found.setdefault("latency_s", []).append(max(0.0, curve.alpha_s - start) / steps)
    if not found:
        return net, ""
    update = {name: median(values) for name, values in found.items()}
    update = {name: v if name == "latency_s" else min(1.0, v) for name, v in update.items()}
    prior = cluster.sources.get("scale_out", "no source given")
    source = f"{', '.join(update)} {profile.origin}; other: {prior}"
    return net.model_copy(update=update), source
