"""Seconds of the transfers between pipeline stages, over the links that they cross."""

import numpy as np
from numpy.typing import NDArray

from planner.cost.collectives import Group, collective_s, send_recv_s
from planner.cost.layer import Prices
from planner.cost.links import HEALTHY, Links, hop_links
from planner.layout.layout import Layout
from planner.schedule.passes import IntArray

FloatArray = NDArray[np.float64]


def hop_s(prices: Prices, layout: Layout, stride: int, links: Links = HEALTHY) -> float:
    """Seconds to hand one micro-batch to the stage ``stride`` slots away, over ``links``.

    Sequence parallelism sends shards as they are; Megatron's scatter/gather sends a share from each
    tensor-parallel rank and gathers it inside the node (PTD-P, section 4.1).
    """
    model, job, cluster = prices.model, prices.job, prices.cluster
    whole = 2 * layout.micro_batch * job.seq_len / layout.cp * model.hidden
    if layout.sequence_parallel:
        return send_recv_s(whole / layout.tp, stride, cluster, links)
    if layout.tp == 1 or not job.software.scatter_gather_pipeline:
        return send_recv_s(whole, stride, cluster, links)
    group = Group.place(layout.tp, 1, cluster)
    gather = collective_s("all_gather", whole, group, cluster)
    return send_recv_s(whole / layout.tp, stride, cluster, links) + gather


def hops_s(prices: Prices, layout: Layout, stage: IntArray, splits: bool) -> FloatArray:
    """Seconds of the hop behind each (virtual) stage but the last, ``[stages - 1]``.

    ``stage`` ``[chunks, pp]`` says which rank holds it. Without overlap ranks meet for
    every hop, and where the software then waits for its device, that wait is part of the hop. The
    zero-bubble runtime, which ``splits`` the backward pass, has no such wait.

    A stage of fewer GPUs than a scale-up domain has neighbours inside it and beyond.
    """
    size, domain = layout.tp * layout.cp * layout.dp, prices.cluster.domain_gpus
    ranks = np.argsort(stage, axis=None) % layout.pp
    slots = size * ranks
    first = slots // domain
    last = (slots + size - 1) // domain
    crosses = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
    if prices.on(0, layout.gpus) is not prices:
        seconds = _uneven_s(prices, layout, ranks, crosses)
    else:
        near, far = (hop_s(prices, layout, stride) for stride in (1, domain))
        seconds = np.where(crosses, far, near)
    software = prices.job.software
    if not (software.overlap_pipeline or splits):
        seconds = seconds + software.exchange_wait_s
    # where a V turns round, the next stage is on the same rank
    return np.where(ranks[1:] == ranks[:-1], 0.0, seconds)


def _uneven_s(
    prices: Prices, layout: Layout, ranks: IntArray, crosses: NDArray[np.bool_]
) -> FloatArray:
    """Seconds of each hop over the links it crosses: the slowest of the parallel pipelines'."""
    size, domain = layout.tp * layout.cp * layout.dp, prices.cluster.domain_gpus
    hops = []
    for sender, receiver, across in zip(ranks[:-1], ranks[1:], crosses, strict=True):
        if sender == receiver:
            hops.append(0.0)
            continue
        links = hop_links(prices.cluster, sender * size, receiver * size, size)
        both = (prices.on(int(rank) * size, size) for rank in (sender, receiver))
        hops.append(max(hop_s(own, layout, domain if across else 1, links) for own in both))
    return np.array(hops)
