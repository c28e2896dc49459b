"""Kubernetes manifests beside a launch script: Kubeflow's PyTorchJob and TrainJob.

Both run the bundle's script once per node. The operators set the variables that meet the nodes;
Kubeflow Trainer refuses a TrainJob that sets ``PET_*`` itself, so the script translates them.
"""

from typing import Any

from planner.formats.grid import dns_name
from planner.formats.work import Work, unplaced

BUNDLE = "/bundle"
CLAIM = "training-bundle"
_MASTER_PORT = 29500
_HEAD = """# {what}: {nodes} node(s) of {each} GPU(s).
# The exported folder is expected at {bundle}: {where}.
"""


def _gpu_resource(work: Work) -> str:
    return "amd.com/gpu" if work.gpu.startswith("MI") else "nvidia.com/gpu"


def _dump(work: Work, what: str, where: str, document: dict[str, Any]) -> str:
    import yaml

    head = _HEAD.format(what=what, nodes=work.nodes, each=work.per_node, bundle=BUNDLE, where=where)
    head += unplaced(work, "Kubernetes")
    return head + yaml.safe_dump(document, sort_keys=False)


def write_pytorchjob(work: Work, script: str) -> str:
    """Return a PyTorchJob (``kubeflow.org/v1``, training-operator) that starts ``script``.

    The operator gives each pod RANK (the node's number), MASTER_ADDR and MASTER_PORT.
    """
    container = {
        "name": "pytorch",
        "image": "pytorch/pytorch:latest",
        "command": ["bash", "-c", f'NODE_RANK="$RANK" exec bash {BUNDLE}/{script}'],
        "env": [{"name": "NNODES", "value": str(work.nodes)},
                {"name": "NPROC_PER_NODE", "value": str(work.per_node)}],
        "resources": {"limits": {_gpu_resource(work): work.per_node}},
        "volumeMounts": [{"name": "bundle", "mountPath": BUNDLE},
                         {"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    pod = {
        "containers": [container],
        "volumes": [{"name": "bundle", "persistentVolumeClaim": {"claimName": CLAIM}},
                    {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }  # fmt: skip

    def replicas(count: int) -> dict[str, Any]:
        return {"replicas": count, "restartPolicy": "Never", "template": {"spec": pod}}

    kinds = {"Master": replicas(1)}
    if work.nodes > 1:
        kinds["Worker"] = replicas(work.nodes - 1)
    return _dump(work, "PyTorchJob", f"volume claim {CLAIM!r}, or change it below", {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": dns_name(work.model.name)},
        "spec": {"nprocPerNode": str(work.per_node), "pytorchReplicaSpecs": kinds},
    })  # fmt: skip


def write_trainjob(work: Work, script: str) -> str:
    """Return a TrainJob (``trainer.kubeflow.org/v1alpha1``) that starts ``script``."""
    start = (
        'NODE_RANK="$PET_NODE_RANK" MASTER_ADDR="$PET_MASTER_ADDR" '
        f'MASTER_PORT="${{PET_MASTER_PORT:-{_MASTER_PORT}}}" exec bash {BUNDLE}/{script}'
    )
    return _dump(work, "TrainJob", "in the image, or mounted by the runtime", {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": dns_name(work.model.name)},
        "spec": {
            "runtimeRef": {"name": "torch-distributed", "apiGroup": "trainer.kubeflow.org",
                           "kind": "ClusterTrainingRuntime"},
            "trainer": {
                "numNodes": work.nodes,
                "numProcPerNode": work.per_node,
                "command": ["bash", "-c", start],
                "env": [{"name": "NNODES", "value": str(work.nodes)},
                        {"name": "NPROC_PER_NODE", "value": str(work.per_node)}],
                "resourcesPerNode": {"limits": {_gpu_resource(work): work.per_node}},
            },
        },
    })  # fmt: skip
