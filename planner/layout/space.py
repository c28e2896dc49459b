"""Every legal layout of a job on a number of GPUs."""

from collections.abc import Callable, Iterator
from itertools import product

from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.rules import divisors, layout_problems
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

# Sequences shorter than this per rank are not worth splitting: their attention hides no exchange.
MIN_CONTEXT_TOKENS = 2048
MAX_MICRO_BATCH = 16

Problems = Callable[[ModelSpec, JobSpec, Layout], list[str]]


def _degrees(model: ModelSpec, job: JobSpec, gpus: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tp, cp, pp, dp) whose product is ``gpus``."""
    for tp in divisors(gpus):
        if model.heads % tp or model.ffn_hidden % tp:
            continue
        for cp in divisors(gpus // tp):
            if cp > 1 and (job.seq_len % (2 * cp) or job.seq_len // cp < MIN_CONTEXT_TOKENS):
                continue
            for pp in divisors(gpus // (tp * cp)):
                dp = gpus // (tp * cp * pp)
                if pp <= model.layers and job.global_batch % dp == 0:
                    yield tp, cp, pp, dp


def _experts(model: ModelSpec, ranks: int, tp: int) -> list[tuple[int, int]]:
    """Return the (ep, etp) of the folded expert grid on the ``ranks`` of a stage."""
    if model.moe is None:
        return [(1, 1)]
    pairs = []
    for etp in sorted({1, tp}):
        for ep in divisors(model.moe.experts):
            if ranks % (ep * etp) == 0 and model.moe.ffn_hidden % etp == 0:
                pairs.append((ep, etp))
    return pairs


def _shards(pp: int, ranks: int, inside: int) -> list[Shard]:
    """Return the shardings worth trying: ZeRO 0, 1, and without a pipeline 2, 3 and HSDP.

    With a pipeline, gathering weights for every micro-batch never pays, and torch keeps them whole
    anyway (torch/distributed/pipelining/stage.py).
    """
    if ranks == 1:
        return [Shard()]
    shards = [Shard(), Shard.zero(1, ranks)]
    if pp == 1:
        shards += [Shard.zero(2, ranks), Shard.zero(3, ranks)]
        if inside < ranks and ranks % inside == 0 and inside > 1:
            shards.append(Shard(inside, inside, inside))
    return shards


def _recomputes(job: JobSpec) -> list[Recompute]:
    """Return what the layers do that are not recomputed in full; how many are is decided later.

    A fused attention keeps no scores to repeat, so selective recompute is nothing of its own.
    """
    software = job.software
    if software.flash_attention and not software.selective_recomputes_products:
        return [Recompute.NONE]
    return [Recompute.NONE, Recompute.SELECTIVE]


def _micro_batches(job: JobSpec, dp: int) -> list[int]:
    per_rank = job.global_batch // dp
    return [mb for mb in divisors(per_rank) if mb <= MAX_MICRO_BATCH]


def _chunks(model: ModelSpec, pp: int, micro_batches: int) -> list[int]:
    if pp == 1 or model.layers % pp or micro_batches % pp:
        return [1]
    return divisors(model.layers // pp)


def layouts(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target_problems: Problems | None = None,
) -> list[Layout]:
    """Return every layout that is legal on all GPUs of ``cluster`` and executable by the target.

    Full recompute is not among them: ``memory.fit`` adds as much of it as a layout needs.
    """
    found = []
    for tp, cp, pp, dp in _degrees(model, job, cluster.gpus):
        ranks = tp * cp * dp
        # ranks of one scale-up domain in a dp-cp group
        inside = max(1, cluster.domain_gpus // (tp * cp)) * cp
        for (ep, etp), shard, micro_batch, recompute in product(
            _experts(model, ranks, tp),
            _shards(pp, dp * cp, min(inside, dp * cp)),
            _micro_batches(job, dp),
            _recomputes(job),
        ):
            count = job.global_batch // (dp * micro_batch)
            for vpp in _chunks(model, pp, count):
                layout = Layout(
                    tp, cp, pp, vpp, dp, ep, etp, micro_batch, tp > 1, shard, recompute
                )  # fmt: skip
                if layout_problems(model, cluster, job, layout):
                    continue
                if target_problems is None or not target_problems(model, job, layout):
                    found.append(layout)
    return found
