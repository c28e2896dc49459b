"""The machine that a profile alone describes, and what it prices with measured kernels."""

from typing import Any

import pytest

from planner.cost.collectives import Group, collective_s
from planner.cost.compute import attention_s, elementwise_s, gemm_s
from planner.cost.layer import Prices
from planner.errors import SpecError
from planner.layout.layout import Layout
from planner.model.backward import backward
from planner.model.operations import Attention, Elementwise, Gemm
from planner.spec.calibration import calibrated_cluster
from planner.spec.cluster import load_cluster
from planner.spec.fit import fit_kernel
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.machine import apply_profile, cluster_of
from planner.spec.measured import OverlapMeasurement
from planner.spec.merge import merged
from planner.spec.profile import Profile

SIZES = [4**power for power in range(5, 12)]
GEMM = {"m": 256, "n": 512, "k": 128, "seconds": 1e-3, "pass_name": "forward"}
CORE = {"heads": 8, "kv_heads": 8, "seq_q": 256, "seq_kv": 256, "head_dim": 32, "seconds": 2e-3}
LAUNCH = {"tokens": 128, "op_s": 5e-6, "layer_s": 0.02, "layer_issue_s": 0.02,
          "layer_kernels": 50, "layer_priced_s": 0.015, "in_order": True}  # fmt: skip
OVERLAP = {"compute": "products", "collective": "all_reduce", "ranks": 2, "message_bytes": 2**20,
           "compute_s": 1.0, "collective_s": 0.5, "together_s": 1.4}  # fmt: skip


def link(kind: str = "all_reduce", level: str = "domain", **changes: Any) -> dict[str, Any]:
    points = [[size, 1e-4 + size / 1e9] for size in SIZES]
    return {"kind": kind, "ranks": 2, "level": level, "points": points} | changes


def profile(**changes: Any) -> Profile:
    head = {
        "device": "CPU test, 2 cores", "world_size": 2, "ranks_per_node": 2, "backend": "gloo",
        "memory_bytes": "8 GiB", "gemms": [GEMM], "attention": [CORE], "links": [link()],
        "host": {"copy_bytes_per_s": "4 GB/s"},
        "kernels": [{"name": "norm", "moved_bytes": size, "seconds": 1e-5 + size / 2e9}
                    for size in (1e5, 1e6)],
    }  # fmt: skip
    return Profile.model_validate(head | changes)


def test_a_cpu_is_described_by_what_was_measured() -> None:
    cluster = cluster_of(profile())

    assert (cluster.nodes, cluster.gpus_per_node, cluster.domain_gpus) == (1, 2, 2)
    assert cluster.gpu.peak_flops == {"bf16": pytest.approx(2 * 256 * 512 * 128 / 1e-3)}
    assert cluster.gpu.hbm_bytes_per_s == 4e9
    assert cluster.gpu.memory_bytes == 8 * 2**30
    assert cluster.scale_out is None


def test_measured_shapes_cost_what_was_measured() -> None:
    gpu = cluster_of(profile()).gpu

    assert gemm_s(Gemm("qkv", 256, 512, 128), gpu, "bf16") == 1e-3
    assert attention_s(Attention("attention", 2, 4, 256, 256, 32), gpu) == 2e-3
    assert elementwise_s(Elementwise("norm", 5e5), gpu) == pytest.approx(1e-5 + 5e5 / 2e9)


def test_other_shapes_and_passes_come_from_the_curve() -> None:
    gpu = cluster_of(profile()).gpu
    dgrad, _ = backward(Gemm("qkv", 256, 128, 512), SoftwareSpec())
    assert isinstance(dgrad, Gemm)

    assert (dgrad.m, dgrad.n, dgrad.k) == (256, 512, 128)
    near = gemm_s(Gemm("other", 256, 512, 128.0001), gpu, "bf16")
    assert gemm_s(dgrad, gpu, "bf16") == pytest.approx(near, rel=1e-4)
    assert gemm_s(Gemm("qkv", 512, 512, 128), gpu, "bf16") > 1e-3


