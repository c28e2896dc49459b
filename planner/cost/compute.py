"""Seconds of one operation on one GPU: fitted curves, or a roofline where none was fitted.

Forms and constants: dense products over 2,304 to 11,951 shapes for each GPU, median error 4-9 %;
fused attention over about 3,000 shapes, median error 4-8 % (``sources`` in ``profiles/gpus``).
"""

from math import ceil

from planner.model.operations import Attention, Elementwise, Gemm
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import AttentionCurve, GemmCurve, GpuSpec, operation_key

# A GPU without a measured curve: the middle of the measured ones, and half of a kernel's 5-10 us.
DEFAULT_GEMM = GemmCurve(
    efficiency=0.75, k_half=100, wave_exponent=0.2, overhead_s=4e-6, hbm_fraction=0.7
)
DEFAULT_ATTENTION = AttentionCurve(
    efficiency=0.55, s_half=800, wave_exponent=0.8, overhead_s=15e-6, backward_ratio=1.3
)
ROUNDED_UP = 1.003  # rows of an expert where it was measured ÷ expected ones
TILE_ROWS = 128  # rows of an attention tile and of a grouped product's padding


def _wave(tiles: float, sm_count: int) -> float:
    """Share of the SMs that work when ``tiles`` run in whole waves."""
    tiles = max(1.0, tiles)
    return tiles / (ceil(tiles / sm_count) * sm_count)


def half_precision_peak(gpu: GpuSpec) -> float:
    """Dense FLOP/s in bf16, or in fp16 where the GPU has no bf16 units."""
    return gpu.peak_flops.get("bf16") or gpu.peak_flops["fp16"]


def product_flops_per_s(gpu: GpuSpec) -> float:
    """FLOP/s of large half-precision products in long runs."""
    curve = gpu.gemm.get("bf16", DEFAULT_GEMM)
    return half_precision_peak(gpu) * curve.efficiency * gpu.sustained_fraction


def mean_peak(cluster: ClusterSpec) -> float:
    """Dense FLOP/s of one GPU, the mean over the nodes of a mixed cluster."""
    if not cluster.node_groups:
        return half_precision_peak(cluster.gpu)
    groups = cluster.node_groups
    return sum(group.nodes * half_precision_peak(group.gpu) for group in groups) / cluster.nodes


def gemm_s(operation: Gemm, gpu: GpuSpec, dtype: str) -> float:
    """Seconds of ``copies`` products (m, k) x (k, n) in one batched call.

    ``t = t0 + (T_comp^4 + T_mem^4)^(1/4)`` with
    ``T_comp = 2 m n k / (P e k / (k + k_half) wave^a)``; see ``docs/profile.md``.
    A weight gradient reads and writes its fp32 accumulator. Products of activations stay in bf16.
    A product that a profile measured in this very shape takes what was measured.
    """
    if gpu.measured_s:
        seconds = _measured_gemm_s(operation, gpu, dtype)
        if seconds is not None:
            return seconds / gpu.sustained_fraction
    if not operation.weight and dtype not in ("bf16", "fp16", "fp32"):
        dtype = "bf16"
    curve = gpu.gemm.get(dtype, DEFAULT_GEMM)
    peak = gpu.peak_flops.get(dtype) or half_precision_peak(gpu)
    m, n, k, copies = operation.m, operation.n, operation.k, operation.copies
    rows = ceil(m / TILE_ROWS) * TILE_ROWS if operation.grouped else m
    tiles = ceil(m / curve.tile_m) * ceil(n / curve.tile_n) * copies
    share = curve.efficiency * k / (k + curve.k_half)
    share *= _wave(tiles, gpu.sm_count) ** curve.wave_exponent * gpu.sustained_fraction
    if operation.grouped:
        share *= gpu.grouped_fraction
    compute = 2 * rows * n * k * copies / (peak * share)
    out_bytes = 8 if operation.accumulates else 2
    moved = (2 * (m * k + n * k) + out_bytes * m * n) * copies
    memory = moved / (curve.hbm_fraction * gpu.hbm_bytes_per_s)
    return curve.overhead_s + float((compute**4 + memory**4) ** 0.25)


def _measured_gemm_s(operation: Gemm, gpu: GpuSpec, dtype: str) -> float | None:
    """Return what a profile measured of this shape; of experts also by their rows rounded up.

    Expected rows of an expert are a fraction; a measurement has whole ones on each source rank
    (SimuMax: at most 0.3 % more), so it counts in proportion.
    """
    kind = f"{dtype} {_pass_name(operation)}" + " accumulated" * operation.accumulates
    m, n, k, copies = operation.m, operation.n, operation.k, operation.copies
    seconds = gpu.measured_s.get(operation_key(kind, m, n, k, copies))
    if seconds is not None or not operation.grouped:
        return seconds
    of_weight = operation.name.endswith(" wgrad")
    rows = k if of_weight else m
    for whole in range(ceil(rows), int(ROUNDED_UP * rows) + 2):
        shape = (m, n, whole) if of_weight else (whole, n, k)
        seconds = gpu.measured_s.get(operation_key(kind, *shape, copies))
        if seconds is not None:
            return seconds * rows / whole
    return None


def _pass_name(operation: Gemm) -> str:
    """Return how the operands lie: forward, dgrad or wgrad."""
    last = operation.name.rpartition(" ")[2]
    return last if last in ("dgrad", "wgrad") else "forward"


def attention_s(operation: Attention, gpu: GpuSpec, flash_version: int = 3) -> float:
    """Seconds of fused attention: ``passes * 2 b h s_q s_kv d`` FLOPs, causal counted half."""
    if gpu.measured_s:
        way = "backward" if operation.passes > 1 else "forward"
        heads = operation.batch * operation.heads
        sizes = (heads, operation.seq_q, operation.seq_kv, operation.head_dim)
        seconds = gpu.measured_s.get(operation_key(f"attention {way}", *sizes))
        if seconds is None:  # a part of all queries with all heads works as much as whole heads
            whole = (heads * operation.seq_q / operation.seq_kv, operation.seq_kv)
            key = operation_key(f"attention {way}", *whole, operation.seq_kv, operation.head_dim)
            seconds = gpu.measured_s.get(key)
        if seconds is not None:
            return seconds / gpu.sustained_fraction
    curve = DEFAULT_ATTENTION
    if gpu.attention:
        nearest = min(gpu.attention, key=lambda dim: abs(dim - operation.head_dim))
        curve = gpu.attention[nearest]
    flops = 2.0 * operation.batch * operation.heads * operation.seq_q * operation.seq_kv
    flops *= operation.head_dim * operation.passes
    tiles = operation.batch * operation.heads * ceil(operation.seq_q / TILE_ROWS)
    share = curve.efficiency * operation.seq_kv / (operation.seq_kv + curve.s_half)
    share *= _wave(tiles, gpu.sm_count) ** curve.wave_exponent * gpu.sustained_fraction
    peak = half_precision_peak(gpu)
    share *= gpu.flash_fraction.get(flash_version, 1.0)
    slower = curve.backward_ratio if operation.passes > 1 else 1.0
    return float(curve.overhead_s + slower * flops / (peak * share))


def elementwise_s(operation: Elementwise, gpu: GpuSpec) -> float:
    """Seconds of kernels bound by memory traffic; a measured kind by its own line."""
    if curve := gpu.kernels.get(operation.name):
        return curve.overhead_s + operation.moved_bytes / curve.bytes_per_s
    moved = operation.moved_bytes / (gpu.memory_bound_fraction * gpu.hbm_bytes_per_s)
    return float(moved + operation.kernels * gpu.launch_s)
