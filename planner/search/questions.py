"""The search asked other questions: fewest GPUs, longest sequence, a plan on other nodes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.layout.layout import Layout
from planner.plan import Plan
from planner.search.answer import NoFit, recommend
from planner.search.recommend import Options, search
from planner.search.targets import Target
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

SEQUENCE_STEP = 1024  # tokens; doubled until nothing fits
FINENESS = 8  # parts into which the last doubling is cut
LONGEST_SEQUENCE = 2**24


@dataclass(frozen=True, slots=True)
class Tried:
    """One size that was asked about: GPUs or tokens, the least bytes of its fullest GPU.

    ``needed_bytes`` is 0 where no layout is legal.
    """

    size: int
    needed_bytes: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The answer, or none; and all that was tried, in rising size."""

    plan: Plan | None
    size: int
    limit_bytes: float
    tried: tuple[Tried, ...]


def _tried(
    size: int, model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target,
    options: Options,
) -> Tried:  # fmt: skip
    job = job.model_copy(update={"software": target.software})
    found = search(model, cluster, job, target, replace(options, keep=0))
    return Tried(size, found.least_bytes, 0 < found.least_bytes <= found.limit_bytes)


def part_of(cluster: ClusterSpec, gpus: int) -> ClusterSpec | None:
    """Return ``gpus`` GPUs of a cluster: a part of one node, or whole nodes; None for neither."""
    node = cluster.gpus_per_node
    if gpus % node == 0:
        nodes = gpus // node
        if nodes > 1 and cluster.scale_out is None:
            return None
        return cluster.model_copy(update={"nodes": nodes})
    if node % gpus:
        return None
    domain = min(cluster.domain_gpus, gpus)
    update = {"nodes": 1, "gpus_per_node": gpus, "domain_gpus": domain}
    return cluster.model_copy(update=update)


def min_gpus(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target, options: Options
) -> Found:
    """Return the fewest GPUs, at most those of ``cluster``, on which the job fits, and its plan.

    A part of a node has a number of GPUs that divides the node. Fewer GPUs than one that fits can
    fit too little in between (degrees must divide), so after doubling every number is tried.
    """
    sizes = [gpus for gpus in range(1, cluster.gpus + 1) if part_of(cluster, gpus)]

    def ask(gpus: int) -> Tried:
        part = part_of(cluster, gpus)
        assert part is not None
        return _tried(gpus, model, part, job, target, options)

    tried = _least(sizes, ask)
    fits = [one.size for one in tried if one.fits]
    part = part_of(cluster, min(fits)) if fits else None
    plan = recommend(model, part, job, target, options) if part else None
    return _found(plan, min(fits, default=0), cluster, options, tried)


def _least(sizes: list[int], ask: Callable[[int], Tried]) -> list[Tried]:
    """Ask about sizes until the least that fits is known: doubling, then all that were skipped."""
    tried: dict[int, Tried] = {}
    last, place = -1, 0
    while place < len(sizes):
        tried[sizes[place]] = ask(sizes[place])
        if tried[sizes[place]].fits:
            break
        if place == len(sizes) - 1:
            break
        last, place = place, min(2 * place + 1, len(sizes) - 1)
    if place < len(sizes) and tried[sizes[place]].fits:
        for size in sizes[last + 1 : place]:
            tried[size] = ask(size)
            if tried[size].fits:
                break
    return [tried[size] for size in sorted(tried)]


def max_seq(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target, options: Options
) -> Found:
    """Return the longest sequence that fits, to an eighth of itself, and its plan.

    The batch stays at as many sequences; learned positions are an upper limit.
    """
    top = model.positions or LONGEST_SEQUENCE

    def ask(tokens: int) -> Tried:
        longer = job.model_copy(update={"seq_len": tokens})
        return _tried(tokens, model, cluster, longer, target, options)

    tried: list[Tried] = []
    for tokens in _doubling(min(SEQUENCE_STEP, top), top):
        tried.append(ask(tokens))
        if not tried[-1].fits:
            break
    best = max((one.size for one in tried if one.fits), default=0)
    ceiling = tried[-1].size
    step = max(SEQUENCE_STEP // FINENESS, (ceiling - best) // FINENESS)
    steps = [] if tried[-1].fits else list(range(best + step, ceiling, step))
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        tried.append(ask(steps[middle]))
        if tried[-1].fits:
            best, low = steps[middle], middle + 1
        else:
            high = middle
    longest = job.model_copy(update={"seq_len": best})
    plan = recommend(model, cluster, longest, target, options) if best else None
    return _found(plan, best, cluster, options, sorted(tried, key=lambda one: one.size))


def _doubling(start: int, top: int) -> Iterator[int]:
    while start < top:
        yield start
        start *= 2
    yield top


def _found(
    plan: Plan | NoFit | None, size: int, cluster: ClusterSpec, options: Options, tried: list[Tried]
) -> Found:
    limit = cluster.gpu.memory_bytes * (1 - options.keep_free)
    return Found(plan if isinstance(plan, Plan) else None, size, limit, tuple(tried))


@dataclass(frozen=True, slots=True)
class Replanned:
    """The best answer on other nodes, and the best that cuts weights as the old plan does.

    The second needs no new checkpoint layout: only data parallelism and micro-batch change. It is
    None where no such layout is legal or fits.
    """

    best: Plan | NoFit
    same_cut: Plan | None


def replan(plan: Plan, nodes: int, target: Target, options: Options) -> Replanned:
    """Return the job of ``plan`` planned anew on ``nodes`` nodes of its cluster."""
    cluster = plan.cluster.model_copy(update={"nodes": nodes})
    old: Layout = plan.to_layout()
    best = recommend(plan.model, cluster, plan.job, target, options)
    names = ("tp", "pp", "vpp", "ep", "etp")
    fixed = tuple((name, getattr(old, name)) for name in names)
    kept = replace(options, limits=replace(options.limits, fixed=fixed), keep=1)
    same = recommend(plan.model, cluster, plan.job, target, kept)
    return Replanned(best, same if isinstance(same, Plan) else None)
