"""Which layouts are legal at all, whatever runs them: divisibility and the two grids.

Rules of one target (the torch launcher, a Megatron version) come on top; see ``rules_torch``.
"""

from planner.layout.layout import Layout
from planner.layout.rule import divisor, near
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number`` in rising order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _divides(what: str, size: int, knob: str, degree: int) -> list[str]:
    if size % degree == 0:
        return []
    return [divisor(knob, degree, what, size)]


def _tensor_problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    problems = _divides("heads", model.heads, "tp", layout.tp)
    problems += _divides("ffn_hidden", model.ffn_hidden, "tp", layout.tp)
    if model.kv_heads % layout.tp and layout.tp % model.kv_heads:
        problems.append(
            f"tp={layout.tp} neither divides kv_heads={model.kv_heads} nor is a multiple of it"
        )
    if layout.sequence_parallel:
        problems += _divides("tokens per rank", job.seq_len // layout.cp, "tp", layout.tp)
    return problems


def _expert_problems(model: ModelSpec, layout: Layout) -> list[str]:
    ranks = layout.tp * layout.cp * layout.dp
    if model.moe is None:
        grid = {"ep": layout.ep, "etp": layout.etp}
        return [f"{k}={n} needs a model with experts" for k, n in grid.items() if n > 1]
    problems = _divides("experts", model.moe.experts, "ep", layout.ep)
    problems += _divides("moe ffn_hidden", model.moe.ffn_hidden, "etp", layout.etp)
    if ranks % (layout.ep * layout.etp):
        problems.append(
            f"ep*etp={layout.ep * layout.etp} does not divide the {ranks} ranks of a stage"
        )
    if layout.tp > 1 and not layout.sequence_parallel:
        problems.append("experts with tp > 1 need sequence_parallel (Megatron-LM, arguments.py)")
    return problems


def _shard_problems(layout: Layout) -> list[str]:
    shard, ranks = layout.shard, layout.dp * layout.cp
    sizes = {"weights": shard.weights, "gradients": shard.gradients, "optimizer": shard.optimizer}
    problems = [
        f"shard {name}={size} does not divide the {ranks} ranks that hold the same layers; "
        f"try {near(size, lambda n: ranks % n == 0, ranks)}"
        for name, size in sizes.items()
        if ranks % size
    ]
    second = shard.secondary
    if second and (ranks % second or not 1 < second < shard.weights):
        problems.append(
            f"shard secondary={second} is none of the group sizes below weights={shard.weights} "
            f"that divide {ranks}; try {near(second, lambda n: ranks % n == 0, shard.weights - 1)}"
        )
    if second and layout.pp > 1:
        problems.append("a pipeline keeps whole weights; shard secondary needs pp 1")
    if not shard.weights <= shard.gradients <= shard.optimizer:
        problems.append("shard must rise from weights over gradients to optimizer (ZeRO 1, 2, 3)")
    return problems


def _pipeline_problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
    problems = []
    chunks = layout.pp * layout.vpp
    # embedding and head may have a chunk of their own (Llama 3 405B: 126 layers in 128 chunks)
    if chunks > model.layers and (chunks != model.layers + 2 or layout.vpp == 1):
        problems.append(f"pp*vpp={chunks} stages are more than layers={model.layers}")
    if layout.vpp > 1:
        if layout.pp == 1:
            problems.append(f"vpp={layout.vpp} needs pp > 1")
        micro_batches = layout.micro_batches(job.global_batch)
        if micro_batches % layout.pp and not layout.schedule:
            problems.append(
                f"vpp > 1 needs the {micro_batches} micro-batches to be a multiple of "
                f"pp={layout.pp} (Megatron-LM, interleaved schedule)"
            )
    return problems


def _offload_problems(cluster: ClusterSpec, layout: Layout) -> list[str]:
    share, ranks = layout.offload_optimizer, layout.dp * layout.cp
    problems = []
    if not 0 <= share <= 1:
        problems.append(f"offload_optimizer={share:g} is no share; use 0 to 1")
    if share and cluster.host is None:
        problems.append(
            f"offload_optimizer={share:g} needs a host; describe host in the file of "
            f"{cluster.name!r}"
        )
    if layout.offload_weights and share != 1:
        problems.append(
            f"offload_weights needs the whole optimizer on the host, offload_optimizer={share:g}; "
            "use 1"
        )
    if layout.offload_weights and 1 == layout.shard.weights < ranks:
        problems.append(
            f"offload_weights with shard weights=1 over {ranks} ranks: each would fetch all of "
            "them; use ZeRO-3"
        )
    if layout.offload_weights and layout.pp > 1:
        problems.append(f"offload_weights excludes a pipeline, pp={layout.pp}; use pp 1")
    if layout.delayed_update and not share:
        problems.append("delayed_update needs an optimizer on the host; set offload_optimizer")
    return problems


def layout_problems(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, layout: Layout
) -> list[str]:
    """Return one sentence for every rule the layout breaks; empty when legal."""
    problems = []
    if layout.gpus > cluster.gpus:
        problems.append(f"the layout needs {layout.gpus} GPUs, the cluster has {cluster.gpus}")
    samples = layout.dp * layout.micro_batch
    problems += _divides("global_batch", job.global_batch, "dp*micro_batch", samples)
    if layout.cp > 1:
        problems += _divides("seq_len", job.seq_len, "2*cp", 2 * layout.cp)
    problems += _tensor_problems(model, job, layout)
    problems += _expert_problems(model, layout)
    problems += _shard_problems(layout) + _offload_problems(cluster, layout)
    if job.global_batch % samples == 0:
        problems += _pipeline_problems(model, job, layout)
    return list(dict.fromkeys(problems))
