"""What runs beside and inside the passes of a timeline: streams that a reader of a trace looks for.

All of it is what the step time was added up from. A pass says how much of it is compute and how
much each group's communication adds (``pass_parts``). Only what compute does not hide is known of
tensor, context and expert parallelism: it is drawn as one piece at the end of its pass, though in a
run it lies between the kernels. Gathers of sharded weights, gradient buckets and copies to the host
are drawn in full, with the layer or pass that they run behind.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from planner.cost.data_parallel import sync
from planner.cost.layer import Prices, Seconds
from planner.cost.sharded import (
    Exchange,
    gradient_copies,
    layer_exchanges,
    weight_bytes,
    weight_refresh,
)
from planner.layout.layout import Layout, Recompute
from planner.layout.local import stage_local, trained_local
from planner.layout.stages import StageLayers, together
from planner.simulate.copies import copies
from planner.simulate.slices import (
    BUCKETS,
    CONTEXT,
    DATA,
    EXPERT,
    LAYERS,
    OFFLOAD,
    PREFETCH,
    TAIL,
    TENSOR,
    Slice,
)
from planner.simulate.step import StageCost, StepCosts, stage_cost

EXPOSED = {"tp": TENSOR, "cp": CONTEXT, "ep": EXPERT, "dp": DATA, "offload": OFFLOAD}
SHOWN_MICRO_BATCHES = 4  # layer by layer; the later ones are alike
MOST_BUCKETS = 100
Parts = dict[tuple[int, int, str], dict[str, float]]


def pass_parts(step: StepCosts) -> Parts:
    """Return the seconds of each pass by part, for every (rank, chunk, F or B or W)."""
    return {
        (rank, chunk, kind): parts
        for rank, held in enumerate(step.held)
        for chunk, stage in enumerate(held)
        for kind, parts in _parts(step.costs[stage]).items()
    }


def details(
    prices: Prices, layout: Layout, step: StepCosts, slices: Iterable[Slice]
) -> tuple[Slice, ...]:
    """Return what runs beside the passes and tails in ``slices``."""
    parts = pass_parts(step)
    found: list[Slice] = []
    passes = [piece for piece in slices if piece.kind in ("F", "B", "W")]
    tails = [piece for piece in slices if piece.kind in TAIL]
    for piece in passes:
        found += _exposed(piece, parts[piece.rank, piece.chunk, piece.kind])
    if layout.pp == 1 and layout.shard.gradients > 1:
        found += _layer_by_layer(prices, layout, step, passes)
    found += _synchronised(prices, layout, step, passes, tails)
    found += copies(prices, layout, step, passes, tails)
    return tuple(found)


def _parts(cost: StageCost) -> dict[str, dict[str, float]]:
    """Return the parts of F, B and W of one stage that take any time."""
    again_s = cost.recompute.compute
    rows = {"F": (cost.forward, 0.0), "B": (cost.backward, again_s), "W": (cost.weight, 0.0)}
    found = {}
    for kind, (seconds, recompute) in rows.items():
        parts = seconds._asdict() | {"compute": seconds.compute - recompute, "recompute": recompute}
        found[kind] = {name: value for name, value in parts.items() if value > 0}
    return found


def _exposed(piece: Slice, parts: dict[str, float]) -> Iterator[Slice]:
    """Yield the communication that a pass does not hide, one group after the other at its end."""
    end_s = piece.end_s
    for part, stream in reversed(EXPOSED.items()):
        if seconds := parts.get(part, 0.0):
            yield piece._replace(
                stream=stream, name=f"exposed in {piece.name}", kind="exposed",
                start_s=end_s - seconds, end_s=end_s,
            )  # fmt: skip
            end_s -= seconds


class _Layer(NamedTuple):
    """One layer of a rank that holds sharded weights: its own cost, and what it exchanges."""

    name: str
    cost: StageCost
    exchanges: tuple[Exchange, ...]


def _layers(prices: Prices, layout: Layout, stage: StageLayers) -> list[_Layer]:
    """Return the layers of ``stage`` from first to last; recomputed ones come first."""
    model, software = prices.model, prices.job.software
    found: list[_Layer] = []
    kinds = stage.kinds(layout.recompute)
    for count, moe, recompute in sorted(kinds, key=lambda kind: kind[2] is not Recompute.FULL):
        again = recompute is Recompute.FULL and layout.recompute is not Recompute.FULL
        one = StageLayers(int(not moe), int(moe))
        if again:
            one = StageLayers(0, 0, dense_recomputed=one.dense, moe_recomputed=one.moe)
        local = stage_local(model, one, layout.tp, layout.ep, layout.etp)
        exchanges = layer_exchanges(local, layout, prices.cluster, software)
        if prices.job.lora_rank:
            exchanges = tuple(each for each in exchanges if each.tensor == "weights")
        cost = stage_cost(prices, layout, one)
        found += [
            _Layer(f"layer {len(found) + number}", cost, exchanges) for number in range(count)
        ]
    return found


def _layer_by_layer(
    prices: Prices, layout: Layout, step: StepCosts, passes: list[Slice]
) -> Iterator[Slice]:
    """Yield the layers of the first micro-batches, and the exchanges of weights and gradients.

    While a layer computes, the weights of the next one are gathered and, on the way back, the
    gradients of the one before are scattered.
    """
    prices = prices.on(0, layout.gpus)
    layers = _layers(prices, layout, step.stages[0])
    first = {"F": prices.embedding(layout).forward, "B": prices.head(layout).backward}
    for piece in passes:
        if piece.micro_batch >= SHOWN_MICRO_BATCHES or piece.kind not in first:
            continue
        forward = piece.kind == "F"
        now = piece.start_s + first[piece.kind].total
        for layer in layers if forward else reversed(layers):
            seconds: Seconds = layer.cost.forward if forward else layer.cost.backward
            end_s = now + seconds.total - seconds.offload
            name = f"{layer.name}, {piece.name}"
            yield piece._replace(stream=LAYERS, name=name, kind="layer", start_s=now, end_s=end_s)
            at = now
            for exchange in layer.exchanges:
                if exchange.phase == ("forward" if forward else "backward"):
                    till = min(at + exchange.seconds(prices.cluster), end_s)
                    yield piece._replace(
                        stream=PREFETCH, name=f"{exchange.kind} {exchange.tensor}, {name}",
                        kind=exchange.kind, start_s=at, end_s=till,
                    )  # fmt: skip
                    at = till
            now = end_s


def _synchronised(
    prices: Prices, layout: Layout, step: StepCosts, passes: list[Slice], tails: list[Slice]
) -> Iterator[Slice]:
    """Yield gradient and weight buckets: behind the last backward and the first forward pass.

    What of them is exposed is a slice of its own, after the passes.
    """
    software, size = prices.job.software, layout.gpus // layout.pp
    edges = _edges(passes)
    for tail in tails:
        rank = tail.rank
        own = prices.on(rank * size, size)
        layers = together([step.stages[stage] for stage in step.held[rank]])
        local = trained_local(prices.model, prices.job, layers, layout)
        exposed_s = tail.end_s - tail.start_s
        if tail.kind == "gradient reduction":
            kind, shares, bytes_each = gradient_copies(local, layout, own.cluster, software)
            bucket = software.bucket_bytes
            total_s, one_s, _ = sync(kind, shares, bytes_each, bucket, own.cluster)
            end_s = edges[rank][1] + exposed_s
            start_s = end_s - max(total_s, exposed_s)
        elif tail.kind == "weight gathering":
            refreshed = weight_refresh(local, layout, own.cluster)
            if refreshed is None:
                continue
            kind, bucket = "all_gather", software.gather_bucket_bytes
            each = weight_bytes(software)
            total_s, one_s, _ = sync(kind, refreshed, each, bucket, own.cluster)
            start_s = edges[rank][0]
            end_s = start_s + max(0.0, total_s - exposed_s)
        else:
            continue
        if one_s and end_s > start_s:
            yield from _buckets(tail, kind, start_s, end_s, total_s / one_s)


def _edges(passes: list[Slice]) -> dict[int, tuple[float, float]]:
    """Return when the first pass of each rank begins and its last one ends."""
    found: dict[int, tuple[float, float]] = {}
    for piece in passes:
        first, last = found.get(piece.rank, (piece.start_s, piece.end_s))
        found[piece.rank] = min(first, piece.start_s), max(last, piece.end_s)
    return found


def _buckets(
    tail: Slice, kind: str, start_s: float, end_s: float, buckets: float
) -> Iterator[Slice]:
    count = max(1, min(MOST_BUCKETS, round(buckets)))
    each = (end_s - start_s) / count
    for number in range(count):
        at = start_s + number * each
        name = f"{kind} bucket {number + 1} of {count}"
        yield Slice(tail.rank, BUCKETS, name, kind, at, at + each)
