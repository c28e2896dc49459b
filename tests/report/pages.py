"""Plans whose page is tested, each made once."""

from functools import cache

from planner.layout.limits import Limits
from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.recommend import Options
from planner.search.targets import TARGETS
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec

# name: model, nodes of eight H100, global batch, sequence length, target
JOBS = {
    "tiny": ("tiny-llama", 1, 16, 64, "torch"),
    "dense": ("llama-3-70b", 8, 512, 8192, "torch"),
    "interleaved": ("gpt3-175b", 8, 512, 2048, "megatron"),
    "experts": ("deepseek-v3", 32, 4096, 4096, "megatron"),
    "large": ("llama-3.1-405b", 128, 1024, 8192, "megatron"),
}

# one chunk per rank: the warm-up of many chunks is longer than the passes that a page shows
LIMITS = {"large": Limits(most=(("vpp", 1),))}


@cache
def plan(name: str) -> Plan:
    """Return the recommended plan of one of ``JOBS``."""
    model, nodes, global_batch, seq_len, target = JOBS[name]
    found = recommend(
        load_model(model),
        load_cluster("dgx-h100").model_copy(update={"nodes": nodes}),
        JobSpec(global_batch=global_batch, seq_len=seq_len),
        TARGETS[target],
        Options(limits=LIMITS.get(name, Limits())),
    )
    assert isinstance(found, Plan)
    return found.model_copy(update={"command": f"planner recommend {model} --cluster dgx-h100"})
