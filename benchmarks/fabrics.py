"""The machines of public nccl-tests runs, from the words that name them: topology, no curve."""

import re

from planner.spec.cluster import ClusterSpec, ScaleOutSpec, ScaleUpSpec
from planner.spec.gpu import load_gpu
from planner.units import GB

# hardware as the runs name it: a shipped GPU that stands in for it, GB/s per GPU and direction of
# its scale-up link (vendor datasheets), GPUs of a domain
HARDWARE = {
    "A100-PCIe": ("A100-PCIe-80GB", "pcie", 31, 4),
    "A100": ("A100-SXM-80GB", "nvlink", 300, 8),
    "H100": ("H100-SXM-80GB", "nvlink", 450, 8),
    "H200": ("H200-SXM-141GB", "nvlink", 450, 8),
    "B200": ("B200-SXM-180GB", "nvlink", 900, 8),
    "B300": ("B300-SXM-288GB", "nvlink", 900, 8),
    "GB200-NVL4": ("GB200-NVL72-186GB", "nvlink", 900, 4),
    "GB300-NVL4": ("GB300-NVL72-288GB", "nvlink", 900, 4),
    "GB200-NVL72": ("GB200-NVL72-186GB", "nvlink", 900, 64),  # 128 GPUs in two racks
    "L40S": ("L40S-48GB", "pcie", 31, 8),
    "RTXPRO6000": ("RTX-PRO-6000-96GB", "pcie", 63, 8),
    "ArcProB60": ("L40S-48GB", "pcie", 31, 4),  # PCIe 5 x8; no shipped GPU, links alone count
    "MI200": ("MI250X-GCD-64GB", "xgmi", 350, 16),  # seven links of 50 GB/s, not a full mesh
    "MI300X": ("MI300X-192GB", "xgmi", 448, 8),
    "MI355X": ("MI355X-288GB", "xgmi", 538, 8),
    "unstated": ("A100-SXM-80GB", "nvlink", 300, 8),
}
_NICS = re.compile(r"(\d+)x(\d+)G")
_FABRICS = (
    ("EFA", "efa"), ("TCPXO", "tcpxo"), ("TCPX", "tcpx"), ("RoCE", "roce"), ("Pollara", "roce"),
)  # fmt: skip


def machine_of(
    hardware: str, interconnect: str, ranks: int, nodes: int, algorithm: str
) -> tuple[str, ClusterSpec]:
    """Return the kind of fabric, as it is grouped in tables, and the cluster."""
    found = max((name for name in HARDWARE if hardware.startswith(name)), key=len)
    gpu, link, rate, domain = HARDWARE[found]
    inside = ranks // nodes if nodes > 1 else ranks
    domain = max(domain, inside) if domain >= ranks or nodes > 1 else ranks
    net = _net(interconnect, domain) if ranks > domain else None
    spec = ClusterSpec(
        name=f"{hardware}, {interconnect}",
        gpu=load_gpu(gpu).model_copy(update={"collectives": {}}),
        nodes=-(-ranks // domain),
        gpus_per_node=domain,
        domain_gpus=domain,
        scale_up=ScaleUpSpec.model_validate(
            {
                "kind": link,
                "bytes_per_s": rate * GB,
                "latency_s": 1.5e-6 if link == "pcie" else 1e-6,
            }
        ),
        scale_out=net,
    )
    if net is not None:
        names = {"ib": "IB or RoCE", "roce": "IB or RoCE", "efa": "EFA"}
        return f"network, {names.get(net.fabric, 'TCPX(O)')}", spec
    if "one-shot" in algorithm:
        return "NVLink, TensorRT-LLM's own kernels", spec
    return {"nvlink": "NVLink", "pcie": "PCIe", "xgmi": "xGMI"}[link], spec


def _net(interconnect: str, domain: int) -> ScaleOutSpec:
    """Return the network between nodes; where no rate is stated, one 400 Gb/s NIC for each GPU."""
    fabric = next((name for word, name in _FABRICS if word in interconnect), "ib")
    said = _NICS.search(interconnect)
    nics, gbits = (int(said[1]), float(said[2])) if said else (domain, 400.0)
    shares = {"tcpxo": 0.95, "tcpx": 0.5}
    return ScaleOutSpec.model_validate(
        {
            "fabric": fabric,
            "nics_per_node": nics,
            "nic_bytes_per_s": gbits / 8 * GB,
            "gather_efficiency": shares.get(fabric, 0.82),
        }
    )
