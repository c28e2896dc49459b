"""The chains of passes that a step is as long as, as counts: linear in the seconds of the stages.

A pipeline takes as long as the longest chain of passes and transfers through its task graph. Which
passes are on a chain does not depend on how long they take, so every chain bounds the time of every
split of the layers from below. The simulator finds the longest one for given seconds.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.schedule.kinds import Kind
from planner.simulate.pipeline import graph_times

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Chain(NamedTuple):
    """How often each pass and hop is on a chain that ends on ``rank``.

    ``passes`` ``[stages, 3]``: forward, backward and weight pass of each virtual stage; ``hops``
    ``[stages - 1]``: the transfer behind each but the last. Where a rank's time is counted from its
    own first pass, what comes before is taken off.
    """

    passes: FloatArray
    hops: FloatArray
    rank: int

    def seconds(self, stage_s: FloatArray, send_s: FloatArray) -> float:
        """Return the length for stages of ``stage_s`` ``[stages, 3]`` seconds."""
        return float((self.passes * stage_s).sum() + self.hops @ send_s)


def plain_chains(kind: Kind, of_rank: IntArray, micro_batches: int) -> list[Chain]:
    """Return chains that every order has; ``of_rank`` ``[chunks, ranks]`` as ``stage_of``.

    One micro-batch forward through all stages and back; and for each rank the way of the first
    micro-batch to it, all its passes, and, where the last one is a backward pass, the way back.
    """
    ranks, stages = of_rank.shape[1], of_rank.size
    once = np.zeros((stages, 3))
    once[:, :2] = 1
    chains = [Chain(once, np.full(stages - 1, 2.0), int(of_rank[0, 0]))]
    for rank in range(ranks):
        passes, hops = np.zeros((stages, 3)), np.zeros(stages - 1)
        passes[of_rank[:, rank]] = micro_batches
        if not kind.own_pace:
            passes[:rank, 0] += 1
            hops[:rank] += 1
        chains.append(Chain(passes, hops, rank))
        if not kind.splits:
            back, back_hops = passes.copy(), hops.copy()
            back[:rank, 1] += 1
            back_hops[:rank] += 1
            chains.append(Chain(back, back_hops, 0))
    return chains


def longest_chain(
    arguments: dict[str, Any], kind: Kind, tails_s: FloatArray
) -> tuple[float, Chain]:
    """Return the seconds until the last rank has done its passes and tail, and what takes them.

    ``arguments`` are those of ``pipeline_time``, for one candidate; ``tails_s`` ``[ranks]``.
    """
    times = graph_times(arguments)
    made, graph = times.tasks, times.tasks.graph
    send_s = np.asarray(arguments["send_s"], dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(arguments["forward_s"])[:-1] + send_s)])
    starts_s = sums[: len(tails_s)] if kind.own_pace else np.zeros(len(tails_s))
    last = made.task[:, -1]
    ends_s = times.end_s[last] - starts_s + tails_s
    rank = int(ends_s.argmax())
    # of the edges into each task the one that arrives last: a stable sort writes it last
    by_arrival = np.argsort(times.end_s[graph.tails] + times.lag_s, kind="stable")
    binding = np.full(graph.tasks, -1)
    binding[graph.heads[by_arrival]] = by_arrival
    edge_into, tail_of = binding.tolist(), graph.tails.tolist()
    tasks, edges = [int(last[rank])], []
    while (edge := edge_into[tasks[-1]]) >= 0:
        edges.append(edge)
        tasks.append(tail_of[edge])
    stages = len(sums)
    columns = (made.forward, made.backward, made.weight)
    passes = np.stack([_counts(column[tasks], stages) for column in columns], axis=-1)
    if times.held:  # passes that hand on hold their rank for the transfer
        hops = passes[:-1, 0] + passes[1:, 1]
    else:
        hops = _counts(made.boundary[edges], stages)[:-1]
    if kind.own_pace:
        passes[:rank, 0] -= 1
        hops[:rank] -= 1
    return float(ends_s[rank]), Chain(passes, hops, rank)


def _counts(stage: IntArray, stages: int) -> FloatArray:
    """Return how often each stage is named; -1 names none."""
    return np.bincount(np.asarray(stage)[np.asarray(stage) >= 0], minlength=stages).astype(float)
