"""What starts a bundle on Slurm, Kubernetes and SkyPilot: every file says the same job."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.formats.bundle import cluster_files
from planner.formats.grid import dns_name, job_name
from planner.formats.kubernetes import BUNDLE
from planner.formats.skypilot import accelerator
from planner.formats.work import Work, work_of_plan
from planner.spec.gpu import GpuSpec, gpu_names
from tests.formats.plans import build_plan, cluster, llama

NAMES = ["tiny-llama", "Org/My Model", "'; rm -rf /;", "$(touch HIT)", "\n\n", "123", "ü", "-x-",
         "a" * 90]  # fmt: skip


def work(nodes: int = 2, name: str = "tiny-llama", gpu: str = "") -> Work:
    plan = build_plan(llama(name=name), dp=8 * nodes, cluster_spec=cluster(nodes=nodes))
    found = work_of_plan(plan)
    return Work(**{one: getattr(found, one) for one in Work.__slots__ if one != "gpu"}, gpu=gpu)


def documents(one: Work) -> dict[str, Any]:
    files = cluster_files(one, "launch.sh")
    return {name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")}


@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_all_files_start_all_ranks(nodes: int) -> None:
    found = documents(work(nodes))
    replicas = found["pytorchjob.yaml"]["spec"]["pytorchReplicaSpecs"]
    trainer = found["trainjob.yaml"]["spec"]["trainer"]

    assert sum(kind["replicas"] for kind in replicas.values()) == nodes
    assert replicas["Master"]["replicas"] == 1
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (nodes, 8)
    assert found["skypilot.yaml"]["num_nodes"] == nodes
    assert f"#SBATCH --nodes={nodes}\n" in cluster_files(work(nodes), "launch.sh")["job.sbatch"]


def containers(found: dict[str, Any]) -> list[dict[str, Any]]:
    replicas = found["pytorchjob.yaml"]["spec"]["pytorchReplicaSpecs"].values()
    pods = [kind["template"]["spec"]["containers"][0] for kind in replicas]
    return [*pods, found["trainjob.yaml"]["spec"]["trainer"]]


def test_kubernetes_gives_the_script_what_it_asks_for() -> None:
    found = documents(work(2))

    for one in containers(found):
        names = {variable["name"]: variable["value"] for variable in one["env"]}
        assert names == {"NNODES": "2", "NPROC_PER_NODE": "8"}
        assert not any(name.startswith("PET_") for name in names)  # Kubeflow Trainer refuses them
        assert f"{BUNDLE}/launch.sh" in one["command"][-1]
    pods = containers(found)[:-1]
    assert all(pod["name"] == "pytorch" for pod in pods)  # the operator looks for this name
    assert all(isinstance(found["pytorchjob.yaml"]["spec"]["nprocPerNode"], str) for _ in pods)


# what the operators set, and what the script must then see
STARTED = [
    ("pytorchjob.yaml", {"RANK": "1", "MASTER_ADDR": "m", "MASTER_PORT": "23456"}),
    ("trainjob.yaml", {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "23456"}),
]


@pytest.mark.parametrize(("name", "given"), STARTED)
def test_nodes_meet(name: str, given: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "launch.sh"
    script.write_text('echo "$NODE_RANK $MASTER_ADDR $MASTER_PORT"\n')
    one = containers(documents(work(2)))[0 if name == "pytorchjob.yaml" else -1]
    words = [word.replace(BUNDLE, str(tmp_path)) for word in one["command"]]

    result = subprocess.run(words, env={"PATH": os.environ["PATH"]} | given, capture_output=True,
                            text=True, check=True)  # fmt: skip

    assert result.stdout == "1 m 23456\n"


def test_skypilot_nodes_meet(tmp_path: Path) -> None:
    script = "echo $NODE_RANK $MASTER_ADDR $NNODES $NPROC_PER_NODE"
    (tmp_path / "launch.sh").write_text(script)
    given = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
             "SKYPILOT_NUM_NODES": "2", "PATH": os.environ["PATH"]}  # fmt: skip
    run = documents(work(2))["skypilot.yaml"]["run"]

    result = subprocess.run(["bash", "-c", run], env=given, cwd=tmp_path, capture_output=True,
                            text=True, check=True)  # fmt: skip

    assert result.stdout == "1 10.0.0.1 2 8\n"


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_that_schedulers_take(name: str) -> None:
    files = cluster_files(work(name=name), "launch.sh")

    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", dns_name(name))
    assert len(dns_name(name)) < 50
    assert re.fullmatch(r"[A-Za-z0-9_.-]*", job_name(name))
    for text in files.values():
        assert "touch HIT" not in text
        assert "rm -rf" not in text
    assert {path for path in files if path.endswith(".yaml")} == set(documents(work(name=name)))


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [("H100-SXM-80GB", "H100"), ("A100-SXM-80GB", "A100-80GB"), ("MI300X-192GB", "MI300X"),
     ("RTX-4090-24GB", "RTX4090"), ("L40S-48GB", "L40S"), ("", "H100")],
)  # fmt: skip
def test_accelerators(gpu: str, expected: str) -> None:
    assert accelerator(gpu) == expected


def test_every_shipped_gpu_has_an_accelerator_without_blanks() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", accelerator(name)) for name in gpu_names())


@pytest.mark.parametrize(
    ("gpu", "resource"), [("H100", "nvidia.com/gpu"), ("MI300X", "amd.com/gpu")]
)
def test_the_resource_follows_the_make(gpu: str, resource: str) -> None:
    found = documents(work(gpu=gpu))

    trainer = found["trainjob.yaml"]["spec"]["trainer"]
    assert trainer["resourcesPerNode"] == {"limits": {resource: 8}}
    assert isinstance(cluster().gpu, GpuSpec)


def test_schedulers_that_choose_the_nodes_say_that_they_lose_the_order() -> None:
    placed = replace(work(2), hosts=("b", "a"))
    files, plain = cluster_files(placed, "launch.sh"), cluster_files(work(2), "launch.sh")

    for name in ("pytorchjob.yaml", "trainjob.yaml", "skypilot.yaml"):
        assert "order of hosts is not kept" in files[name]
        assert yaml.safe_load(files[name]) == yaml.safe_load(plain[name])
        assert "hosts" not in plain[name]
