"""Seconds of products, attention and element-wise kernels: monotone, and never beyond the GPU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.compute import attention_s, elementwise_s, gemm_s, half_precision_peak
from planner.model.operations import Attention, Elementwise, Gemm
from planner.spec.gpu import GpuSpec, gpu_names, load_gpu
from tests.properties.strategies import quick

GPUS = gpu_names()
widths = st.integers(1, 1 << 15)
tiles = st.integers(1, 128).map(lambda count: 256 * count)  # rows that fill every tile
gpus = st.sampled_from(GPUS).map(load_gpu)
bf16 = ("bf16", "fp16")


def dtype_of(gpu: GpuSpec) -> str:
    return "bf16" if "bf16" in gpu.peak_flops else "fp16"


@quick
@given(gpus, tiles, tiles, tiles, st.sampled_from(["m", "n", "k"]), tiles)
def test_a_larger_product_takes_no_less_time(
    gpu: GpuSpec, m: int, n: int, k: int, side: str, more: int
) -> None:
    small = Gemm("it", m, n, k)
    large = small._replace(**{side: getattr(small, side) + more})

    assert gemm_s(large, gpu, dtype_of(gpu)) >= gemm_s(small, gpu, dtype_of(gpu)) * (1 - 1e-12)


@quick
@given(gpus, widths, widths, widths, st.integers(1, 64), st.booleans())
def test_no_product_beats_the_peak(
    gpu: GpuSpec, m: int, n: int, k: int, copies: int, grouped: bool
) -> None:
    product = Gemm("it", m, n, k, copies, grouped=grouped)

    seconds = gemm_s(product, gpu, dtype_of(gpu))

    assert seconds > 2 * m * n * k * copies / half_precision_peak(gpu)


@quick
@given(gpus, widths, widths, widths)
def test_no_product_beats_the_memory(gpu: GpuSpec, m: int, n: int, k: int) -> None:
    seconds = gemm_s(Gemm("it", m, n, k), gpu, dtype_of(gpu))

    # a fitted share of bandwidth may pass 1 by 4 %: part of the operands was still in cache
    assert seconds > 2 * (m * k + n * k + m * n) / (1.05 * gpu.hbm_bytes_per_s)


@pytest.mark.parametrize("name", GPUS)
def test_copies_are_one_batched_call(name: str) -> None:
    gpu = load_gpu(name)
    one, eight = Gemm("it", 2048, 2048, 2048), Gemm("it", 2048, 2048, 2048, 8)

    ratio = gemm_s(eight, gpu, dtype_of(gpu)) / gemm_s(one, gpu, dtype_of(gpu))

    assert 2 < ratio <= 8


@pytest.mark.parametrize("name", GPUS)
def test_accumulating_in_fp32_costs_memory_traffic(name: str) -> None:
    gpu = load_gpu(name)
    plain = Gemm("wgrad", 8192, 8192, 128)

    extra = gemm_s(plain._replace(accumulates=True), gpu, dtype_of(gpu)) - gemm_s(
        plain, gpu, dtype_of(gpu)
    )

    assert 0 < extra <= 1.01 * 6 * 8192 * 8192 / (0.3 * gpu.hbm_bytes_per_s)


# GPU, dtype, FLOP/s of the best product found (stas00/ml-engineering, MAMF); ours is for long runs
LARGE = [
    ("A100-SXM-80GB", "bf16", 271.2e12),
    ("H100-SXM-80GB", "bf16", 794.5e12),
    ("B200-SXM-180GB", "bf16", 1745e12),
]


@pytest.mark.parametrize(("name", "dtype", "measured"), LARGE)
def test_large_products_reach_what_was_measured(name: str, dtype: str, measured: float) -> None:
    size = 8192

    rate = 2 * size**3 / gemm_s(Gemm("it", size, size, size), load_gpu(name), dtype)

    assert rate == pytest.approx(measured, rel=0.2)


def test_lower_precision_is_faster_where_it_is_worth_it() -> None:
    gpu = load_gpu("H100-SXM-80GB")
    large, tiny = Gemm("it", 8192, 8192, 8192), Gemm("it", 256, 256, 256)

    assert gemm_s(large, gpu, "fp8") < 0.75 * gemm_s(large, gpu, "bf16")
    assert gemm_s(tiny, gpu, "fp8") > gemm_s(tiny, gpu, "bf16")  # quantising costs


def test_activations_are_multiplied_in_half_precision() -> None:
    gpu, scores = load_gpu("H100-SXM-80GB"), Gemm("scores", 2048, 2048, 128, 32, weight=False)

    assert gemm_s(scores, gpu, "fp8") == gemm_s(scores, gpu, "bf16")


def test_grouped_rows_are_padded_to_a_tile() -> None:
    gpu = load_gpu("H100-SXM-80GB")
    times = [gemm_s(Gemm("it", m, 4096, 4096, 8, grouped=True), gpu, "bf16") for m in (129, 256)]

    assert times[0] == pytest.approx(times[1], rel=0.03)


@pytest.mark.parametrize("rows", [128, 1024, 4096])
def test_a_grouped_product_is_slower_than_a_dense_one(rows: int) -> None:
    gpu = load_gpu("H100-SXM-80GB")
    experts = Gemm("experts", rows, 4096, 4096, 8)

    assert gemm_s(experts._replace(grouped=True), gpu, "bf16") > gemm_s(experts, gpu, "bf16")


# sizes at which every GPU has at least a wave of tiles
sizes = st.sampled_from([1, 2, 4, 8])


@quick
@given(gpus, sizes, sizes, st.sampled_from([2048, 4096, 16384]), st.sampled_from([64, 128]))
def test_attention_never_beats_the_peak(
    gpu: GpuSpec, batch: int, heads: int, seq: int, dim: int
) -> None:
    operation = Attention("attention", batch, 8 * heads, seq, seq, dim)

    assert attention_s(operation, gpu) > 2 * batch * 8 * heads * seq**2 * dim / half_precision_peak(
        gpu
    )


@quick
@given(gpus, st.integers(128, 16384), st.integers(1, 16384))
def test_longer_keys_take_longer(gpu: GpuSpec, seq: int, more: int) -> None:
    short = Attention("attention", 1, 32, 4096, seq, 128)

    assert attention_s(short._replace(seq_kv=seq + more), gpu) > attention_s(short, gpu)


@pytest.mark.parametrize("name", GPUS)
def test_backward_attention_does_more_and_slower(name: str) -> None:
    gpu = load_gpu(name)
    forward = Attention("attention", 2, 32, 8192, 8192, 128)

    ratio = attention_s(forward._replace(passes=2.5), gpu) / attention_s(forward, gpu)

    assert 2 < ratio < 5


# heads and sequence, causal TFLOP/s measured: FlashAttention 2 on A100, 3 on H100 (forward)
MEASURED = [
    ("A100-SXM-80GB", 32, 4096, 2, 185e12, 0.15),
    ("H100-SXM-80GB", 16, 16384, 3, 640e12, 0.15),
    ("H100-SXM-80GB", 16, 16384, 2, 370e12, 0.15),
]


@pytest.mark.parametrize(("name", "heads", "seq", "version", "rate", "within"), MEASURED)
def test_attention_reaches_what_was_measured(
    name: str, heads: int, seq: int, version: int, rate: float, within: float
) -> None:
    operation = Attention("attention", 2, heads, seq, seq, 128)

    seconds = attention_s(operation, load_gpu(name), version)

    assert 2 * 2 * heads * seq**2 * 128 / seconds == pytest.approx(rate, rel=within)


# B200, 4096 tokens: few heads do not fill the SMs (ai-dynamo/aiconfigurator, TensorRT-LLM)
@pytest.mark.parametrize(("heads", "rate"), [(32, 682e12), (16, 548e12), (8, 450e12)])
def test_few_heads_lose_efficiency(heads: int, rate: float) -> None:
    operation = Attention("attention", 1, heads, 4096, 4096, 128)

    seconds = attention_s(operation, load_gpu("B200-SXM-180GB"))

    assert 2 * heads * 4096**2 * 128 / seconds == pytest.approx(rate, rel=0.2)


def test_the_nearest_head_dimension_is_used() -> None:
    gpu = load_gpu("H100-SXM-80GB")
    times = {d: attention_s(Attention("it", 1, 16, 4096, 4096, d), gpu) / d for d in (96, 128, 192)}

    assert times[192] > times[128]
    assert times[96] != times[128]


@quick
@given(gpus, st.integers(1, 1 << 32), st.integers(1, 1 << 32))
def test_memory_traffic_adds_up(gpu: GpuSpec, one: int, other: int) -> None:
    both = elementwise_s(Elementwise("it", one + other, kernels=2), gpu)
    apart = [elementwise_s(Elementwise("it", moved), gpu) for moved in (one, other)]

    assert both == pytest.approx(sum(apart))
    assert both > (one + other) / gpu.hbm_bytes_per_s


@quick
@given(gpus, st.floats(1.0, 4.0))
def test_a_faster_gpu_is_never_slower(gpu: GpuSpec, factor: float) -> None:
    faster = gpu.model_copy(
        update={
            "peak_flops": {name: factor * peak for name, peak in gpu.peak_flops.items()},
            "hbm_bytes_per_s": factor * gpu.hbm_bytes_per_s,
        }
    )
    product, dtype = Gemm("it", 4096, 4096, 1024), dtype_of(gpu)
    attention = Attention("it", 1, 16, 4096, 4096, 128)

    assert gemm_s(product, faster, dtype) <= gemm_s(product, gpu, dtype)
    assert attention_s(attention, faster) <= attention_s(attention, gpu)


def test_a_gpu_without_curves_is_a_roofline() -> None:
    gpu = GpuSpec(
        name="new", memory_bytes=8 * 10**10, hbm_bytes_per_s=2e12, sm_count=100,
        peak_flops={"fp16": 4e14},
    )  # fmt: skip
    large = Gemm("it", 8192, 8192, 8192)

    assert half_precision_peak(gpu) == 4e14
    assert gemm_s(large, gpu, "bf16") == pytest.approx(2 * 8192**3 / (0.75 * 4e14), rel=0.05)
    assert attention_s(Attention("it", 8, 32, 8192, 8192, 128), gpu) > 0
