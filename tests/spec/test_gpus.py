import pytest
from pydantic import ValidationError

from planner.errors import SpecError
from planner.spec.files import data_path, read_document
from planner.spec.gpu import GpuSpec, bus_factor, gpu_names, load_gpu

# every name that published runs use -> the GPU behind it
MEASURED_NAMES = [
    ("A100", "A100-SXM-80GB"),
    ("A100-SXM-80GB", "A100-SXM-80GB"),
    ("A100-SXM-40GB", "A100-SXM-40GB"),
    ("A100-PCIe-40GB", "A100-PCIe-40GB"),
    ("A10G-24GB", "A10G-24GB"),
    ("B200-SXM-180GB", "B200-SXM-180GB"),
    ("B300-SXM-288GB", "B300-SXM-288GB"),
    ("GB200-NVL72-186GB", "GB200-NVL72-186GB"),
    ("GB300-NVL72-288GB", "GB300-NVL72-288GB"),
    ("H100-SXM-80GB", "H100-SXM-80GB"),
    ("H100-SXM-96GB-HBM2e-500W", "H100-SXM-96GB-HBM2e-500W"),
    ("H200-SXM-141GB", "H200-SXM-141GB"),
    ("L4-24GB", "L4-24GB"),
    ("MI250X GCD 64GB", "MI250X-GCD-64GB"),
    ("V100-SXM-16GB", "V100-SXM-16GB"),
    ("V100-SXM-32GB", "V100-SXM-32GB"),
    ("h100", "H100-SXM-80GB"),
    ("RTX 4090", "RTX-4090-24GB"),
]

# name, GiB the driver reports, dense bf16 (or fp16) TFLOP/s, GB/s of memory, SMs or CUs
DATASHEET = [
    ("A100-SXM-80GB", 80.0, 312, 2039, 108),
    ("A100-SXM-40GB", 39.59, 312, 1555, 108),
    ("A800-SXM-80GB", 80.0, 312, 2039, 108),
    ("H100-SXM-80GB", 79.65, 989, 3350, 132),
    ("H800-SXM-80GB", 79.65, 989, 3350, 132),
    ("H200-SXM-141GB", 140.4, 989, 4800, 132),
    ("B200-SXM-180GB", 179.06, 2250, 7700, 148),
    ("GB200-NVL72-186GB", 185.03, 2500, 8000, 152),
    ("V100-SXM-32GB", 31.75, 125, 900, 80),
    ("L40S-48GB", 44.99, 362, 864, 142),
    ("MI300X-192GB", 191.98, 1307, 5300, 304),
    ("MI250X-GCD-64GB", 63.98, 191.5, 1638, 110),
]

# GPU, collective, ranks, message bytes, microseconds measured with nccl-tests
# (ai-dynamo/aiconfigurator systems/data/*/comm/nccl); the fit is within its stated error
NCCL = [
    ("A100-SXM-80GB", "all_gather", 8, 16777216, 135.0),
    ("A100-SXM-80GB", "all_gather", 8, 536870912, 2288.0),
    ("A100-SXM-80GB", "all_gather", 8, 4096, 14.65),
]
KINDS = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"}


@pytest.mark.parametrize(("name", "behind"), MEASURED_NAMES)
def test_names_of_measured_runs_resolve(name: str, behind: str) -> None:
    assert load_gpu(name).name == behind


@pytest.mark.parametrize(("name", "gib", "tflops", "gb_per_s", "sms"), DATASHEET)
def test_datasheet(name: str, gib: float, tflops: float, gb_per_s: float, sms: int) -> None:
    gpu = load_gpu(name)

    assert gpu.memory_bytes / 2**30 == pytest.approx(gib, abs=0.01)
    assert gpu.peak_flops["fp16"] == pytest.approx(tflops * 1e12)
    assert gpu.peak_flops.get("bf16", tflops * 1e12) == pytest.approx(tflops * 1e12)
    assert gpu.hbm_bytes_per_s == pytest.approx(gb_per_s * 1e9)
    assert gpu.sm_count == sms


@pytest.mark.parametrize("name", gpu_names())
def test_every_profile_is_complete(name: str) -> None:
    gpu = load_gpu(name)

    assert gpu.name == name
    assert set(gpu.collectives) == KINDS
    assert gpu.gemm.keys() <= gpu.peak_flops.keys()
    assert 128 in gpu.attention
    assert gpu.power_w > 0
    sourced = {
        "power_w",
        "memory_bytes",
        "peak_flops",
        "gemm",
        "attention",
        "collectives",
        "launch_s",
    }
    assert sourced <= gpu.sources.keys()


@pytest.mark.parametrize("name", gpu_names())
def test_curves_are_possible(name: str) -> None:
    """No kernel beats the datasheet, no curve of a smaller group starts later."""
    gpu = load_gpu(name)

    assert all(curve.efficiency <= 0.95 for curve in gpu.gemm.values())
    assert all(curve.efficiency <= 0.95 for curve in gpu.attention.values())
    for curves in gpu.collectives.values():
        ranks = [curve.ranks for curve in curves]
        assert ranks == sorted(set(ranks))
        assert all(1e-6 < curve.alpha_s < 1e-3 for curve in curves)


def test_fp16_equals_bf16_where_both_exist() -> None:
    for name in gpu_names():
        gpu = load_gpu(name)
        if "bf16" in gpu.gemm:
            assert gpu.gemm["fp16"] == gpu.gemm["bf16"]


def test_volta_has_no_bf16() -> None:
    assert "bf16" not in load_gpu("V100-SXM-32GB").peak_flops


def test_cut_links_are_slower() -> None:
    full, cut = load_gpu("H100").collectives, load_gpu("H800").collectives

    assert cut["all_reduce"][2].bytes_per_s < 0.5 * full["all_reduce"][2].bytes_per_s


@pytest.mark.parametrize(("name", "kind", "ranks", "size", "measured_us"), NCCL)
def test_fit_is_near_the_measurement(
    name: str, kind: str, ranks: int, size: int, measured_us: float
) -> None:
    curve = next(c for c in load_gpu(name).collectives[kind] if c.ranks == ranks)
    x = bus_factor(kind, ranks) * size

    seconds = curve.alpha_s + x / curve.bytes_per_s + curve.gamma_s_per_sqrt_byte * x**0.5

    assert seconds * 1e6 == pytest.approx(measured_us, rel=0.17)


def test_bus_factor() -> None:
    assert bus_factor("all_reduce", 8) == 1.75
    assert bus_factor("all_gather", 8) == bus_factor("all_to_all", 8) == 0.875
    assert bus_factor("send_recv", 2) == 1


def test_aliases_lead_somewhere_and_hide_nothing() -> None:
    aliases = read_document(data_path("profiles") / "gpu_aliases.yaml").data

    assert set(aliases.values()) <= set(gpu_names())
    assert not set(aliases) & set(gpu_names())


def test_a_gpu_is_read_once() -> None:
    assert load_gpu("H100") is load_gpu("H100")


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        load_gpu("H100-SXM-81GB")

    message = str(caught.value)
    assert "GPU 'H100-SXM-81GB' is not shipped; did you mean 'H100-SXM-80GB'?" in message
    assert "MI300X-192GB" in message


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_gpu("H100").sm_count = 1  # type: ignore[misc]


def test_round_trip() -> None:
    gpu = load_gpu("B200")

    assert GpuSpec.model_validate_json(gpu.model_dump_json()) == gpu
