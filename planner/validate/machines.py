"""The cluster a measured run names, built from its GPU and interconnect cells."""

import re
from functools import lru_cache

from planner.cost.priors import RING_SHARE
from planner.spec.cluster import ClusterSpec, HostSpec, ScaleOutSpec, ScaleUpSpec, load_gpu
from planner.spec.gpu import GpuSpec
from planner.units import GB, GIB

# The network a GPU is usually sold with, in bytes per second and GPU (cluster tables: DGX-1/2,
# DGX A100, DGX H100, DGX B200, NVL72, EFA p4/p5), used where a run does not name its own.
_USUAL_NET = {
    "V100": 100 / 8 / 2,
    "A100": 25.0,
    "A800": 25.0,
    "H100": 50.0,
    "H800": 50.0,
    "H200": 50.0,
    "H20": 50.0,
    "B200": 50.0,
    "B300": 100.0,
    "GB200": 50.0,
    "GB300": 100.0,
    "MI": 50.0,
    "A10G": 50 / 8 / 4,
    "L4": 50 / 8 / 8,
}
_EFA_NET = {"A100": 400 / 8 / 8}  # p4d: four adapters of 100 Gb/s for eight GPUs
_LINE_RATE = {
    "V100": 150,
    "A100": 300,
    "A800": 200,
    "H800": 200,
    "H100": 450,
    "H200": 450,
    "H20": 450,
}
_LINE_RATE |= {"GB": 900, "B2": 900, "B3": 900, "MI3": 448, "MI25": 50}
# Host memory in GiB, pinned GB/s of one GPU, and GB/s of an optimizer on all CPUs of a node: as in
# cluster_specs of the same GPUs.
_HOST = {
    "GB": (960, 200, 461), "V100": (1536, 12.3, 115), "A": (2048, 26, 184), "L": (1024, 26, 184),
}  # fmt: skip
_USUAL_HOST = (2048, 55, 276)


def _host(gpu: str, gpus_per_node: int) -> HostSpec:
    """Return the usual host of a GPU; of sixteen V100s four share a link (cluster_specs/dgx-2)."""
    found = (values for prefix, values in _HOST.items() if gpu.startswith(prefix))
    memory, link, stream = next(found, _USUAL_HOST)
    return HostSpec(
        memory_bytes=memory * GIB,
        gpu_link_bytes_per_s=link * GB,
        link_gpus=4 if gpus_per_node == 16 else 1,
        stream_bytes_per_s=stream * GB,
    )


def _by_prefix(table: dict[str, float] | dict[str, int], gpu: str, default: float) -> float:
    prefixes = [prefix for prefix in table if gpu.startswith(prefix)]
    return float(table[max(prefixes, key=len)]) if prefixes else default


def _net_gb_per_s(text: str, gpu: str, gpus_per_node: int) -> float:
    """Network GB/s that one GPU owns."""
    if text == "EFA":
        return _by_prefix(_EFA_NET, gpu, _by_prefix(_USUAL_NET, gpu, 12.5))
    match = re.search(r"(?:(\d+)x)?[^\d]*?([\d.]+)\s*([GT])b(?:/s|ps)", text) or re.search(
        r"(\d+)x \w*?(\d+)()", text
    )
    if match is None:
        slow = 100 / 8 / gpus_per_node  # one adapter of a cloud machine
        return slow if "Ethernet" in text else _by_prefix(_USUAL_NET, gpu, 12.5)
    count, gbps = int(match[1] or 1), float(match[2]) * (1000 if match[3] == "T" else 1)
    if "per GPU" in text:
        return gbps / 8
    return count * gbps / 8 / gpus_per_node


def _fabric(text: str) -> tuple[str, float, float, float]:
    """Return (fabric, latency, efficiency, ring step): latencies in multiples of NCCL's 5 us."""
    if "EFA" in text:
        return "efa", 30e-6, 0.92, 48e-6  # as cluster_specs/aws-p5.yaml
    if "Ethernet" in text:
        return "ethernet", 30e-6, 0.7, 30e-6
    if "Slingshot" in text:
        return "slingshot", 10e-6, 0.85, 8e-6
    return "ib", 5e-6, 0.92, 3e-6


@lru_cache(maxsize=256)
def machine(gpu_name: str, gpus_per_node: int, intra: str, inter: str, gpus: int) -> ClusterSpec:
    """Return the cluster of a run; raises SpecError for a GPU without a profile."""
    gpu = load_gpu(gpu_name)
    domain = gpus_per_node
    kind, rate = "nvlink", _by_prefix(_LINE_RATE, gpu_name, 25.0)
    if "NVL72" in intra or "NVL72" in gpu_name:
        domain = 72
    if "PCIe" in intra or (not intra and (rate == 25.0 or "PCIe" in gpu_name)):
        kind, rate = "pcie", 30.0  # PCIe 4
        measured = re.search(r"(\d+)-([\d.]+) GB/s measured", intra)
        if measured:
            rate = float(measured[1]) / RING_SHARE
        gpu = _without_collectives(gpu)
    fabric, latency, efficiency, ring_step = _fabric(inter)
    net = _net_gb_per_s(inter, gpu_name, gpus_per_node)
    return ClusterSpec(
        name=f"{gpu_name} x {gpus_per_node}",
        gpu=gpu,
        nodes=max(1, -(-gpus // gpus_per_node)),
        gpus_per_node=gpus_per_node,
        domain_gpus=domain,
        scale_up=ScaleUpSpec(kind=kind, bytes_per_s=rate * GB),
        scale_out=ScaleOutSpec(
            fabric=fabric,
            nics_per_node=gpus_per_node,
            nic_bytes_per_s=net * GB,
            latency_s=latency,
            ring_step_s=ring_step,
            efficiency=efficiency,
            gather_efficiency=min(efficiency, 0.82) if fabric == "ib" else efficiency,
        ),
        host=_host(gpu_name, gpus_per_node),
    )


def _without_collectives(gpu: GpuSpec) -> GpuSpec:
    return gpu.model_copy(update={"collectives": {}})
