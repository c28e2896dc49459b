"""Collectives inside a domain that nobody has measured: what its kind of fabric and line rate say.

NVLink: the curves of the shipped GPU of the nearest line rate, scaled to this one. xGMI and PCIe:
laws of a line rate, because shipped curves of them differ by wiring and not by generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log2, sqrt

from planner.spec.cluster import ClusterSpec, ScaleUpSpec
from planner.spec.gpu import CollectiveCurve, GpuSpec, load_gpu
from planner.units import GB

# Measured GPUs by NVLink generation; their own curves name their sources (profiles/gpus).
_MEASURED = {
    "A100-SXM-80GB": 300,
    "H100-SXM-80GB": 450,
    "H200-SXM-141GB": 450,
    "B200-SXM-180GB": 900,
    "B300-SXM-288GB": 900,
    "GB200-NVL72-186GB": 900,
    "GB300-NVL72-288GB": 900,
}
# Switches that reduce on the way (NVLS) came with the fourth generation; NCCL takes them from 5
# ranks (H200) or 6 (B200) on, so curves of up to four ranks are those of rings on any generation.
_NVLS_BYTES_PER_S, _RING_RANKS = 450 * GB, 4
# A full mesh of xGMI: a group of n drives n - 1 of a GPU's links, each to this share (all-reduce of
# nccl-tests: MI325X 0.71, MI355X 0.76; MI300X 0.75 of 2 and 4 ranks, 0.71 of 8).
_MESH_SHARE = 0.75
# PCIe through the host: pairs of L40S, RTX PRO 6000, Arc Pro B60 and RTX 4090 reach 0.53-0.68 of
# the line rate; rings of four and eight 0.40 (RTX PRO 6000) or 0.58 (Arc), but 0.16 and 0.05 of
# L40S, 0.12 and 0.04 of A40, whose path runs through CPU sockets: a line rate does not show that.
PAIR_SHARE, RING_SHARE = 0.6, 0.4
_PCIE_START_S = 4.4e-6  # of RTX PRO 6000, beside its 1.5 us a step; residual 0.5 us
_START_S = 6.8e-6  # NCCL's own constant, as in cost/collectives


@dataclass(frozen=True, slots=True)
class Reference:
    """Measured curves of one GPU, and the line rate they were measured on."""

    name: str
    bytes_per_s: float
    collectives: dict[str, tuple[CollectiveCurve, ...]]


@cache
def shipped_references() -> tuple[Reference, ...]:
    """Return the shipped GPUs whose curves were measured on NVLink."""
    gpus: list[tuple[GpuSpec, int]] = [(load_gpu(name), rate) for name, rate in _MEASURED.items()]
    return tuple(Reference(gpu.name, rate * GB, gpu.collectives) for gpu, rate in gpus)


def nearest(curves: Sequence[CollectiveCurve], ranks: int) -> CollectiveCurve:
    """Return the curve of the nearest group size, on a scale of doublings."""
    return min(curves, key=lambda curve: abs(log2(curve.ranks) - log2(ranks)))


def prior_curve(
    kind: str, ranks: int, cluster: ClusterSpec, references: Sequence[Reference] | None = None
) -> CollectiveCurve:
    """Return what to expect of a collective of ``ranks`` in one domain without its measurement.

    ``references``: measured NVLink machines to learn from, else those that ship.
    """
    link = cluster.scale_up
    steps = (2 if kind == "all_reduce" else 1) * (ranks - 1)
    if link.kind == "pcie":
        share = PAIR_SHARE if ranks == 2 or kind == "send_recv" else RING_SHARE
        alpha_s = _PCIE_START_S + link.latency_s * steps
        return CollectiveCurve(ranks=ranks, alpha_s=alpha_s, bytes_per_s=share * link.bytes_per_s)
    if link.kind == "xgmi":
        links = max(1, min(ranks, cluster.domain_gpus) - 1) / max(1, cluster.domain_gpus - 1)
        share = _MESH_SHARE * links
        alpha_s = _START_S + link.latency_s * (ranks - 1)
        return CollectiveCurve(ranks=ranks, alpha_s=alpha_s, bytes_per_s=share * link.bytes_per_s)
    known = shipped_references() if references is None else references
    return _scaled(kind, ranks, link, [one for one in known if one.collectives.get(kind)])


def _scaled(
    kind: str, ranks: int, link: ScaleUpSpec, known: Sequence[Reference]
) -> CollectiveCurve:
    """Return the curve of the nearest line rate, its bandwidth terms scaled to this one."""
    reference = min(known, key=lambda one: abs(log2(one.bytes_per_s) - log2(link.bytes_per_s)))
    curves = reference.collectives[kind]
    if kind == "all_reduce" and link.bytes_per_s < _NVLS_BYTES_PER_S <= reference.bytes_per_s:
        curves = tuple(one for one in curves if one.ranks <= _RING_RANKS) or curves
    curve = nearest(curves, ranks)
    faster = link.bytes_per_s / reference.bytes_per_s
    return curve.model_copy(
        update={
            "bytes_per_s": curve.bytes_per_s * faster,
            "gamma_s_per_sqrt_byte": curve.gamma_s_per_sqrt_byte / sqrt(faster),
        }
    )
