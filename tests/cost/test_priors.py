"""Collectives that nobody measured: what the fabric and its line rate lead to expect."""

import pytest

from planner.cost.collectives import Group, collective_s
from planner.cost.priors import PAIR_SHARE, RING_SHARE, Reference, prior_curve, shipped_references
from planner.spec.cluster import ClusterSpec, ScaleOutSpec, ScaleUpSpec
from planner.spec.gpu import CollectiveCurve, bus_factor, load_gpu

KINDS = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]


def machine(kind: str, gb_per_s: float, **changes: object) -> ClusterSpec:
    """Return eight GPUs without curves on one fabric."""
    fields = {
        "name": "new",
        "gpu": load_gpu("H100").model_copy(update={"collectives": {}}),
        "gpus_per_node": 8,
        "domain_gpus": 8,
        "scale_up": ScaleUpSpec.model_validate({"kind": kind, "bytes_per_s": gb_per_s * 1e9}),
    }
    return ClusterSpec.model_validate(fields | changes)


@pytest.mark.parametrize("reference", shipped_references(), ids=lambda one: one.name)
@pytest.mark.parametrize("kind", KINDS)
def test_the_line_rate_of_a_measured_gpu_finds_its_generation(
    reference: Reference, kind: str
) -> None:
    """The nearest reference of that rate gives its own curve, not a scaled one."""
    cluster = machine("nvlink", reference.bytes_per_s / 1e9)
    same = [one for one in shipped_references() if one.bytes_per_s == reference.bytes_per_s]
    curves = [curve for one in same for curve in one.collectives[kind]]

    assert prior_curve(kind, 8, cluster) in curves


@pytest.mark.parametrize("kind", KINDS)
def test_a_faster_link_moves_bytes_faster_and_starts_alike(kind: str) -> None:
    slow, fast = (prior_curve(kind, 8, machine("nvlink", rate)) for rate in (450, 480))

    assert fast.bytes_per_s == pytest.approx(slow.bytes_per_s * 480 / 450)
    assert fast.alpha_s == slow.alpha_s
    assert fast.gamma_s_per_sqrt_byte < slow.gamma_s_per_sqrt_byte


def test_links_before_nvls_learn_from_rings_of_newer_ones() -> None:
    """A100 without its own curves: 230 GB/s measured, not the 326 of a switch that reduces."""
    newer = [one for one in shipped_references() if one.bytes_per_s == 450e9]

    rate = prior_curve("all_reduce", 8, machine("nvlink", 300), newer).bytes_per_s

    assert rate == pytest.approx(230e9, rel=0.1)


# GB/s of bus bandwidth: fabric, line rate, GPUs of a node, collective, ranks, measured (nccl-tests)
RATES = [
    ("xgmi", 448, "all_reduce", 2, 47.7),
    ("xgmi", 448, "all_reduce", 4, 143.1),
    ("xgmi", 448, "all_reduce", 8, 317.3),  # MI300X
    ("xgmi", 448, "all_reduce", 8, 319.1),  # MI325X
    ("xgmi", 538, "all_reduce", 8, 406.8),  # MI355X
    ("pcie", 31, "all_gather", 2, 20.7),  # L40S
    ("pcie", 63, "all_reduce", 2, 38.8),  # RTX PRO 6000
    ("pcie", 63, "all_reduce", 4, 26.6),
    ("pcie", 63, "all_reduce", 8, 25.8),
    ("pcie", 63, "reduce_scatter", 8, 25.7),
]


@pytest.mark.parametrize(("fabric", "line", "kind", "ranks", "measured"), RATES)
def test_rates_of_meshes_and_host_bridges(
    fabric: str, line: float, kind: str, ranks: int, measured: float
) -> None:
    curve = prior_curve(kind, ranks, machine(fabric, line))

    assert curve.bytes_per_s / 1e9 == pytest.approx(measured, rel=0.12)


def test_pairs_on_pcie_are_faster_than_rings() -> None:
    assert PAIR_SHARE > RING_SHARE
    cluster = machine("pcie", 31)
    pair, four = (prior_curve("all_gather", ranks, cluster) for ranks in (2, 4))

    assert pair.bytes_per_s > four.bytes_per_s
    assert pair.alpha_s < four.alpha_s


@pytest.mark.parametrize(("kind", "factor"), [("nvlink", 1.7), ("xgmi", 0.95)])
def test_two_nodes_of_rccl_stay_with_the_ring(kind: str, factor: float) -> None:
    """NCCL's tree of two nodes crosses the network once; RCCL reaches no more than the NICs."""
    net = ScaleOutSpec(fabric="roce", nics_per_node=8, nic_bytes_per_s=50e9)
    cluster = machine(kind, 900, nodes=2, scale_out=net)
    size = 16 * 2**30

    seconds = collective_s("all_reduce", size, Group(16, 8, 2), cluster)

    rate = bus_factor("all_reduce", 16) * size / seconds
    assert rate == pytest.approx(factor * 400e9, rel=0.05)


def test_a_measured_curve_beats_the_prior() -> None:
    own = CollectiveCurve(ranks=8, alpha_s=1e-3, bytes_per_s=1e9)
    gpu = load_gpu("H100").model_copy(update={"collectives": {"all_reduce": (own,)}})
    cluster = machine("nvlink", 450, gpu=gpu)

    assert collective_s("all_reduce", 8, Group(8, 8, 1), cluster) == own.seconds(14)
