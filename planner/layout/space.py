"""Every legal layout of a job on a number of GPUs."""

from collections.abc import Callable, Iterator
from itertools import product

from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.levels import levels
from planner.layout.limits import Limits, tiles
from planner.layout.rules import divisors, layout_problems
from planner.progress import counted
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

# Sequences shorter than this per rank are not worth splitting: their attention hides no exchange.
MIN_CONTEXT_TOKENS = 2048
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
UNEVEN_CHUNKS = (2, 3, 4)  # chunks per rank tried where no number of them gives equal chunks

Problems = Callable[[ModelSpec, JobSpec, Layout], list[str]]


def _degrees(
    model: ModelSpec, job: JobSpec, cluster: ClusterSpec, limits: Limits
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tp, cp, pp, dp) whose product is all GPUs.

    Tensor-parallel groups stay inside a scale-up domain and divide it, and groups of tp*cp tile the
    domains, unless the user names the degree.
    """
    gpus, domain = cluster.gpus, cluster.domain_gpus
    for tp in divisors(gpus):
        if model.heads % tp or model.ffn_hidden % tp or not limits.allows("tp", tp):
            continue
        if domain % tp and not (limits.names("tp")):
            continue
        for cp in divisors(gpus // tp):
            if cp > 1 and (job.seq_len % (2 * cp) or job.seq_len // cp < MIN_CONTEXT_TOKENS):
                continue
            free = limits.names("cp") or domain % tp > 0
            if not limits.allows("cp", cp) or not (free or tiles(tp * cp, domain)):
                continue
            for pp in divisors(gpus // (tp * cp)):
                dp = gpus // (tp * cp * pp)
                if pp > model.layers or job.global_batch % dp:
                    continue
                if limits.allows("pp", pp) and limits.allows("dp", dp):
                    yield tp, cp, pp, dp


def _experts(
    model: ModelSpec, tp: int, cp: int, dp: int, domain: int, limits: Limits
) -> list[tuple[int, int]]:
    """Return the (ep, etp) of the expert grid on the ranks of a stage, folded unless locked."""
    if model.moe is None:
        return [(1, 1)]
    pairs, ranks = [], tp * cp * dp
    free = limits.names("ep") or domain % tp > 0
    for etp in sorted({1, tp}) if limits.folding else [tp]:
        for ep in divisors(model.moe.experts):
            if ranks % (ep * etp) or model.moe.ffn_hidden % etp:
                continue
            if not limits.folding and (dp % ep or (cp > 1 and ep > 1)):
                continue
            if free or tiles(ep * etp, domain):
                pairs.append((ep, etp))
    return pairs


def _shards(pp: int, ranks: int, inside: int) -> list[Shard]:
    """Return the shardings worth trying: ZeRO 0, 1, and without a pipeline 2, 3, HSDP and levels.

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
            shards += levels(ranks, inside)
    return shards


def _recomputes(job: JobSpec) -> list[Recompute]:
    """Return what the layers do that are not recomputed in full; how many are is decided later.

    A fused attention keeps no scores to repeat, so selective recompute is nothing of its own.
    """
    software = job.software
    if software.flash_attention and not software.selective_recomputes_products:
        return [Recompute.NONE]
    return [Recompute.NONE, Recompute.SELECTIVE]


def _micro_batches(job: JobSpec, dp: int, limits: Limits) -> list[int]:
    """Return powers of two and three times them; others where the user names the number."""
    per_rank = job.global_batch // dp
    if limits.names("micro_batch"):
        return [mb for mb in divisors(per_rank) if limits.allows("micro_batch", mb)]
    return [mb for mb in MICRO_BATCHES if per_rank % mb == 0]


def _chunks(model: ModelSpec, pp: int, micro_batches: int) -> list[int]:
    """Return the chunks per rank: equal ones where any are.

    Equal also when embedding and head count as a layer each (Llama 3 405B: 126 layers in 128
    chunks); a prime number of layers (DeepSeek-V3: 61) gets a few unequal ones.
    """
    if pp == 1 or micro_batches % pp:
        return [1]
    layers = model.layers
    if layers % pp == 0:
        return divisors(layers // pp)
    if (layers + 2) % pp == 0:
        return divisors((layers + 2) // pp)
    return [1, *(chunks for chunks in UNEVEN_CHUNKS if pp * chunks <= layers)]


def layouts(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target_problems: Problems | None = None,
    limits: Limits = Limits(),
    schedules: tuple[str, ...] = (),
) -> list[Layout]:
    """Return every layout that is legal on all GPUs of ``cluster`` and executable by the target.

    Full recompute is not among them: ``memory.fit`` adds as much of it as a layout needs.
    ``limits`` are the user's locks; ``schedules`` those with two chunks per rank that the target
    runs besides 1F1B and interleaved 1F1B.
    """
    found, domain = [], cluster.domain_gpus
    grids = [*_degrees(model, job, cluster, limits)]
    for tp, cp, pp, dp in counted(grids, "grids, which layouts are legal"):
        # ranks of one scale-up domain in a dp-cp group
        inside = max(1, domain // (tp * cp)) * cp
        for (ep, etp), shard, micro_batch, recompute in product(
            _experts(model, tp, cp, dp, domain, limits),
            _shards(pp, dp * cp, min(inside, dp * cp)),
            _micro_batches(job, dp, limits),
            _recomputes(job),
        ):
            count = job.global_batch // (dp * micro_batch)
            orders = [("", vpp) for vpp in _chunks(model, pp, count)]
            orders += [(name, 2) for name in schedules if 1 < pp <= model.layers // 2]
            for schedule, vpp in orders:
                layout = Layout(
                    tp, cp, pp, vpp, dp, ep, etp, micro_batch, tp > 1, shard, recompute, schedule
                )  # fmt: skip
                if not limits.allows_layout(layout) or layout_problems(model, cluster, job, layout):
                    continue
                if target_problems is None or not target_problems(model, job, layout):
                    found.append(layout)
    return found
