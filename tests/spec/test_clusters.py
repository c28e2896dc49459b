from pathlib import Path

import pytest
from pydantic import ValidationError

from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec, cluster_names, load_cluster
from planner.spec.gpu import load_gpu

# name, GPU, GPUs per node, domain, network GB/s of one GPU, latency of the network in us
SHIPPED = [
    ("dgx-2", "V100-SXM-32GB", 16, 16, 6.25, 5),
    ("dgx-a100", "A100-SXM-80GB", 8, 8, 25, 5),
    ("dgx-h100", "H100-SXM-80GB", 8, 8, 50, 5),
    ("hgx-h200", "H200-SXM-141GB", 8, 8, 50, 6),
    ("dgx-b200", "B200-SXM-180GB", 8, 8, 50, 7),
    ("gb200-nvl72", "GB200-NVL72-186GB", 4, 72, 50, 5),
    ("aws-p5", "H100-SXM-80GB", 8, 8, 50, 30),
    ("gcp-a3-mega", "H100-SXM-80GB", 8, 8, 25, 54),
    ("mi300x", "MI300X-192GB", 8, 8, 50, 7.5),
    ("l40s-pcie", "L40S-48GB", 8, 8, 3.125, 7.5),
]

FILE = """\
name: mine
gpu: H100
nodes: 2
gpus_per_node: 8
domain_gpus: 8
scale_up: {kind: nvlink, bytes_per_s: 450 GB/s}
scale_out:
  fabric: roce
  nics_per_node: 4
  nic_bytes_per_s: 200 Gbit/s
host: {memory_bytes: 1 TB, gpu_link_bytes_per_s: 50 GB/s}
"""


def refused(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_cluster(path)
    return caught.value.problems


@pytest.mark.parametrize(("name", "gpu", "per_node", "domain", "net_gb", "latency_us"), SHIPPED)
def test_shipped_clusters(
    name: str, gpu: str, per_node: int, domain: int, net_gb: float, latency_us: float
) -> None:
    cluster = load_cluster(name)
    net = cluster.scale_out

    assert net is not None
    assert (cluster.gpu.name, cluster.gpus_per_node, cluster.domain_gpus) == (gpu, per_node, domain)
    assert net.nics_per_node * net.nic_bytes_per_s / per_node == pytest.approx(net_gb * 1e9)
    assert net.latency_s == pytest.approx(latency_us * 1e-6)


def test_workstation_is_one_gpu() -> None:
    assert load_cluster("workstation").gpus == 1
    assert load_cluster("workstation").scale_out is None


@pytest.mark.parametrize("name", cluster_names())
def test_every_value_has_a_source(name: str) -> None:
    cluster = load_cluster(name)

    stated = cluster.model_fields_set - {"name", "nodes", "sources"}
    assert cluster.name == name
    assert stated == cluster.sources.keys()


def test_twelve_clusters_ship() -> None:
    assert len(cluster_names()) == 12
    assert cluster_names() == tuple(sorted(cluster_names()))


def test_own_file_with_a_gpu_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)

    cluster = load_cluster(path)

    assert cluster == load_cluster(str(path))
    assert cluster.gpu == load_gpu("H100-SXM-80GB")
    assert cluster.gpus == 16
    assert cluster.scale_out is not None
    assert cluster.scale_out.nic_bytes_per_s == 25e9


def test_own_file_with_a_gpu_in_full(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    gpu = "{name: X1, memory_bytes: 64 GB, hbm_bytes_per_s: 2 TB/s, sm_count: 100, "
    path.write_text(FILE.replace("H100", gpu + "peak_flops: {bf16: 300 TFLOP/s}}"))

    cluster = load_cluster(path)

    assert cluster.gpu.peak_flops["bf16"] == 3e14
    assert cluster.gpu.gemm == {}


def test_plans_may_repeat_a_cluster() -> None:
    cluster = load_cluster("dgx-h100")

    assert ClusterSpec.model_validate_json(cluster.model_dump_json()) == cluster


# what is replaced, by what, what the message must contain
BAD = [
    ("H100", "H1000", ":2: gpu: GPU 'H1000' is not shipped; did you mean"),
    ("H100", "{name: X1}", ":2: gpu.memory_bytes: missing; add it (As the driver reports it)"),
    ("H100", "7", ":2: gpu: 7 is not accepted; write one field per line below it"),
    ("450 GB/s", "450 GB", ":6: scale_up.bytes_per_s: '450 GB' is not a data rate; write a number"),
    ("450 GB/s", "-450 GB/s", "scale_up.bytes_per_s: '-450 GB/s' is not accepted; write a number"),
    ("nvlink", "nvlnk", ":6: scale_up.kind: 'nvlnk' is not accepted; write one of 'nvlink', 'xg"),
    ("fabric: roce", "fabric: token-ring", "write one of 'ib', 'roce', 'efa'"),
    ("nodes: 2", "nodes: 0", ":3: nodes: 0 is not accepted; write a number greater than 0"),
    ("nodes: 2", "nods: 2", ":3: nods: unknown field; did you mean 'nodes'?"),
    ("  nics_per_node: 4\n", "", ":7: scale_out.nics_per_node: missing; add it"),
    ("domain_gpus: 8", "domain_gpus: 3", "domain_gpus=3 neither divides nor is a multiple of gpus"),
    ("1 TB", "1 TB/s", ":11: host.memory_bytes: '1 TB/s' is not a size"),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD)
def test_bad_cluster_files(tmp_path: Path, old: str, new: str, said: str) -> None:
    problems = refused(tmp_path, FILE.replace(old, new))

    assert any(said in problem for problem in problems), problems
    assert all(problem.startswith(f"{tmp_path / 'mine.yaml'}:") for problem in problems)


def test_nodes_need_a_network(tmp_path: Path) -> None:
    lines = [line for line in FILE.splitlines() if "nic" not in line and "fabric" not in line]
    text = "\n".join(line for line in lines if line != "scale_out:")

    (problem,) = refused(tmp_path, text)

    assert "nodes=2 need scale_out; describe the network or set 1" in problem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dgx-h10", "cluster 'dgx-h10' is not shipped; did you mean 'dgx-h100'?"),
        ("nothing-like-it", "give the path of a file, or one of: aws-p5, dgx-2, dgx-a100"),
        ("folder/c.yaml", "folder/c.yaml: no such file; check the path"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_cluster(name)

    assert said in str(caught.value)


def test_domains_may_hold_parts_or_many_nodes() -> None:
    cluster = load_cluster("dgx-h100")
    for domain in (1, 2, 4, 8, 16, 64):
        changed = cluster.model_dump() | {"domain_gpus": domain}
        assert ClusterSpec.model_validate(changed).domain_gpus == domain
    with pytest.raises(ValidationError):
        ClusterSpec.model_validate(cluster.model_dump() | {"domain_gpus": 12})
