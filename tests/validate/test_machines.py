"""The cluster behind the GPU and interconnect cells of a row, as measured files write them."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import gpu_names
from planner.units import GB
from planner.validate.machines import machine
from tests.properties.strategies import quick


class Expected(NamedTuple):
    """GB/s and GPU over the network; the fabric; GPUs of a domain; GB/s inside it."""

    net: float
    fabric: str
    domain: int
    inside: float


# every combination of cells in the public files of measured runs: GPU, GPUs a node, inside, between
SEEN: list[tuple[str, int, str, str, Expected]] = [
    ("A100", 8, "NVLink3 (150 GB/s in the simulator config)", "", Expected(25, "ib", 8, 300)),
    (
        "A100-SXM-80GB",
        8,
        "NVLink3 (150 GB/s in the simulator config)",
        "800 Gb/s per node (simulator config)",
        Expected(12.5, "ib", 8, 300),
    ),
    ("A100-PCIe-40GB", 2, "NVLink bridge", "", Expected(25, "ib", 2, 300)),
    ("A100-SXM-40GB", 8, "NVLink", "400Gb/s", Expected(6.25, "ib", 8, 300)),
    ("A100-SXM-40GB", 8, "NVLink3", "cloud Ethernet", Expected(1.5625, "ethernet", 8, 300)),
    ("A100-SXM-40GB", 8, "NVLink3 NVSwitch", "", Expected(25, "ib", 8, 300)),
    ("A100-SXM-80GB", 8, "", "", Expected(25, "ib", 8, 300)),
    ("A100-SXM-80GB", 8, "", "400 Gb/s", Expected(6.25, "ib", 8, 300)),
    ("A100-SXM-80GB", 8, "NVLink (8 GPUs a node)", "", Expected(25, "ib", 8, 300)),
    ("A100-SXM-80GB", 8, "NVLink3", "RoCE", Expected(25, "ib", 8, 300)),
    (
        "A100-SXM-80GB",
        8,
        "NVLink3 NVSwitch",
        "8x HDR200 InfiniBand per node",
        Expected(25, "ib", 8, 300),
    ),
    ("A100-SXM-80GB", 8, "NVLink3+NVSwitch", "8x200Gb/s RoCE", Expected(25, "ib", 8, 300)),
    ("A100-SXM-80GB", 8, "NVLink3+NVSwitch", "8xHDR IB 200Gb/s", Expected(25, "ib", 8, 300)),
    ("A10G-24GB", 8, "PCIe", "", Expected(1.5625, "ib", 8, 30)),
    ("A10G-24GB", 8, "PCIe", "cloud Ethernet", Expected(1.5625, "ethernet", 8, 30)),
    ("B200-SXM-180GB", 8, "NVLink5 NVSwitch", "", Expected(50, "ib", 8, 900)),
    ("B300-SXM-288GB", 8, "NVLink5 NVSwitch", "", Expected(100, "ib", 8, 900)),
    ("GB200-NVL72-186GB", 4, "NVLink5 NVL72", "", Expected(50, "ib", 72, 900)),
    ("GB300-NVL72-288GB", 4, "NVLink5 NVL72", "", Expected(100, "ib", 72, 900)),
    ("H100-SXM-80GB", 8, "", "800 Gb/s", Expected(12.5, "ib", 8, 450)),
    (
        "H100-SXM-80GB",
        8,
        "NVLink4 450GB/s per direction",
        "IB 400Gb/s per GPU",
        Expected(50, "ib", 8, 450),
    ),
    ("H100-SXM-80GB", 8, "NVLink4 NVSwitch", "", Expected(50, "ib", 8, 450)),
    ("H100-SXM-80GB", 8, "NVLink4 NVSwitch", "EFA", Expected(50, "efa", 8, 450)),
    (
        "H100-SXM-96GB-HBM2e-500W",
        8,
        "NVLink4 NVSwitch",
        "RDMA 400 Gb/s per GPU",
        Expected(50, "ib", 8, 450),
    ),
    ("H200-SXM-141GB", 8, "", "", Expected(50, "ib", 8, 450)),
    ("L4-24GB", 8, "PCIe", "", Expected(0.78125, "ib", 8, 30)),
    ("L4-24GB", 8, "PCIe (about 3-4.7 GB/s measured)", "", Expected(0.78125, "ib", 8, 7.5)),
    (
        "MI250X GCD 64GB",
        8,
        "Infinity Fabric (200GB/s within MI250X, 50-100GB/s between)",
        "Slingshot 4x200Gb/s",
        Expected(12.5, "slingshot", 8, 50),
    ),
    (
        "MI250X GCD 64GB",
        8,
        "Infinity Fabric",
        "Slingshot 4x200Gb/s",
        Expected(12.5, "slingshot", 8, 50),
    ),
    ("V100-SXM-16GB", 4, "", "", Expected(6.25, "ib", 4, 150)),
    ("V100-SXM-32GB", 16, "", "100Gb/s per node", Expected(0.78125, "ib", 16, 150)),
    ("V100-SXM-32GB", 16, "", "800Gb/s per node", Expected(6.25, "ib", 16, 150)),
    (
        "V100-SXM-32GB",
        16,
        "NVLink2+NVSwitch (DGX-2)",
        "8x100Gb/s IB",
        Expected(6.25, "ib", 16, 150),
    ),
    ("V100-SXM-32GB", 4, "NVLink2", "4x100Gb/s Omni-Path per node", Expected(12.5, "ib", 4, 150)),
    ("V100-SXM-32GB", 8, "NVLink", "100Gb/s", Expected(1.5625, "ib", 8, 150)),
]


def net_gb_per_s(found: ClusterSpec) -> float:
    """Network GB/s that one GPU owns."""
    assert found.scale_out is not None
    net = found.scale_out
    return net.nics_per_node * net.nic_bytes_per_s / found.gpus_per_node / GB


def between(text: str, gpu: str = "H100-SXM-80GB", node: int = 8) -> float:
    return net_gb_per_s(machine(gpu, node, "", text, 64))


@pytest.mark.parametrize(("gpu", "node", "inside", "inter", "expected"), SEEN)
def test_cells_as_they_were_written(
    gpu: str, node: int, inside: str, inter: str, expected: Expected
) -> None:
    found = machine(gpu, node, inside, inter, 64)
    assert found.scale_out is not None

    assert net_gb_per_s(found) == pytest.approx(expected.net)
    assert found.scale_out.fabric == expected.fabric
    assert found.domain_gpus == expected.domain
    assert found.scale_up.bytes_per_s == pytest.approx(expected.inside * GB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400 Gb/s per GPU", 50.0),
        ("400Gb/s per GPU", 50.0),
        ("8x400Gb/s", 50.0),
        ("8x 400 Gb/s", 50.0),
        ("4x200Gb/s", 12.5),
        ("8x NDR400 InfiniBand", 50.0),
        ("3200 Gb/s per node", 50.0),
        ("200Gb/s IB", 3.125),
        ("something else", 50.0),
    ],
)
def test_a_rate_is_per_node_unless_it_says_per_gpu(text: str, expected: float) -> None:
    assert between(text) == pytest.approx(expected)


@given(count=st.integers(1, 16), gbps=st.sampled_from([25, 50, 100, 200, 400, 800]))
@quick
def test_so_many_adapters_share_a_node(count: int, gbps: int) -> None:
    assert between(f"{count}x{gbps}Gb/s IB") == pytest.approx(count * gbps / 8 / 8)


@pytest.mark.parametrize("gpu", gpu_names())
def test_every_gpu_that_ships_has_a_usual_machine(gpu: str) -> None:
    found = machine(gpu, 8, "", "", 64)

    assert found.gpu.name == gpu
    assert (found.nodes, found.gpus) == (8, 64)
    assert 0.5 <= net_gb_per_s(found) <= 100
    assert found.scale_up.bytes_per_s >= 12 * GB


@pytest.mark.parametrize(
    ("gpus", "node", "nodes"),
    [(1, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8), (280, 8, 35), (2, 4, 1)],
)
def test_nodes_are_as_many_as_the_gpus_fill(gpus: int, node: int, nodes: int) -> None:
    assert machine("A100-SXM-80GB", node, "", "", gpus).nodes == nodes


def test_over_pcie_the_curves_of_nvlink_do_not_hold() -> None:
    nvlink = machine("A100-SXM-80GB", 8, "NVLink3", "", 8)
    pcie = machine("A100-SXM-80GB", 8, "PCIe", "", 8)

    assert nvlink.gpu.collectives
    assert not pcie.gpu.collectives
    assert (nvlink.scale_up.kind, pcie.scale_up.kind) == ("nvlink", "pcie")


def test_a_measured_rate_beats_the_usual_one() -> None:
    rates = [
        machine("L4-24GB", 8, text, "", 8).scale_up.bytes_per_s / GB
        for text in ("PCIe", "PCIe (about 3-4.7 GB/s measured)", "PCIe 7-9 GB/s measured")
    ]

    assert rates == pytest.approx([30, 7.5, 17.5])  # rings reach 0.4 of a line


@pytest.mark.parametrize(
    ("text", "fabric"),
    [
        ("EFA", "efa"),
        ("cloud Ethernet", "ethernet"),
        ("Slingshot 4x200Gb/s", "slingshot"),
        ("", "ib"),
    ],
)
def test_slower_fabrics_start_later_and_reach_less(text: str, fabric: str) -> None:
    found = machine("A100-SXM-80GB", 8, "", text, 64).scale_out
    usual = machine("A100-SXM-80GB", 8, "", "", 64).scale_out
    assert found is not None
    assert usual is not None

    assert found.fabric == fabric
    assert found.latency_s >= usual.latency_s
    assert found.efficiency <= usual.efficiency


def test_an_unknown_gpu_is_named() -> None:
    with pytest.raises(SpecError, match="GPU 'TPU v5' is not shipped"):
        machine("TPU v5", 8, "", "", 8)


def test_a_domain_larger_than_a_node_comes_with_the_rack() -> None:
    by_gpu = machine("GB200-NVL72-186GB", 4, "", "", 72)
    by_cell = machine("B200-SXM-180GB", 8, "NVLink5 NVL72", "", 72)

    assert by_gpu.domain_gpus == by_cell.domain_gpus == 72


def test_the_same_cells_are_the_same_machine() -> None:
    assert machine("H100", 8, "", "EFA", 64) is machine("H100", 8, "", "EFA", 64)


def test_ethernet_of_a_stated_rate_has_that_rate() -> None:
    assert between("8x400 Gb/s Ethernet") == pytest.approx(50)


@pytest.mark.parametrize(("text", "expected"), [("100 Gbps", 1.5625), ("1.6 Tb/s per node", 25)])
def test_other_spellings_of_a_rate(text: str, expected: float) -> None:
    assert between(text) == pytest.approx(expected)


def test_efa_of_an_a100_is_that_of_its_instance() -> None:
    assert between("EFA", "A100-SXM-40GB") == pytest.approx(6.25)


def test_a_pcie_card_without_a_stated_link_has_no_nvlink() -> None:
    assert machine("A100-PCIe-80GB", 8, "", "", 8).scale_up.kind == "pcie"
