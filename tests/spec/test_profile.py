import json
from pathlib import Path
from typing import Any

import pytest

from planner.cost.collectives import Group, collective_s
from planner.cost.compute import gemm_s
from planner.errors import SpecError
from planner.model.operations import Gemm
from planner.spec.cluster import ScaleOutSpec, load_cluster
from planner.spec.machine import apply_profile
from planner.spec.profile import Profile, load_profile

SIZES = [4**power for power in range(5, 15)]
HEAD = {
    "device": "NVIDIA H100 80GB HBM3",
    "world_size": 8,
    "backend": "nccl",
    "date": "2025-06-01",
    "torch_version": "2.8.0",
}


def link(
    kind: str = "all_reduce",
    ranks: int = 8,
    level: str = "domain",
    alpha: float = 2e-5,
    rate: float = 4e11,
    **changes: Any,
) -> dict[str, Any]:
    """A link whose seconds are ``alpha + message / rate``."""
    points = [[size, alpha + size / rate] for size in SIZES]
    return {"kind": kind, "ranks": ranks, "level": level, "points": points} | changes


def profile(**changes: Any) -> Profile:
    return Profile.model_validate(HEAD | changes)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    gemm = {"m": 4096, "n": 4096, "k": 4096, "seconds": "200 us"}
    path.write_text(json.dumps(HEAD | {"links": [link()], "gemms": [gemm]}))

    read = load_profile(path)
    path.write_text(read.model_dump_json())

    assert load_profile(path) == read
    assert read.version == 2
    assert read.gemms[0].seconds == pytest.approx(2e-4)
    assert read.origin == "measured on NVIDIA H100 80GB HBM3, 2025-06-01 (nccl, torch 2.8.0)"


def test_yaml_date_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    text = "\n".join(f"{name}: {value}" for name, value in HEAD.items())
    path.write_text(text)

    assert load_profile(path).date == "2025-06-01"


# changed fields, what the message must contain
BAD = [
    ({"version": 3}, "version: 3 is not 2; profile again with this planner"),
    ({"links": [link(kind="all_redcue")]}, "links.0.kind: 'all_redcue' is not accepted; write one"),
    ({"links": [link(ranks=1)]}, "links.0.ranks: 1 is not accepted; write a number of at least 2"),
    (
        {"links": [link(level="rack")]},
        "links.0.level: 'rack' is not accepted; write one of 'domain'",
    ),
    ({"links": [link(points=[[1024, -1.0]])]}, "links.0.points.0.1: -1.0 is not accepted; write a"),
    ({"links": [link(points=[["1 s", 1.0]])]}, "links.0.points.0.0: '1 s' is not a size; write a"),
    ({"links": [link(points=[])]}, "links.0.points: [] is not accepted; write at least 1"),
    (
        {"gemms": [{"m": 0, "n": 1, "k": 1, "seconds": 1}]},
        "gemms.0.m: 0 is not accepted; write a n",
    ),
    ({"gemms": [{"m": 1, "n": 1, "k": 1, "second": 1}]}, "did you mean 'seconds'?"),
    ({"word_size": 8}, "word_size: unknown field; did you mean 'world_size'?"),
]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_bad_profiles(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(HEAD | changes, indent=1))

    with pytest.raises(SpecError) as caught:
        load_profile(path)

    assert any(said in problem for problem in caught.value.problems), caught.value.problems
    assert all(str(path) in problem for problem in caught.value.problems)


def network(*links: dict[str, Any]) -> ScaleOutSpec:
    """The network of four DGX H100 after a profile that holds these links."""
    net = apply_profile(load_cluster("dgx-h100"), profile(links=links)).scale_out
    assert net is not None
    return net


def test_nothing_measured_changes_nothing() -> None:
    cluster = load_cluster("dgx-h100")

    assert apply_profile(cluster, profile()) == cluster


def test_measured_collective_beats_the_shipped_one() -> None:
    cluster = load_cluster("dgx-h100")

    applied = apply_profile(cluster, profile(links=[link()]))

    for size in SIZES:
        found = collective_s("all_reduce", size, Group(8, 8, 1), applied)
        assert found == pytest.approx(2e-5 + size / 4e11, rel=1e-3)