def test_backward_kernels_have_a_line_of_their_own() -> None:
    slow = {"name": "norm", "backward": True, "moved_bytes": 1e6, "seconds": 1.0}
    gpu = cluster_of(profile(kernels=[slow])).gpu
    (reverse,) = backward(Elementwise("norm", 5e5), SoftwareSpec())
    assert isinstance(reverse, Elementwise)

    assert elementwise_s(reverse, gpu) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(10, 3.0), (20, 5.0)], (1.0, 5.0)),  # a line
        ([(20, 5.0)], (0.0, 4.0)),  # one size: a rate
        ([(10, 5.0), (20, 5.0)], (0.0, 4.0)),  # no slope: the rate of the largest
        ([(10, 1.0), (20, 5.0)], (0.0, 4.0)),  # would start below zero
    ],
)
def test_lines_through_kernels(
    points: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    curve = fit_kernel(points)

    assert (curve.overhead_s, curve.bytes_per_s) == pytest.approx(expected)


def test_host_time_is_added_where_nothing_queues() -> None:
    model, job = load_model("tiny-llama"), JobSpec(global_batch=2, seq_len=64)
    bare = Prices(model, cluster_of(profile()), job).layer(Layout(), False).forward
    slow = Prices(model, cluster_of(profile(launch=[LAUNCH])), job).layer(Layout(), False).forward

    # 5 ms that the kernels of the layer do not explain, over 50 of them
    gpu = cluster_of(profile(launch=[LAUNCH])).gpu
    assert gpu.host_op_s == pytest.approx(1e-4)
    assert slow.host == pytest.approx(1e-4 * round(slow.host / 1e-4))
    assert slow.host > bare.host


def test_a_split_layer_has_a_host_time_of_its_own() -> None:
    split = LAUNCH | {"tp": 2, "layer_s": LAUNCH["layer_s"] + 50 * 3e-4}
    cluster = cluster_of(profile(launch=[LAUNCH, split]))
    prices = Prices(load_model("tiny-llama"), cluster, JobSpec(global_batch=2, seq_len=64))
    whole, parted = (prices.layer(Layout(tp=tp), False).forward.host for tp in (1, 2))

    assert cluster.gpu.host_op_s == pytest.approx(1e-4)
    assert cluster.gpu.host_split_op_s == pytest.approx(4e-4)
    assert parted > 3.9 * whole  # its collectives are issued too
    assert calibrated_cluster(cluster, {"host_time": 3.0}).gpu.host_split_op_s == pytest.approx(
        1.2e-3
    )


def test_ranks_of_a_crowded_cpu_share_cores() -> None:
    assert cluster_of(profile(ranks_per_core=2.0)).gpu.ranks_per_core == 2.0
    assert cluster_of(profile()).gpu.ranks_per_core == 1.0


def test_profiles_with_and_without_shared_cores_do_not_merge() -> None:
    with pytest.raises(SpecError, match=r"ranks_per_core: 1.0, 2.0 differ"):
        merged([profile(), profile(ranks_per_core=2.0)])


@pytest.mark.parametrize(("together", "lost"), [(1.0, 0.0), (1.4, 0.8), (1.5, 1.0), (9.0, 1.0)])
def test_interference_by_hand(together: float, lost: float) -> None:
    one = OverlapMeasurement.model_validate(OVERLAP | {"together_s": together})

    assert one.interference == pytest.approx(lost)
    gpu = cluster_of(profile(overlaps=[OVERLAP | {"together_s": together}])).gpu
    assert gpu.interference == pytest.approx(lost)


def test_calibration_reaches_what_was_measured() -> None:
    cluster = cluster_of(profile(launch=[LAUNCH]))
    factors = {"compute_speed": 2.0, "memory_speed": 2.0, "host_time": 3.0}

    gpu = calibrated_cluster(cluster, factors).gpu

    assert gemm_s(Gemm("qkv", 256, 512, 128), gpu, "bf16") == pytest.approx(5e-4)
    assert gpu.kernels["norm"].bytes_per_s == pytest.approx(4e9)
    assert gpu.host_op_s == pytest.approx(3e-4)


def test_two_nodes_have_a_network() -> None:
    links = [link(), link("send_recv", "cluster")]
    cluster = cluster_of(profile(links=links, world_size=4))

    assert cluster.nodes == 2
    assert cluster.scale_out is not None
    assert collective_s("all_reduce", 2**20, Group(2, 1, 2), cluster) > 0
    assert cluster_of(profile(links=links), nodes=8).nodes == 8


def test_measured_pairs_of_nodes_reach_the_placement() -> None:
    rates = [[0, 1e9, 1e8], [1e9, 0, 1e8], [1e8, 1e8, 0]]
    matrix = {"hosts": ["a", "b", "c"], "bytes_per_s": rates}
    links = [link(), link("send_recv", "cluster")]
    measured = profile(links=links, world_size=6, hosts=["a", "b", "c"], node_links=matrix)

    cluster = cluster_of(measured)

    assert cluster.node_links == measured.node_links
    assert cluster.node_links is not None
    assert cluster_of(measured, nodes=8).node_links is None
    assert cluster_of(measured, nodes=1).node_links is None


def test_nodes_that_were_not_measured_are_refused() -> None:
    with pytest.raises(SpecError, match="--nodes: 2 nodes, but the profile measured one"):
        cluster_of(profile(), nodes=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gemms": []}, "no kernels to price a step with"),
        ({"device": "Tensor Brick 9"}, "'Tensor Brick 9', which does not ship"),
    ],
)
def test_profiles_that_describe_no_machine(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        cluster_of(profile(**changes))


def test_a_shipped_gpu_keeps_its_datasheet() -> None:
    cluster = cluster_of(profile(device="H100", backend="nccl"))

    assert cluster.gpu.name == "H100-SXM-80GB"
    assert cluster.gpu.measured_s


def test_pinned_copies_of_all_gpus_at_once_are_what_counts() -> None:
    host = {"h2d_bytes_per_s": "50 GB/s", "all_h2d_bytes_per_s": "20 GB/s",
            "all_d2h_bytes_per_s": "15 GB/s"}  # fmt: skip
    applied = apply_profile(load_cluster("dgx-h100"), profile(host=host, gemms=[], attention=[]))

    assert applied.host is not None
    assert applied.host.gpu_link_bytes_per_s == 15e9


def test_a_rate_of_copies_at_once_is_not_divided_again() -> None:
    host = {"all_h2d_bytes_per_s": "3 GB/s"}
    applied = apply_profile(load_cluster("dgx-2"), profile(host=host, gemms=[], attention=[]))

    assert applied.host is not None
    assert applied.host.shared_link_bytes_per_s(16) == 3e9


@pytest.mark.parametrize(("direct", "write"), [(True, 2e9), (False, None)])
def test_drives_count_as_measured_past_the_page_cache(direct: bool, write: float | None) -> None:
    host = {"ssd_read_bytes_per_s": "4 GB/s", "ssd_write_bytes_per_s": "2 GB/s",
            "ssd_direct": direct}  # fmt: skip
    shipped = load_cluster("dgx-h100")
    applied = apply_profile(shipped, profile(host=host, gemms=[], attention=[]))

    assert shipped.ssd is not None
    assert applied.ssd is not None
    assert applied.ssd.write_bytes_per_s == (write or shipped.ssd.write_bytes_per_s)
    assert applied.ssd.endurance_bytes == shipped.ssd.endurance_bytes


def test_merged_profiles_hold_all_and_the_last_of_what_is_in_both() -> None:
    other = GEMM | {"n": 1024}
    found = merged([
        profile(date="2025-01-01"),
        profile(date="2025-02-01", world_size=4, gemms=[GEMM | {"seconds": 7.0}, other]),
    ])  # fmt: skip

    assert [(gemm.n, gemm.seconds) for gemm in found.gemms] == [(512, 7.0), (1024, 1e-3)]
    assert len(found.links) == 1
    assert found.world_size == 4
    assert found.date == "2025-02-01"


def test_profiles_of_different_machines_do_not_merge() -> None:
    with pytest.raises(SpecError) as raised:
        merged([profile(), profile(device="H100", backend="nccl")])

    assert len(raised.value.problems) == 2


def test_slow_links_of_measured_groups_are_not_the_networks() -> None:
    """Nodes 0 and 2, 1 and 3 are near: neighbours, as they were measured, are ten times slower."""
    near, far = 1e9, 1e8
    rates = [[near if (i - j) % 2 == 0 else far for j in range(4)] for i in range(4)]
    waits = [[1e-4 if (i - j) % 2 == 0 else 5e-4 for j in range(4)] for i in range(4)]
    matrix = {"hosts": list("abcd"), "bytes_per_s": rates, "latency_s": waits}
    points = [[size, 1e-3 + size / far] for size in SIZES]
    pairs = [{"ranks": [a, b], "level": "cluster", "latency_s": waits[a][b],
              "latency_median_s": waits[a][b], "bytes_per_s": rates[a][b],
              "bytes_per_s_median": rates[a][b]}
             for a in range(4) for b in range(4) if a != b]  # fmt: skip
    measured = {
        "world_size": 4, "ranks_per_node": 1, "hosts": list("abcd"), "node_links": matrix,
        "links": [link("send_recv", "cluster", points=points)], "pairs": pairs,
    }  # fmt: skip
    cluster = cluster_of(profile(**measured))
    slow, fast = (Group.place(ranks, stride, cluster) for ranks, stride in ((4, 1), (2, 2)))
    size = 2**26

    # sends between neighbours took ten times longer than between near nodes; so do their rings
    assert collective_s("all_gather", size, slow, cluster) == pytest.approx(
        0.75 * size / far, rel=0.05
    )
    assert collective_s("all_gather", size, fast, cluster) == pytest.approx(
        0.5 * size / near, rel=0.05
    )
