"""Kernels of SimuMax system files, and operations priced by their very shape."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from planner.cost.compute import attention_s, elementwise_s, gemm_s
from planner.errors import SpecError
from planner.formats.simumax import read_simumax
from planner.model.operations import Attention, Elementwise, Gemm
from planner.spec.cluster import load_cluster
from planner.spec.gpu import GpuSpec
from planner.spec.machine import apply_profile
from planner.spec.profile import Profile
from planner.units import GIB
from tests.formats.measured import simumax

PEAK = 1000e12
GROUPED = "ng=20, M=1232, N=3072, K=5120, dtype=bf16, stage={}, accumulate={}"
SDP = "batch=1, seq_len=4096, head_num=32, kv_head_num=8, qk_head_dim=192, v_head_dim=128, {}"


def with_kernels() -> dict[str, Any]:
    """Return a system file with every kind of kernel."""
    data = copy.deepcopy(simumax())
    kernels = data["accelerator"]["op"]
    kernels["group_matmul"] = {
        "tflops": 1000.0,
        "accurate_efficient_factor": {
            GROUPED.format("fwd", "False"): 0.2,
            GROUPED.format("bwd_grad_act", "False"): 0.25,
            GROUPED.format("bwd_grad_w", "True"): 0.1,
        },
    }
    for name, share in (("sdp_fwd", 0.8), ("sdp_bwd", 0.5)):
        shapes = {SDP.format("qkv_contiguous=True"): share, SDP.format("qkv_contiguous=False"): 0.1}
        kernels[name] = {"tflops": 1000.0, "accurate_efficient_factor": shapes}
    data["accelerator"]["bandwidth"] = {
        "default": {"gbps": 8000.0, "efficient_factor": 0.5, "latency_us": 30},
        "permute_fwd": {"gbps": 8000.0, "efficient_factor": 0.25, "latency_us": 0},
    }
    return data


def profiled() -> GpuSpec:
    """Return a GPU that has the file as its profile, at the clock of short runs."""
    reading = read_simumax(Path("system.json"), json.dumps(with_kernels()))
    profile = Profile(
        device=reading.device, world_size=8, backend="nccl", source=reading.source,
        gemms=reading.gemms, attention=reading.attention, kernels=reading.kernels,
    )  # fmt: skip
    gpu = apply_profile(load_cluster("dgx-b200"), profile).gpu
    return gpu.model_copy(update={"sustained_fraction": 1.0})


GPU = profiled()
FLOPS = 2 * 20 * 3072 * 5120
# operation, seconds that the file states for it
PRODUCTS = [
    (Gemm("qkv", 4096, 1024, 8192), 2 * 4096 * 1024 * 8192 / (0.5 * PEAK)),
    (Gemm("qkv dgrad", 4096, 8192, 1024), 2 * 4096 * 1024 * 8192 / (0.4 * PEAK)),
    (
        Gemm("qkv wgrad", 8192, 1024, 4096, accumulates=True),
        2 * 4096 * 1024 * 8192 / (0.25 * PEAK),
    ),
    (Gemm("experts up", 1232, 3072, 5120, 20, grouped=True), FLOPS * 1232 / (0.2 * PEAK)),
    (Gemm("experts up", 1228.8, 3072, 5120, 20, grouped=True), FLOPS * 1228.8 / (0.2 * PEAK)),
    (
        Gemm("experts up dgrad", 1228.8, 5120, 3072, 20, grouped=True),
        FLOPS * 1228.8 / (0.25 * PEAK),
    ),
    (
        Gemm("experts up wgrad", 5120, 3072, 1228.8, 20, accumulates=True, grouped=True),
        FLOPS * 1228.8 / (0.1 * PEAK),
    ),
]


@pytest.mark.parametrize(("operation", "seconds"), PRODUCTS, ids=lambda one: str(one)[:60])
def test_a_product_takes_what_was_measured(operation: Gemm, seconds: float) -> None:
    assert gemm_s(operation, GPU, "bf16") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "operation",
    [
        Gemm("qkv", 4097, 1024, 8192),  # another size
        Gemm("qkv wgrad", 8192, 1024, 4096),  # measured adding to a gradient, asked without
        Gemm("experts up", 1200, 3072, 5120, 20, grouped=True),  # 2.6 % fewer rows
        Gemm("experts up", 1232, 3072, 5120, 10, grouped=True),  # fewer experts
    ],
    ids=lambda one: str(one)[:60],
)
def test_another_shape_follows_the_curve(operation: Gemm) -> None:
    curve = GPU.model_copy(update={"measured_s": {}})

    assert gemm_s(operation, GPU, "bf16") == gemm_s(operation, curve, "bf16")


@pytest.mark.parametrize(("passes", "share"), [(1.0, 0.8), (2.5, 0.5)])
@pytest.mark.parametrize(("heads", "seq_q"), [(32, 4096), (128, 1024)])
def test_attention_counts_all_scores(passes: float, share: float, heads: int, seq_q: int) -> None:
    """A quarter of the queries with four times the heads, as context parallelism has them."""
    operation = Attention("attention", 1, heads, seq_q, 4096, 160, passes)
    flops = passes * 2 * 32 * 4096**2 * (192 + 128)

    assert attention_s(operation, GPU) == pytest.approx(flops / (share * PEAK))


@pytest.mark.parametrize(
    ("name", "share", "start_s"),
    [("norm", 0.5, 30e-6), ("swiglu backward", 0.5, 30e-6), ("unpermute", 0.25, 0.0)],
)
def test_memory_bound_kernels_follow_the_law_of_the_file(
    name: str, share: float, start_s: float
) -> None:
    seconds = elementwise_s(Elementwise(name, 1e9), GPU)

    assert seconds == pytest.approx(start_s + 1e9 / (8000 * GIB * share))


def test_training_runs_at_a_lower_clock_than_short_runs() -> None:
    slower = GPU.model_copy(update={"sustained_fraction": 0.8})
    operation = PRODUCTS[0][0]

    assert gemm_s(operation, slower, "bf16") == pytest.approx(gemm_s(operation, GPU, "bf16") / 0.8)


BAD = [
    ("group_matmul", {"ng=2, M=4, N=4, stage=fwd": 0.5}, "names no sizes; write 'ng=..., M="),
    ("sdp_fwd", {"batch=1, seq_len=0, head_num=1": 0.5}, "names no sizes; write 'batch="),
    ("sdp_bwd", {SDP.format("x=1"): "quick"}, "'quick' is not a number"),
    ("group_matmul", {GROUPED.format("fwd", "False"): 0}, "a speed of 0 is none"),
]


@pytest.mark.parametrize(("name", "shapes", "said"), BAD)
def test_what_is_wrong_is_said_with_its_place(name: str, shapes: dict[str, Any], said: str) -> None:
    data = with_kernels()
    data["accelerator"]["op"][name]["accurate_efficient_factor"] = shapes

    with pytest.raises(SpecError, match=r"accelerator\.op\.") as caught:
        read_simumax(Path("system.json"), json.dumps(data))

    assert said in str(caught.value)
    assert name in str(caught.value)


def test_a_bandwidth_of_nothing_is_said() -> None:
    data = with_kernels()
    data["accelerator"]["bandwidth"]["default"]["gbps"] = 0

    with pytest.raises(SpecError, match=r"bandwidth\.default: a bandwidth of 0 is none"):
        read_simumax(Path("system.json"), json.dumps(data))