def test_other_groups_and_kinds_keep_their_curves() -> None:
    before = load_cluster("dgx-h100").gpu.collectives

    after = apply_profile(load_cluster("dgx-h100"), profile(links=[link(ranks=4)])).gpu.collectives

    assert [curve.ranks for curve in after["all_reduce"]] == [2, 4, 8]
    assert after["all_reduce"][0] == before["all_reduce"][0]
    assert after["all_reduce"][1] != before["all_reduce"][1]
    assert after["all_gather"] == before["all_gather"]


def test_sources_tell_what_was_measured() -> None:
    applied = apply_profile(load_cluster("dgx-h100"), profile(links=[link()]))

    source = applied.gpu.sources["collectives"]
    assert source.startswith("measured on NVIDIA H100 80GB HBM3, 2025-06-01")
    assert "all_reduce median error 0.0%" in source
    assert "other groups: t = alpha" in source
    assert applied.gpu.sources["gemm"] == load_cluster("dgx-h100").gpu.sources["gemm"]


def test_measured_products_beat_the_shipped_curve() -> None:
    cluster = load_cluster("dgx-h100")
    shapes = [(m, n, 4096) for m in (1024, 4096, 8192) for n in (2048, 4096, 8192)]
    gemms = [
        {"m": m, "n": n, "k": k, "seconds": 1.3 * gemm_s(Gemm("", m, n, k), cluster.gpu, "bf16")}
        for m, n, k in shapes
    ]

    gpu = apply_profile(cluster, profile(gemms=gemms)).gpu

    for measured in gemms:
        shape = Gemm("", measured["m"], measured["n"], measured["k"])
        assert gemm_s(shape, gpu, "bf16") == pytest.approx(measured["seconds"], rel=0.05)
    assert "bf16 median error" in gpu.sources["gemm"]
    assert gpu.gemm["fp8"] == cluster.gpu.gemm["fp8"]


def test_memory_as_the_driver_reports_it() -> None:
    applied = apply_profile(load_cluster("dgx-h100"), profile(memory_bytes="79 GiB"))

    assert applied.gpu.memory_bytes == 79 * 2**30
    assert "2025-06-01" in applied.gpu.sources["memory_bytes"]


def test_network_shares_of_line_rate() -> None:
    """Four nodes of 8 GPUs with 50 GB/s each: one rank per node owns one NIC."""
    net = network(
        link("all_gather", 4, "cluster", 3e-5, 40e9 / 0.75),
        link("send_recv", 2, "cluster", 1e-5, 35e9),
        link("all_to_all", 32, "cluster", 1e-4, 30e9, ranks_per_node=8),
    )

    assert net.efficiency == pytest.approx(40 / 50, rel=1e-3)
    assert net.p2p_efficiency == pytest.approx(35 / 50, rel=1e-3)
    # 24 of 32 parts of the buffer leave the node
    assert net.all_to_all_efficiency == pytest.approx(30 * 24 / 32 / 50, rel=1e-3)


def test_network_latency_is_that_of_a_tree() -> None:
    inside = link("all_reduce", 8, "domain", alpha=1.5e-5)
    across = link("all_reduce", 32, "cluster", 6.3e-5, 2e11, ranks_per_node=8)

    applied = apply_profile(load_cluster("dgx-h100"), profile(links=[inside, across]))

    assert network(inside, across).latency_s == pytest.approx((6.3e-5 - 1.5e-5) / 4, rel=1e-3)
    assert applied.sources["scale_out"].startswith("efficiency, latency_s measured on NVIDIA H100")


def test_two_nodes_tell_no_ring_efficiency() -> None:
    """A tree over two nodes runs at up to twice the rate of a ring: it must not be extrapolated."""
    across = link("all_reduce", 16, "cluster", 6e-5, 2.4e11, ranks_per_node=8)

    assert network(across).efficiency == network().efficiency


def test_faster_than_the_wire_is_the_wire() -> None:
    fast = link("send_recv", 2, "cluster", 1e-5, 90e9)

    assert network(fast).p2p_efficiency == 1


def test_one_node_ignores_network_points() -> None:
    applied = apply_profile(
        load_cluster("workstation"), profile(links=[link("send_recv", 2, "cluster")])
    )

    assert applied.scale_out is None
