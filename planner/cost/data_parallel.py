"""Seconds of gradient reduction, weight gathering and the optimizer on one rank."""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from planner.cost.collectives import Group, collective_s
from planner.cost.compute import product_flops_per_s
from planner.cost.overlap import lost_share
from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, padded_vocab, sharded_by_kind
from planner.model.matrices import newton_schulz_flops
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.optimizer import OPTIMIZERS, update_bytes

WEIGHT_COPY_BYTES = 2  # an update writes the weight for the products beside what it keeps
# clipping reads the gradient once more, zeroing writes it
CLIP_BYTES_PER_GRADIENT_BYTE = 2


@dataclass(frozen=True, slots=True)
class ParameterShares:
    """Parameters on one rank, and the groups that hold copies of them."""

    dense: float
    expert: float
    dense_group: Group
    expert_group: Group


def shares(
    local: LocalParameters, layout: Layout, cluster: ClusterSpec, group: int | None = None
) -> ParameterShares:
    """Place the data-parallel groups: dp·cp ranks for dense layers, edp for experts.

    ``group`` takes the innermost so many of them instead, as a sharding over fewer ranks does.
    """
    ranks, edp = layout.dp * layout.cp, max(1, layout.edp)
    return ParameterShares(
        local.dense,
        local.expert,
        Group.place(min(group or ranks, ranks), layout.tp, cluster),
        Group.place(min(group or edp, edp), layout.ep * layout.etp, cluster),
    )


def between(
    local: LocalParameters,
    layout: Layout,
    cluster: ClusterSpec,
    inner: int,
    outer: int | None = None,
) -> ParameterShares:
    """Place the groups that hold the same share of ``inner`` ranks, of ``outer`` neighbours.

    Of all ranks, where ``outer`` is not given: the copies of a sharded tensor (HSDP).
    """
    edp = max(1, layout.edp)
    few, all_experts = min(inner, edp), min(outer or edp, edp)
    outer = outer or layout.dp * layout.cp
    return ParameterShares(
        local.dense / inner,
        local.expert / few,
        Group.place(outer // inner, layout.tp * inner, cluster),
        Group.place(all_experts // few, layout.ep * layout.etp * few, cluster),
    )


class Sync(NamedTuple):
    """One collective over all parameters, in buckets.

    ``one_s`` of ``seconds`` are one bucket's; ``lost`` is what each second costs compute beside it.
    """

    seconds: float = 0.0
    one_s: float = 0.0
    lost: float = 0.0


def _bucketed(
    kind: str,
    parameters: float,
    bytes_each: float,
    group: Group,
    bucket_bytes: float,
    cluster: ClusterSpec,
) -> Sync:
    if parameters <= 0 or group.ranks == 1:
        return Sync()
    buckets = max(1, ceil(parameters * bytes_each / bucket_bytes))
    message = bytes_each * parameters / buckets
    one = collective_s(kind, message, group, cluster)
    return Sync(buckets * one, one, lost_share(kind, message, group, cluster))


def sync(
    kind: str, parts: ParameterShares, bytes_each: float, bucket_bytes: float, cluster: ClusterSpec
) -> Sync:
    """Return what one collective over all parameters takes."""
    dense = _bucketed(kind, parts.dense, bytes_each, parts.dense_group, bucket_bytes, cluster)
    expert = _bucketed(kind, parts.expert, bytes_each, parts.expert_group, bucket_bytes, cluster)
    seconds = dense.seconds + expert.seconds
    lost_s = dense.lost * dense.seconds + expert.lost * expert.seconds
    return Sync(seconds, max(dense.one_s, expert.one_s), lost_s / seconds if seconds else 0.0)


def tied_table_s(model: ModelSpec, job: JobSpec, layout: Layout, cluster: ClusterSpec) -> float:
    """Seconds in which the first and the last stage add up the gradients of one token table.

    Tied embeddings stand on both (PTD-P, arXiv 2104.04473, reduces them once per step). All ranks
    of the two stages do so at once, each with its tensor-parallel share.
    """
    if not model.tied_embeddings or layout.pp == 1 or job.lora_rank:
        return 0.0
    table = padded_vocab(model, layout.tp, job.software.vocab_multiple) * model.hidden / layout.tp
    stage = layout.gpus // layout.pp
    near = layout.gpus <= cluster.domain_gpus
    far = Group.place(2, max(cluster.domain_gpus, stage * (layout.pp - 1)), cluster)
    group = Group(2, 2, 1) if near else far
    return collective_s("all_reduce", job.software.reduce_bytes * table, group, cluster)


def update_s(
    local: LocalParameters, layout: Layout, job: JobSpec, model: ModelSpec, cluster: ClusterSpec
) -> float:
    """Seconds of clipping and the optimizer on this rank's share of the state.

    All of it is memory traffic, but for the products of Muon, which the ranks that share a matrix
    divide among them (arXiv 2502.16982, 2.3; gathering it there is not counted).
    """
    software, gpu, edp = job.software, cluster.gpu, max(1, layout.edp)
    group = layout.shard.gradients
    gradients = local.dense / group + local.expert / min(group, edp)
    matrices, others = sharded_by_kind(local, layout)
    moved = update_bytes(job.optimizer, software.optimizer_bytes, matrices, others)
    moved += WEIGHT_COPY_BYTES * (matrices + others)
    moved += CLIP_BYTES_PER_GRADIENT_BYTE * software.gradient_bytes * gradients
    products_s = 0.0
    if OPTIMIZERS[job.optimizer].orthogonalises:
        products_s = matrices * newton_schulz_flops(model) / product_flops_per_s(gpu)
    if curve := gpu.kernels.get("optimizer"):
        return curve.overhead_s + moved / curve.bytes_per_s + products_s
    return moved / (gpu.memory_bound_fraction * gpu.hbm_bytes_per_s) + products_s
