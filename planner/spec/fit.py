"""Least squares that turn measured points into the curves of ``spec.gpu``.

Errors are relative: a small message counts as much as a large one. numpy is imported on use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Any

from planner.errors import SpecError
from planner.spec.gpu import AttentionCurve, CollectiveCurve, GemmCurve, GpuSpec, KernelCurve
from planner.spec.measured import AttentionMeasurement

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Kept from the shipped curve, because a few shapes cannot tell them apart; these serve otherwise.
PRIOR_GEMM = GemmCurve(
    efficiency=0.75, k_half=100, wave_exponent=0.2, overhead_s=4e-6, hbm_fraction=0.7
)
REWEIGHTED = 20  # rounds of least squares on the way to least absolute errors
ELEMENT_BYTES = 2  # of operands and result; quantised products read bf16 and quantise on the way


@dataclass(frozen=True, slots=True)
class GemmPoint:
    """Seconds of one product (m, k) x (k, n)."""

    m: int
    n: int
    k: int
    seconds: float


def fit_collective(ranks: int, points: list[tuple[float, float]]) -> tuple[CollectiveCurve, float]:
    """Fit ``t = alpha + x / beta + gamma sqrt(x)`` to (bus bytes, seconds) pairs.

    The sum of absolute relative errors is least: a size that ran during warm-up does not bend the
    curve. No coefficient may be negative, and beta must be there: among the subsets of the three
    terms the best feasible one is taken. Returns the curve and its median relative error.
    """
    import numpy as np

    bus_bytes = np.array([size for size, _ in points])
    seconds = np.array([time for _, time in points])
    scale = float(bus_bytes.max())
    terms = np.stack([np.ones_like(bus_bytes), bus_bytes / scale, np.sqrt(bus_bytes / scale)])
    relative = (terms / seconds).T
    best, best_error = np.zeros(3), np.inf
    for size in range(1, min(3, len(set(bus_bytes))) + 1):
        for chosen in (subset for subset in combinations(range(3), size) if 1 in subset):
            found = _least_absolute(relative[:, chosen])
            error = float(np.abs(relative[:, chosen] @ found - 1).sum())
            if (found >= 0).all() and found[chosen.index(1)] > 0 and error < best_error:
                best, best_error = np.zeros(3), error
                best[list(chosen)] = found
    curve = CollectiveCurve(
        ranks=ranks,
        alpha_s=float(best[0]),
        bytes_per_s=scale / float(best[1]),
        gamma_s_per_sqrt_byte=float(best[2]) / scale**0.5,
    )
    return curve, float(np.median(np.abs(relative @ best - 1)))


def _least_absolute(columns: "Array") -> "Array":
    """Return the combination of columns nearest to ones, by squares that are weighted anew."""
    import numpy as np

    ones = np.ones(len(columns))
    weight = ones
    for _ in range(REWEIGHTED):
        found = np.linalg.lstsq(columns * weight[:, None], ones * weight, rcond=None)[0]
        weight = 1 / np.sqrt(np.maximum(np.abs(columns @ found - 1), 1e-3))
    return np.asarray(found, np.float64)


def fit_gemm(points: list[GemmPoint], gpu: GpuSpec, dtype: str) -> tuple[GemmCurve, float]:
    """Fit efficiency, k_half and overhead of ``cost.compute.gemm_s`` to measured products.

    The law is linear in the overhead only, so the other two are searched on a grid that zooms in
    three times. Returns the curve and its median relative error.
    """
    import numpy as np

    prior = gpu.gemm.get(dtype, PRIOR_GEMM)
    peak = gpu.peak_flops.get(dtype)
    if peak is None:
        known = ", ".join(gpu.peak_flops)
        raise SpecError(f"profile: gemms: dtype {dtype!r} has no peak on {gpu.name}; use {known}")
    seconds = np.array([point.seconds for point in points])
    at_peak, memory = _bounds(points, gpu, peak, prior)
    k = np.array([float(point.k) for point in points])
    weight = 1 / np.square(seconds)
    efficiency, k_half = np.linspace(0.02, 1.0, 50), np.linspace(0, 2000, 41)
    best: dict[str, float] = {}
    for _ in range(4):
        share = efficiency[:, None, None] * k / (k + k_half[:, None])
        kernel = ((at_peak / share) ** 4 + memory**4) ** 0.25
        overhead = np.maximum(0, ((seconds - kernel) * weight).sum(-1) / weight.sum())
        error = np.square((kernel + overhead[..., None]) / seconds - 1).sum(-1)
        i, j = np.unravel_index(int(error.argmin()), error.shape)
        residual = float(np.median(np.abs((kernel[i, j] + overhead[i, j]) / seconds - 1)))
        best = {
            "efficiency": float(efficiency[i]),
            "k_half": float(k_half[j]),
            "overhead_s": float(overhead[i, j]),
        }
        efficiency, k_half = _zoom(efficiency, int(i), 0.001, 1.0), _zoom(k_half, int(j), 0, 1e5)
    return prior.model_copy(update=best), residual


def fit_kernel(points: Sequence[tuple[float, float]]) -> KernelCurve:
    """Fit ``t = a + x / rate`` to (bytes, seconds) pairs by the line through the outermost two.

    One size tells the rate only. Where more bytes took no longer, the rate is that of the largest.
    """
    (small, small_s), (large, large_s) = min(points), max(points)
    slope = (large_s - small_s) / (large - small) if large > small else 0.0
    start = large_s - slope * large
    if slope <= 0 or start < 0:
        return KernelCurve(overhead_s=0.0, bytes_per_s=large / large_s)
    return KernelCurve(overhead_s=start, bytes_per_s=1 / slope)


def fit_attention(
    measured: Sequence[AttentionMeasurement], head_dim: int, gpu: GpuSpec
) -> AttentionCurve:
    """Return a curve of one efficiency for shapes that were not measured: the median of these.

    Causal attention is counted half. Efficiencies are shares of the half-precision peak.
    """
    peak = gpu.peak_flops.get("bf16") or gpu.peak_flops["fp16"]
    rates: dict[bool, list[float]] = {False: [], True: []}
    for one in measured:
        if one.head_dim == head_dim:
            flops = 2.0 * one.heads * one.seq_q * one.seq_kv * head_dim
            rates[one.backward].append(flops * (2.5 if one.backward else 1.0) / one.seconds)
    forward = median(rates[False] or rates[True])
    backward = median(rates[True]) if rates[True] else forward
    return AttentionCurve(
        efficiency=min(1.0, forward / (peak * gpu.sustained_fraction)),
        s_half=0,
        wave_exponent=0,
        overhead_s=0,
        backward_ratio=forward / backward,
    )


def _bounds(
    points: list[GemmPoint], gpu: GpuSpec, peak_flops: float, prior: GemmCurve
) -> tuple["Array", "Array"]:
    """Return seconds at full peak in whole waves, and seconds to move the operands."""
    import numpy as np

    m, n, k = (np.array([float(getattr(point, axis)) for point in points]) for axis in "mnk")
    tiles = np.ceil(m / prior.tile_m) * np.ceil(n / prior.tile_n)
    wave = tiles / (np.ceil(tiles / gpu.sm_count) * gpu.sm_count)
    rate = peak_flops * gpu.sustained_fraction * wave**prior.wave_exponent
    moved = ELEMENT_BYTES * (m * k + n * k + m * n)
    return 2 * m * n * k / rate, moved / (prior.hbm_fraction * gpu.hbm_bytes_per_s)


def _zoom(grid: Any, at: int, low: float, high: float) -> Any:
    """Return a grid ten times finer around one of its points."""
    import numpy as np

    step = grid[1] - grid[0]
    return np.unique(np.clip(np.linspace(grid[at] - step, grid[at] + step, 21), low, high))
