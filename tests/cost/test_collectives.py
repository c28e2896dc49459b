"""Laws of collectives, and points that nccl-tests measured."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.cost.collectives import Group, Rows, collective_s, send_recv_s
from planner.spec.cluster import ClusterSpec, ScaleOutSpec, ScaleUpSpec
from planner.spec.gpu import GpuSpec, bus_factor
from tests.properties.strategies import cluster, quick

KINDS = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
NVLINK = ["dgx-a100", "dgx-h100", "dgx-b200", "hgx-h200", "aws-p5", "gcp-a3-mega"]
kinds = st.sampled_from(KINDS)
machines = st.sampled_from(NVLINK).map(lambda name: cluster(name, 64))
message = st.integers(1, 1 << 33)
ranks = st.sampled_from([2, 4, 8, 16, 64, 256])
strides = st.sampled_from([1, 2, 4, 8, 16])

# ranks, stride, domain: ranks inside, domains
PLACES = [
    (8, 1, 8, 8, 1),
    (16, 1, 8, 8, 2),
    (4, 2, 8, 4, 1),
    (8, 2, 8, 4, 2),
    (4, 8, 8, 1, 4),
    (4, 64, 8, 1, 4),
    (2, 4, 8, 2, 1),
    (1, 1, 8, 1, 1),
    (1, 32, 8, 1, 1),
    (64, 1, 72, 64, 1),
    (72, 1, 72, 72, 1),
    (144, 1, 72, 72, 2),
    (8, 4, 8, 2, 4),
    (2, 8, 8, 1, 2),
    (8, 1, 1, 1, 8),
]


@pytest.mark.parametrize(("n", "stride", "domain", "inside", "domains"), PLACES)
def test_place(n: int, stride: int, domain: int, inside: int, domains: int) -> None:
    machine = cluster("dgx-h100", 64).model_copy(update={"domain_gpus": domain})

    assert Group.place(n, stride, machine) == Group(n, inside, domains)


@quick
@given(ranks, strides, st.sampled_from([1, 2, 4, 8, 16]))
def test_place_counts_the_domains_that_ranks_touch(n: int, stride: int, domain: int) -> None:
    """Counted rank by rank, where the group starts at a domain and strides divide it."""
    machine = cluster("dgx-h100", 64).model_copy(update={"domain_gpus": domain})
    touched = [rank * stride // domain for rank in range(n)]

    group = Group.place(n, stride, machine)

    assert group.domains == len(set(touched))
    assert group.inside == max(touched.count(it) for it in touched)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_has_nobody_to_talk_to(kind: str) -> None:
    assert collective_s(kind, 1e9, Group(1, 1, 1), cluster("dgx-h100")) == 0


@quick
@given(kinds, message, message, ranks, strides, machines)
def test_more_bytes_never_take_less(
    kind: str, one: int, other: int, n: int, stride: int, machine: ClusterSpec
) -> None:
    group = Group.place(n, stride, machine)
    few, many = sorted([one, other])

    assert 0 < collective_s(kind, few, group, machine) <= collective_s(kind, many, group, machine)


@quick
@given(st.integers(1 << 30, 1 << 33), ranks, strides, machines)
def test_all_reduce_is_about_reduce_scatter_and_all_gather(
    size: int, n: int, stride: int, machine: ClusterSpec
) -> None:
    """NVLS and two-node trees make it less than half as long; never much longer.

    Not where a step of a ring is slow (EFA, 48 us): only rings scatter and gather.
    """
    net = machine.scale_out
    assume(net is None or net.ring_step_s <= 10e-6)
    group = Group.place(n, stride, machine)
    two = sum(collective_s(kind, size, group, machine) for kind in ("reduce_scatter", "all_gather"))

    assert 0.4 < collective_s("all_reduce", size, group, machine) / two < 1.7


@quick
@given(kinds, st.integers(1 << 20, 1 << 33), st.sampled_from([2, 4, 8]), machines)
def test_crossing_a_node_is_never_cheaper(
    kind: str, size: int, n: int, machine: ClusterSpec
) -> None:
    staying = collective_s(kind, size, Group(n, n, 1), machine)
    halves = [Group(n, n // 2, 2), Group(n, 1, n)] if n > 2 else [Group(2, 1, 2)]

    assert all(collective_s(kind, size, group, machine) > staying for group in halves)


@quick
@given(kinds, message, ranks, strides, machines, st.floats(1.0, 8.0))
def test_a_faster_network_is_never_slower(
    kind: str, size: int, n: int, stride: int, machine: ClusterSpec, factor: float
) -> None:
    net = machine.scale_out
    assert net is not None
    faster = net.model_copy(update={"nic_bytes_per_s": factor * net.nic_bytes_per_s})
    group = Group.place(n, stride, machine)

    better = collective_s(kind, size, group, machine.model_copy(update={"scale_out": faster}))

    assert better <= collective_s(kind, size, group, machine)


@quick
@given(kinds, st.integers(1 << 16, 1 << 33), ranks, strides, machines)
def test_no_group_beats_its_wires(
    kind: str, size: int, n: int, stride: int, machine: ClusterSpec
) -> None:
    group = Group.place(n, stride, machine)
    assume(group.domains > 1)
    net = machine.scale_out
    assert net is not None
    node_rate = net.nics_per_node * net.nic_bytes_per_s
    rate = node_rate * group.inside / machine.gpus_per_node
    crossing = size * (n - group.inside) / n  # what a group must at least bring into a domain

    assert collective_s(kind, size, group, machine) >= 0.99 * crossing / max(rate, node_rate)


@quick
@given(kinds, st.integers(1, 1 << 26), machines, strides)
def test_more_ranks_never_take_less_across_nodes(
    kind: str, size: int, machine: ClusterSpec, stride: int
) -> None:
    """Of equal size inside a node and from three nodes on (two nodes run a tree)."""
    groups = [Group.place(n, stride, machine) for n in (64, 128, 256, 512)]
    times = [collective_s(kind, size, group, machine) for group in groups]

    assert times == sorted(times)


def busbw(kind: str, nodes: int, machine: str, size: float = 16 * 2**30) -> float:
    group = Group.place(8 * nodes, 1, cluster(machine, nodes))
    seconds = collective_s(kind, size, group, cluster(machine, nodes))
    return bus_factor(kind, 8 * nodes) * size / seconds / 1e9


# nccl-tests, GB/s of bus bandwidth at the largest message: cluster, collective, nodes, measured
LARGE = [
    ("dgx-h100", "all_reduce", 1, 480),
    ("dgx-h100", "all_reduce", 2, 467),
    ("dgx-h100", "all_reduce", 4, 366),
    ("dgx-h100", "all_reduce", 8, 320.7),
    ("dgx-h100", "all_reduce", 124, 367),
    ("hgx-h200", "all_gather", 2, 328.8),
    ("gcp-a3-mega", "all_reduce", 2, 338.8),
    ("gcp-a3-mega", "all_gather", 2, 188.7),
    ("dgx-b200", "all_reduce", 2, 696),
    ("dgx-b200", "all_reduce", 4, 381.8),
    ("dgx-a100", "all_reduce", 1, 230),
    ("dgx-a100", "all_reduce", 2, 189.6),
    ("aws-p5", "all_reduce", 2, 487.1),
    ("mi300x", "all_reduce", 2, 358),
]


@pytest.mark.parametrize(("machine", "kind", "nodes", "measured"), LARGE)
def test_large_messages(machine: str, kind: str, nodes: int, measured: float) -> None:
    assert busbw(kind, nodes, machine) == pytest.approx(measured, rel=0.25)


def test_two_nodes_overstate_what_many_reach() -> None:
    assert busbw("all_reduce", 2, "dgx-h100") > 1.2 * busbw("all_reduce", 4, "dgx-h100")


# base and hop of the latency law over 2, 4, 8 ranks; all-to-all of 2, 4, 8 ranks, microseconds
SMALL = [
    ("dgx-a100", 8.13, 0.967, (10.8, 12.4, 15.6)),
    ("dgx-h100", 4.71, 0.797, (6.6, 7.1, 7.5)),
    ("hgx-h200", 4.72, 0.854, (6.7, 6.8, 8.7)),
    ("dgx-b200", 7.55, 1.286, (9.2, 10.2, 11.0)),
]


@pytest.mark.parametrize(("machine", "base", "hop", "exchange"), SMALL)
def test_small_messages(machine: str, base: float, hop: float, exchange: tuple[float, ...]) -> None:
    for n, exchange_us in zip((2, 4, 8), exchange, strict=True):
        expected = {
            "all_reduce": base + hop * 2 * (n - 1),
            "all_gather": base + hop * (n - 1),
            "reduce_scatter": base + hop * (n - 1),
            "all_to_all": exchange_us,
        }
        for kind, us in expected.items():
            seconds = collective_s(kind, 1024, Group(n, n, 1), cluster(machine))
            assert us / 2 < 1e6 * seconds < us * 2


def test_small_message_over_four_nodes() -> None:
    """34.6 us measured on H100 and InfiniBand."""
    group = Group.place(32, 1, cluster("dgx-h100", 4))

    assert collective_s("all_reduce", 8, group, cluster("dgx-h100", 4)) == pytest.approx(
        34.6e-6, rel=0.5
    )


@pytest.mark.parametrize(
    "name", ["dgx-a100", "dgx-h100", "hgx-h200", "dgx-b200", "aws-p5", "gcp-a3-mega"]
)
def test_crossing_a_node_is_never_cheaper_for_short_messages(name: str) -> None:
    machine = cluster(name, 64)
    for kind in KINDS:
        staying = collective_s(kind, 1024, Group(8, 8, 1), machine)
        for group in (Group(8, 4, 2), Group(8, 2, 4), Group(8, 1, 8)):
            assert collective_s(kind, 1024, group, machine) > staying


def test_a_ring_over_single_ranks_runs_at_the_rate_of_a_send() -> None:
    """One rank of each node: one NIC each, 0.6 of its line rate; eight such rings beside it."""
    machine = cluster("dgx-h100", 8)

    alone, rails = (
        bus_factor("all_gather", group.ranks) * 2**36
        / collective_s("all_gather", 2**36, group, machine)
        for group in (Group(8, 1, 8), Group(16, 2, 8))
    )  # fmt: skip

    assert alone == pytest.approx(0.6 * 50e9, rel=0.01)
    assert rails == pytest.approx(0.82 * 2 * 50e9, rel=0.02)


# cluster, collective, nodes, MiB, microseconds of nccl-tests
MIDDLE = [
    ("dgx-h100", "all_reduce", 2, 64, 477.2),
    ("dgx-h100", "all_reduce", 4, 16, 259.6),
    ("dgx-h100", "all_reduce", 4, 64, 579.1),
    ("dgx-h100", "all_reduce", 8, 64, 718.1),
    ("dgx-h100", "all_reduce", 8, 256, 1955.1),
    ("dgx-b200", "all_reduce", 2, 16, 190.5),
    ("dgx-b200", "all_reduce", 2, 64, 346.1),
    ("dgx-b200", "all_gather", 2, 256, 1018.7),
    ("hgx-h200", "all_gather", 2, 1, 79.7),
    ("hgx-h200", "all_gather", 2, 16, 122.9),
    ("hgx-h200", "all_gather", 2, 64, 294.7),
]
# Seven runs agree: a tree reaches less than half of the ring's bandwidth between 256 KiB and
# 16 MiB, and it has latencies of its own.
TREE = [
    ("dgx-h100", "all_reduce", 2, 1, 93.3),
    ("dgx-h100", "all_reduce", 4, 1, 82.2),
    ("dgx-h100", "all_reduce", 4, 4, 151.1),
    ("dgx-h100", "all_reduce", 8, 1, 117.0),
    ("dgx-h100", "all_reduce", 8, 4, 203.8),
    ("dgx-b200", "all_reduce", 2, 1, 93.4),
    ("dgx-b200", "all_reduce", 2, 4, 111.7),
    ("dgx-a100", "all_reduce", 2, 1, 85.6),
]


@pytest.mark.parametrize(
    ("machine", "kind", "nodes", "mib", "us"),
    MIDDLE + TREE,
)
def test_middle_messages(machine: str, kind: str, nodes: int, mib: int, us: float) -> None:
    group = Group.place(8 * nodes, 1, cluster(machine, nodes))

    seconds = collective_s(kind, mib * 2**20, group, cluster(machine, nodes))

    assert 1e6 * seconds == pytest.approx(us, rel=0.45)


def test_a_short_bucket_over_many_nodes_runs_below_half_of_the_line() -> None:
    assert busbw("all_reduce", 32, "dgx-h100", 25e6) < 0.45 * 400
    assert busbw("all_gather", 32, "dgx-h100", 25e6) < 0.15 * 400


@pytest.mark.parametrize(("stride", "inside"), [(1, True), (4, True), (8, False), (64, False)])
def test_send_to_a_neighbour(stride: int, inside: bool) -> None:
    machine = cluster("dgx-h100", 16)

    seconds = send_recv_s(2**30, stride, machine)

    line = 450e9 if inside else 50e9
    assert 1 < seconds / (2**30 / line) < 2


@quick
@given(message, message, strides, machines)
def test_sending_more_takes_longer(one: int, other: int, stride: int, machine: ClusterSpec) -> None:
    few, many = sorted([one, other])

    assert send_recv_s(few, stride, machine) <= send_recv_s(many, stride, machine)


@pytest.mark.parametrize("kind", [*KINDS, "send_recv", "broadcast"])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_bus_factor(kind: str, n: int) -> None:
    expected = {"all_reduce": 2 * (n - 1) / n, "send_recv": 1, "broadcast": 1}

    assert bus_factor(kind, n) == expected.get(kind, (n - 1) / n)


def unmeasured(**changes: object) -> ClusterSpec:
    """Return a cluster of a GPU nobody has measured."""
    gpu = GpuSpec(
        name="new", memory_bytes=8 * 10**10, hbm_bytes_per_s=2e12, sm_count=100,
        peak_flops={"bf16": 4e14},
    )  # fmt: skip
    fields = {
        "name": "new",
        "gpu": gpu,
        "gpus_per_node": 8,
        "domain_gpus": 8,
        "scale_up": ScaleUpSpec(kind="nvlink", bytes_per_s=400e9),
    }
    return ClusterSpec.model_validate(fields | changes)


def test_a_group_across_domains_needs_a_network() -> None:
    with pytest.raises(ValueError, match="needs scale_out"):
        collective_s("all_reduce", 1, Group(16, 8, 2), unmeasured())


def test_one_nic_for_eight_gpus_is_shared() -> None:
    net = ScaleOutSpec(fabric="roce", nics_per_node=1, nic_bytes_per_s=25e9)
    machine = unmeasured(nodes=4, scale_out=net)
    group = Group.place(4, 8, machine)  # one rank of each node; seven such groups beside it

    seconds = collective_s("all_gather", 2**30, group, machine)

    assert seconds > 0.75 * 2**30 / (25e9 / 8)


@pytest.mark.parametrize(
    ("domains", "rows", "share"),
    [
        (2, Rows(1), 1 / 2),
        (8, Rows(1), 7 / 8),
        (2, Rows(8), (1 - 0.5**8) / 8),
        (8, Rows(8), 7 * (1 - 0.875**8) / 8),
        (8, Rows(8, 0.5), 3.5 * (1 - 0.75**8) / 8),  # DeepSeek-V3: four of eight nodes
        (2, Rows(8, 0.1), 0.5 / 8),  # at least one domain is open
    ],
)
def test_a_row_crosses_the_network_once_for_each_domain(
    domains: int, rows: Rows, share: float
) -> None:
    """What DeepEP and HybridEP save: of 8 copies to 2 nodes, one leaves instead of four."""
    machine = cluster("dgx-h100", domains)
    group = Group.place(8 * domains, 1, machine)
    net = machine.scale_out
    assert net is not None

    few, many = (collective_s("all_to_all", size, group, machine, rows) for size in (8e9, 16e9))

    rate = net.all_to_all_efficiency * net.nic_bytes_per_s
    inside = (many - few) > 1.01 * 8e9 * share / rate  # the scale-up fabric is the slower part
    assert inside or many - few == pytest.approx(8e9 * share / rate)
    assert not (inside and rows.copies == 1)


@quick
@given(message, strides, machines, st.integers(1, 16), st.floats(0.01, 1))
def test_sending_once_is_never_slower(
    size: int, stride: int, machine: ClusterSpec, copies: int, share: float
) -> None:
    group = Group.place(64, stride, machine)

    once = collective_s("all_to_all", size, group, machine, Rows(copies, share))

    assert once <= collective_s("all_to_all", size, group, machine) * (1 + 1e-9)
