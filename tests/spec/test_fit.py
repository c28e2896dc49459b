import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.compute import gemm_s
from planner.errors import SpecError
from planner.model.operations import Gemm
from planner.spec.fit import GemmPoint, fit_collective, fit_gemm
from planner.spec.gpu import GemmCurve, bus_factor, load_gpu

SIZES = [float(4**power) for power in range(5, 16)]
SHAPES = [
    (m, n, k) for m in (256, 1024, 4096) for n in (1024, 4096, 8192) for k in (512, 2048, 8192)
]

# all-gather of 8 A100 over NVSwitch, message bytes and microseconds
# (ai-dynamo/aiconfigurator systems/data/a100_sxm/comm/nccl/2.27.3, nccl-tests)
A100_ALL_GATHER = [
    (1024, 14.98),
    (8192, 14.58),
    (65536, 21.15),
    (524288, 21.93),
    (1048576, 26.79),
    (4194304, 47.95),
    (16777216, 135.0),
    (67108864, 351.6),
    (268435456, 1216.8),
    (536870912, 2288.0),
]


@given(
    alpha=st.floats(0, 1e-3),
    beta=st.floats(1e9, 1e12),
    gamma=st.floats(0, 1e-7),
)
@settings(deadline=None)
def test_a_collective_of_that_form_is_found(alpha: float, beta: float, gamma: float) -> None:
    points = [(x, alpha + x / beta + gamma * x**0.5) for x in SIZES]

    curve, residual = fit_collective(8, points)

    assert residual < 1e-5
    for x, seconds in points:
        found = curve.alpha_s + x / curve.bytes_per_s + curve.gamma_s_per_sqrt_byte * x**0.5
        assert found == pytest.approx(seconds, rel=1e-4)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_coefficients_are_never_negative(seconds: list[float]) -> None:
    """Whatever was measured, the curve can be used."""
    points = list(zip(SIZES, seconds, strict=False))

    curve, residual = fit_collective(2, points)

    assert curve.alpha_s >= 0
    assert curve.gamma_s_per_sqrt_byte >= 0
    assert 0 < curve.bytes_per_s < np.inf
    assert residual >= 0


def test_a_measured_collective() -> None:
    factor = bus_factor("all_gather", 8)
    points = [(factor * size, us * 1e-6) for size, us in A100_ALL_GATHER]

    curve, residual = fit_collective(8, points)

    assert residual < 0.10
    assert 180e9 < curve.bytes_per_s < 300e9
    assert 10e-6 < curve.alpha_s < 20e-6


def test_one_point_is_a_rate() -> None:
    curve, residual = fit_collective(2, [(1e6, 1e-4)])

    assert curve.bytes_per_s == pytest.approx(1e10)
    assert curve.alpha_s == curve.gamma_s_per_sqrt_byte == 0
    assert residual == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["A100-SXM-80GB", "H100-SXM-80GB", "B200-SXM-180GB"])
def test_a_gemm_curve_is_found_again(name: str) -> None:
    """Points from ``cost.compute.gemm_s`` itself: the fit inverts the law that prices layers."""
    gpu = load_gpu(name)
    points = [GemmPoint(m, n, k, gemm_s(Gemm("", m, n, k), gpu, "bf16")) for m, n, k in SHAPES]

    curve, residual = fit_gemm(points, gpu, "bf16")

    true = gpu.gemm["bf16"]
    assert residual < 0.002
    assert curve.efficiency == pytest.approx(true.efficiency, abs=0.01)
    assert curve.k_half == pytest.approx(true.k_half, abs=12)
    assert curve.overhead_s == pytest.approx(true.overhead_s, abs=3e-7)


def test_a_slower_machine_gets_a_lower_efficiency() -> None:
    gpu = load_gpu("H100")
    points = [
        GemmPoint(m, n, k, 1.25 * gemm_s(Gemm("", m, n, k), gpu, "bf16")) for m, n, k in SHAPES
    ]

    curve, residual = fit_gemm(points, gpu, "bf16")

    assert residual < 0.03
    assert curve.efficiency == pytest.approx(gpu.gemm["bf16"].efficiency / 1.25, abs=0.02)


def test_noise_is_stated() -> None:
    gpu = load_gpu("H100")
    noise = np.random.default_rng(0).normal(1, 0.05, len(SHAPES))
    points = [
        GemmPoint(m, n, k, float(factor) * gemm_s(Gemm("", m, n, k), gpu, "bf16"))
        for (m, n, k), factor in zip(SHAPES, noise, strict=True)
    ]

    _, residual = fit_gemm(points, gpu, "bf16")

    assert 0.01 < residual < 0.08


def test_what_is_not_fitted_stays() -> None:
    gpu = load_gpu("H100")

    curve, _ = fit_gemm([GemmPoint(4096, 4096, 4096, 2e-4)], gpu, "fp8")

    assert isinstance(curve, GemmCurve)
    assert curve.tile_m == gpu.gemm["fp8"].tile_m
    assert curve.wave_exponent == gpu.gemm["fp8"].wave_exponent


def test_unknown_dtype() -> None:
    with pytest.raises(SpecError, match=r"'int3' has no peak on H100-SXM-80GB; use bf16, fp16"):
        fit_gemm([GemmPoint(1, 1, 1, 1.0)], load_gpu("H100"), "int3")
