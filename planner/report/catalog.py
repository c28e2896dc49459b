"""Lists of what ships: models, clusters and GPUs with the numbers people choose by."""

from collections.abc import Sequence

from rich.table import Table

from planner.model.parameters import active_parameters, total_parameters
from planner.report.layout import column_table
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec
from planner.spec.model import ModelSpec
from planner.units import GB, GIB, format_count


def _grid(name: str, *numbers: str) -> Table:
    return column_table((name, "left"), *((title, "right") for title in numbers))


def model_table(models: Sequence[ModelSpec]) -> Table:
    """Return one line for each model."""
    table = _grid("model", "parameters", "active", "layers", "hidden", "heads", "kv", "experts")
    for model in models:
        experts = f"{model.moe.top_k} of {model.moe.experts}" if model.moe else "-"
        table.add_row(
            model.name,
            format_count(total_parameters(model)),
            format_count(active_parameters(model)),
            str(model.layers),
            str(model.hidden),
            str(model.heads),
            "latent" if model.mla else str(model.kv_heads),
            experts,
        )
    return table


def cluster_table(clusters: Sequence[ClusterSpec]) -> Table:
    """Return one line for each cluster; rates are per GPU and direction."""
    table = _grid("cluster", "GPU", "per node", "domain", "inside GB/s", "network GB/s")
    for cluster in clusters:
        net = cluster.scale_out
        rate = net.nics_per_node * net.nic_bytes_per_s / cluster.gpus_per_node if net else 0.0
        table.add_row(
            cluster.name,
            cluster.gpu.name,
            str(cluster.gpus_per_node),
            str(cluster.domain_gpus),
            f"{cluster.scale_up.kind} {cluster.scale_up.bytes_per_s / GB:.4g}",
            f"{net.fabric} {rate / GB:.3g}" if net else "-",
        )
    return table


def gpu_table(gpus: Sequence[GpuSpec]) -> Table:
    """Return one line for each GPU; peaks are dense."""
    table = _grid("GPU", "memory GiB", "HBM GB/s", "bf16 TFLOP/s", "fp8 TFLOP/s")
    for gpu in gpus:
        peak = gpu.peak_flops
        table.add_row(
            gpu.name,
            f"{gpu.memory_bytes / GIB:.1f}",
            f"{gpu.hbm_bytes_per_s / GB:.0f}",
            _teraflops(peak.get("bf16"))
            if "bf16" in peak
            else f"{_teraflops(peak['fp16'])} (fp16)",
            _teraflops(peak.get("fp8")),
        )
    return table


def _teraflops(peak_flops: float | None) -> str:
    return "-" if peak_flops is None else f"{peak_flops / 1e12:.4g}"
