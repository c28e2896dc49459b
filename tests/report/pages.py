"""Plans whose page is tested, each made once."""

from functools import cache

from planner.layout.limits import Limits
from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.recommend import Options
from planner.search.targets import TARGETS
from planner.spec.cluster import ClusterSpec, NodeGroup, load_cluster, load_gpu
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.nodes import NodeLinks
from planner.spec.parts import of_groups

# name: model, nodes of eight H100, global batch, sequence length, target
JOBS = {
    "tiny": ("tiny-llama", 1, 16, 64, "torch"),
    "dense": ("llama-3-70b", 8, 512, 8192, "torch"),
    "interleaved": ("gpt3-175b", 8, 512, 2048, "megatron"),
    "experts": ("deepseek-v3", 32, 4096, 4096, "megatron"),
    "zb_v": ("llama-3-8b", 2, 32, 4096, "torch"),
    "offload": ("llama-3-8b", 1, 8, 65536, "torch"),
    "placed": ("llama-3-8b", 4, 128, 8192, "torch"),
    "mixed": ("llama-3-8b", 2, 64, 4096, "megatron"),
    "large": ("llama-3.1-405b", 128, 1024, 8192, "megatron"),
}

OPTIONS = {
    "zb_v": Options(limits=Limits((("pp", 4), ("vpp", 2)))),
    "offload": Options(offload=True),
}

# two of four nodes hear each other badly
LINKS = NodeLinks(
    hosts=("n0", "n1", "n2", "n3"),
    bytes_per_s=tuple(
        tuple(1e9 if {row, column} == {0, 1} else 2e10 for column in range(4)) for row in range(4)
    ),
)


def _machines(name: str, nodes: int) -> ClusterSpec:
    cluster = load_cluster("dgx-h100").model_copy(update={"nodes": nodes})
    if name == "placed":
        return cluster.model_copy(update={"node_links": LINKS})
    if name == "mixed":
        slow = load_gpu("A100-SXM-80GB").model_copy(update={"memory_bytes": 40 * 10**9})
        kinds = (NodeGroup(gpu=cluster.gpu, nodes=1, hosts=("h0",)),
                 NodeGroup(gpu=slow, nodes=1, hosts=("a0",)))  # fmt: skip
        return of_groups(cluster, kinds)
    return cluster


@cache
def plan(name: str) -> Plan:
    """Return the recommended plan of one of ``JOBS``."""
    model, nodes, global_batch, seq_len, target = JOBS[name]
    found = recommend(
        load_model(model),
        _machines(name, nodes),
        JobSpec(global_batch=global_batch, seq_len=seq_len),
        TARGETS[target],
        OPTIONS.get(name, Options()),
    )
    assert isinstance(found, Plan)
    return found.model_copy(update={"command": f"planner recommend {model} --cluster dgx-h100"})
