"""Measured links of nodes: what a file may say, what is refused, and parts of a cluster."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from planner.cost.links import BROKEN_SHARE, latency_factors, link_shares
from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.nodes import NodeLinks, load_node_links
from planner.spec.parts import in_order, part_of

RATES = ((0, 10e9, 8e9), (10e9, 0, 5e9), (4e9, 5e9, 0))
LATENCIES = ((0, 4e-6, 2e-6), (4e-6, 0, 3e-6), (2e-6, 3e-6, 0))
HOSTS = ("a", "b", "c")


def links(**changes: object) -> NodeLinks:
    return NodeLinks.model_validate({"hosts": HOSTS, "bytes_per_s": RATES} | changes)


def test_a_pair_is_as_slow_as_its_slower_direction() -> None:
    expected = [[1, 1, 0.4], [1, 1, 0.5], [0.4, 0.5, 1]]

    np.testing.assert_allclose(link_shares(links()), expected)


def test_latency_is_told_against_the_least_one() -> None:
    measured = links(latency_s=LATENCIES)

    np.testing.assert_allclose(latency_factors(measured), [[1, 2, 1], [2, 1, 1.5], [1, 1.5, 1]])
    np.testing.assert_array_equal(latency_factors(links()), np.ones((3, 3)))


def test_plain_numbers_are_in_the_unit_of_the_file() -> None:
    rates = [[0, 10, "8 GB/s"], [10.0, 0, 5], [4, 5, 0]]

    assert links(unit="GB/s", bytes_per_s=rates) == links()
    with pytest.raises(ValueError, match="'1 parsecs' is not a data rate"):
        links(unit="parsecs")


def test_a_broken_link_carries_next_to_nothing() -> None:
    rates = ((0, 10e9, 0), (10e9, 0, 5e9), (4e9, 5e9, 0))

    assert link_shares(links(bytes_per_s=rates))[0, 2] == BROKEN_SHARE


def test_a_stated_healthy_rate_counts_as_one_and_is_not_exceeded() -> None:
    np.testing.assert_allclose(link_shares(links(healthy_bytes_per_s="8 GB/s"))[0], [1, 1, 0.5])


@pytest.mark.parametrize("nodes", [(2, 0, 1), (1, 2), (2, 1)])
def test_some_nodes_keep_their_shares(nodes: tuple[int, ...]) -> None:
    measured = links(latency_s=LATENCIES)
    some = measured.of(nodes)

    assert some.hosts == tuple(HOSTS[node] for node in nodes)
    np.testing.assert_array_equal(link_shares(some), link_shares(measured)[np.ix_(nodes, nodes)])
    np.testing.assert_array_equal(
        latency_factors(some), latency_factors(measured)[np.ix_(nodes, nodes)]
    )


def cluster_file(folder: Path, **changes: object) -> Path:
    spec = load_cluster("dgx-a100").model_dump(mode="json", exclude={"gpu", "nodes"})
    spec |= {"gpu": "A100-SXM-80GB", "nodes": 3}
    spec["node_links"] = {"hosts": list(HOSTS), "bytes_per_s": [list(row) for row in RATES]}
    spec = {name: value for name, value in (spec | changes).items() if value is not None}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_the_links_stand_in_the_cluster_file(tmp_path: Path) -> None:
    cluster = load_cluster(cluster_file(tmp_path))

    assert cluster.hosts == HOSTS
    assert cluster.node_links == links()


def test_fewer_nodes_than_were_measured_are_allowed(tmp_path: Path) -> None:
    assert load_cluster(cluster_file(tmp_path, nodes=2)).hosts == ("a", "b")


REFUSED = [
    ({"nodes": 4}, "3 nodes were measured, nodes=4; measure all or set at most 3"),
    ({"domain_gpus": 16}, "domain_gpus=16 spans nodes, whose links are the fabric's"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_a_cluster_must_fit_its_links(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        load_cluster(cluster_file(tmp_path, **changes))


def test_all_that_is_wrong_in_a_matrix_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "links.yaml"
    path.write_text(
        "hosts: [a, a, c]\nbytes_per_s: [[0, 1 GB/s], [1 GB/s, 0, 1 GB/s]]\n"
        "latency_s: [[0, 1 us, 1 us]]\n"
    )

    with pytest.raises(SpecError) as raised:
        load_node_links(path)

    said = str(raised.value)
    assert str(path) in said
    assert "hosts: a stands twice" in said
    assert "bytes_per_s: 2 rows for 3 hosts" in said
    assert "bytes_per_s: row 0 (a) has 2 values, not 3" in said
    assert "latency_s: 1 rows for 3 hosts" in said


def test_nodes_that_do_not_reach_each_other_are_no_cluster() -> None:
    with pytest.raises(ValueError, match="no pair of nodes reaches another"):
        links(bytes_per_s=((0, 0, 0),) * 3)


def placed() -> ClusterSpec:
    return load_cluster("dgx-a100").model_copy(update={"nodes": 3, "node_links": links()})


@pytest.mark.parametrize(
    ("first", "slots", "hosts"),
    [(0, 24, HOSTS), (0, 8, ("a",)), (8, 16, ("b", "c")), (12, 2, ("b",)), (4, 8, ("a", "b"))],
)
def test_a_part_holds_the_nodes_under_its_slots(
    first: int, slots: int, hosts: tuple[str, ...]
) -> None:
    part = part_of(placed(), first, slots)

    assert part.hosts == hosts
    assert part.nodes == len(hosts)


def test_a_cluster_of_like_nodes_is_its_own_part() -> None:
    cluster = load_cluster("dgx-a100")

    assert part_of(cluster, 8, 8) is cluster


def test_nodes_in_another_order() -> None:
    assert in_order(placed(), (2, 0)).hosts == ("c", "a")
