"""SimuMax system files: products and link laws, and what is wrong in one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from planner.cost.compute import gemm_s
from planner.errors import SpecError
from planner.formats.simumax import SIZES, is_simumax, read_simumax
from planner.model.operations import Gemm
from planner.spec.cluster import load_cluster
from planner.spec.machine import apply_profile
from planner.spec.profile import Profile
from planner.units import GIB
from tests.formats.measured import simumax

FILE = Path("system.json")


def read(data: dict[str, Any]) -> Any:
    return read_simumax(FILE, json.dumps(data, indent=1))


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return the file with one value replaced; a None takes it away."""
    data = copy.deepcopy(simumax())
    *parents, last = place.split("/")
    at = data
    for name in parents:
        at = at[name]
    at.pop(last) if value is None else at.__setitem__(last, value)
    return data


LINK, MATMUL = "networks/high_intra_node", "accelerator/op/matmul"
SHARES = f"{MATMUL}/accurate_efficient_factor"


def test_products_are_seconds_at_their_share_of_the_peak() -> None:
    reading = read(simumax())

    found = {(p.m, p.n, p.k): p.seconds for p in reading.gemms}
    flops = 2 * 4096 * 8192 * 1024
    assert found == {
        (4096, 1024, 8192): pytest.approx(flops / 500e12),
        (4096, 8192, 1024): pytest.approx(flops / 400e12),
        (8192, 1024, 4096): pytest.approx(flops / 250e12),  # as our weight gradients
    }
    assert {p.dtype for p in reading.gemms} == {"bf16"}
    assert reading.device == "our_gpu_bf16"
    assert reading.source == "SimuMax system file system.json"
    assert is_simumax(json.dumps(simumax()))


def test_eight_bit_products_are_their_own() -> None:
    data = simumax()
    data["accelerator"]["op"]["fp8_matmul"] = {
        "tflops": 2000.0,
        "accurate_efficient_factor": {"b=1, m=128, k=256, n=512": 0.5},
    }

    (product,) = [p for p in read(data).gemms if p.dtype == "fp8"]

    assert product.seconds == pytest.approx(2 * 128 * 256 * 512 / 1000e12)


def test_a_collective_follows_its_law() -> None:
    """400 GiB/s at a half: 2 (n-1)/n of the bytes, 3 us for each of 2 (n-1) steps, 10 us more."""
    links = {(link.kind, link.ranks): dict(link.points) for link in read(simumax()).links}

    assert set(links) == {("all_reduce", 2), ("all_reduce", 4), ("all_reduce", 8), ("send_recv", 2)}
    for ranks in (2, 4, 8):
        for size in SIZES:
            steps = 2 * (ranks - 1)
            expected = size * steps / ranks / (200 * GIB) + (3 * steps + 10) * 1e-6
            assert links["all_reduce", ranks][size] == pytest.approx(expected)
    for size in SIZES:
        expected = size / (320 * GIB) + 20e-6
        assert links["send_recv", 2][size] == pytest.approx(expected)


def test_start_by_ranks_and_pcie_tiers() -> None:
    data = simumax()
    tier = data["networks"].pop("high_intra_node")
    tier["op"]["all_reduce"]["fixed_latency_us_by_comm_num"] = {"4": 50.0}
    data["networks"]["intra_node_pcie_4x"] = tier

    links = {(link.kind, link.ranks): dict(link.points) for link in read(data).links}

    assert set(links) == {("all_reduce", 4), ("send_recv", 2)}
    size = SIZES[0]
    assert links["all_reduce", 4][size] == pytest.approx(size * 1.5 / (200 * GIB) + 68e-6)


def test_a_cluster_takes_the_measured_products_over() -> None:
    shapes = [(4096, size, size) for size in (2048, 4096, 8192)]
    shares = {f"b=1, m={m}, k={k}, n={n}": 0.5 for m, n, k in shapes}
    reading = read(changed(SHARES, shares))
    profile = Profile(device=reading.device, world_size=8, backend="nccl", source=reading.source,
                      gemms=reading.gemms, links=reading.links)  # fmt: skip
    cluster = load_cluster("dgx-h100")

    gpu = apply_profile(cluster, profile).gpu

    for product in reading.gemms:
        gemm = Gemm("x", product.m, product.n, product.k)
        assert gemm_s(gemm, gpu, "bf16") == pytest.approx(product.seconds, rel=0.05)
    assert "SimuMax system file system.json" in gpu.sources["gemm"]
    assert {curve.ranks for curve in gpu.collectives["all_reduce"]} >= {2, 4, 8}


BAD: list[tuple[str, Any, str]] = [
    ("sys_name", None, "sys_name: missing; give a system file of SimuMax"),
    ("networks", [], "networks: missing"),
    (SHARES, {"b=1, m=4, n=4": 0.5}, "names no sizes; write 'm="),
    (SHARES, {"b=1, m=4, n=4, k=0": 0.5}, "names no sizes"),
    (SHARES, {"b=1, m=4, n=4, k=4": "fast"}, "'fast' is not a number from 0 up"),
    (SHARES, {"b=1, m=4, n=4, k=4": 0}, "a speed of 0 is none"),
    (f"{MATMUL}/tflops", -1, "accelerator.op.matmul.tflops: -1 is not a number"),
    (f"{LINK}/bandwidth/gbps", 0, "networks.high_intra_node.op.all_reduce: a bandwidth of 0"),
    (f"{LINK}/op/all_reduce/latency_us", "3", "all_reduce.latency_us: '3' is not a number"),
    (f"{LINK}/op/all_reduce/efficient_factor", True, "efficient_factor: True is not a number"),
]


@pytest.mark.parametrize(("place", "value", "said"), BAD)
def test_what_is_wrong_is_said_with_its_place(place: str, value: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(changed(place, value))

    assert said in str(caught.value)
    assert all(problem.startswith("system.json") for problem in caught.value.problems[:10])


def test_a_file_that_measured_nothing_is_refused() -> None:
    empty = changed(SHARES, {})
    del empty["networks"]["high_intra_node"]

    with pytest.raises(SpecError, match="holds no shapes"):
        read(empty)


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[]", "sys_name: missing")])
def test_a_file_that_is_none(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        read_simumax(FILE, text)
