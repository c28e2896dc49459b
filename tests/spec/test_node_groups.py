"""Clusters of several kinds of nodes: what a file may say, and what each part of one is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.cost.compute import half_precision_peak, mean_peak
from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.parts import of_groups, one_kind, part_of

SLOW_NET = {"fabric": "ethernet", "nics_per_node": 1, "nic_bytes_per_s": "25 Gbit/s"}
GROUPS: list[dict[str, Any]] = [
    {"gpu": "A100-SXM-80GB", "nodes": 2, "hosts": ["a", "b"]},
    {"gpu": "V100-SXM-32GB", "nodes": 1, "scale_out": SLOW_NET, "hosts": ["v"]},
    {"gpu": "A100-SXM-80GB", "nodes": 1, "speed": 0.5, "hosts": ["slow"]},
]
BASE: dict[str, Any] = {
    "name": "mixed",
    "gpus_per_node": 8,
    "domain_gpus": 8,
    "scale_up": {"kind": "nvlink", "bytes_per_s": "300 GB/s"},
    "scale_out": {"fabric": "ib", "nics_per_node": 8, "nic_bytes_per_s": "200 Gbit/s"},
}


def written(folder: Path, groups: object = None, **changes: Any) -> Path:
    path = folder / "mixed.yaml"
    path.write_text(yaml.safe_dump(BASE | {"node_groups": groups or GROUPS} | changes))
    return path


def mixed(folder: Path) -> ClusterSpec:
    return load_cluster(written(folder))


def test_groups_say_gpu_and_nodes(tmp_path: Path) -> None:
    cluster = mixed(tmp_path)

    assert (cluster.gpu.name, cluster.nodes, cluster.gpus) == ("A100-SXM-80GB", 4, 32)
    assert cluster.hosts == ("a", "b", "v", "slow")
    assert ClusterSpec.model_validate_json(cluster.model_dump_json()) == cluster


def test_without_all_names_there_are_no_hosts(tmp_path: Path) -> None:
    groups = [{name: value for name, value in GROUPS[0].items() if name != "hosts"}, *GROUPS[1:]]

    assert load_cluster(written(tmp_path, groups)).hosts == ()


@pytest.mark.parametrize(
    ("first", "slots", "gpu", "memory_gib", "fabric", "clock"),
    [
        (0, 16, "A100-SXM-80GB", 80, "ib", 1.0),
        (16, 8, "V100-SXM-32GB", 32, "ethernet", 1.0),
        (24, 8, "A100-SXM-80GB", 80, "ib", 0.5),
        (8, 16, "V100-SXM-32GB", 32, "ethernet", 1.0),  # at the pace of the slowest
        (16, 16, "V100-SXM-32GB", 32, "ethernet", 1.0),
    ],
)
def test_a_part_is_as_fast_as_its_slowest_node(
    tmp_path: Path, first: int, slots: int, gpu: str, memory_gib: int, fabric: str, clock: float
) -> None:
    part = part_of(mixed(tmp_path), first, slots)

    assert part.gpu.name == gpu
    assert part.gpu.memory_bytes == pytest.approx(memory_gib * 2**30, rel=0.02)
    assert part.scale_out is not None
    assert part.scale_out.fabric == fabric
    plain = load_cluster("dgx-a100").gpu if gpu.startswith("A100") else part.gpu
    assert part.gpu.sustained_fraction == pytest.approx(clock * plain.sustained_fraction)


def test_one_kind_is_a_cluster_of_like_nodes(tmp_path: Path) -> None:
    cluster = mixed(tmp_path)
    alone = one_kind(cluster, cluster.node_groups[1])

    assert (alone.nodes, alone.gpu.name, alone.node_groups) == (1, "V100-SXM-32GB", ())
    assert part_of(alone, 0, 8) is alone


def test_groups_in_another_order(tmp_path: Path) -> None:
    cluster = mixed(tmp_path)
    turned = of_groups(cluster, cluster.node_groups[::-1])

    assert turned.hosts == ("slow", "v", "a", "b")
    assert turned.gpu.name == turned.node_groups[0].gpu.name


def test_the_peak_is_the_mean_over_nodes(tmp_path: Path) -> None:
    cluster = mixed(tmp_path)
    a100, v100 = (half_precision_peak(cluster.node_groups[i].gpu) for i in (0, 1))

    assert mean_peak(cluster) == pytest.approx((3 * a100 + v100) / 4)


LINKS = {"hosts": list("abcd"), "bytes_per_s": [[1e9] * 4] * 4}
REFUSED = [
    ({"nodes": 5}, "nodes=5 but node_groups hold 4; leave nodes out"),
    ({"gpu": "H100-SXM-80GB"}, "gpu=H100-SXM-80GB is not that of the first of node_groups"),
    ({"domain_gpus": 16}, "domain_gpus=16 spans nodes, which node_groups cannot"),
    ({"node_links": LINKS}, "node_links beside node_groups"),
    ({"groups": [{"gpu": "H100", "nodes": 2, "hosts": ["a"]}]}, "hosts=1 names for nodes=2"),
    ({"groups": [{"gpu": "H100", "nodes": 0}]}, "nodes: 0 is not accepted"),
    ({"groups": [{"gpu": "H100", "nodes": 1, "speed": 1.5}]}, "speed: 1.5 is not accepted"),
    ({"groups": [{"gpu": "H1000", "nodes": 1}]}, "GPU 'H1000' is not shipped"),
    ({"groups": [{"gpu": "H100", "nodes": 1, "pace": 1}]}, "pace: unknown field"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, **changes)

    with pytest.raises(SpecError) as raised:
        load_cluster(path)

    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_all_contradictions_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load_cluster(written(tmp_path, nodes=5, domain_gpus=16))

    assert "nodes=5" in str(raised.value)
    assert "domain_gpus=16" in str(raised.value)
