"""A lower bound on the step time of every layout, by arrays, however its layers are split.

``work`` is the seconds of all layers, embedding and head for one micro-batch, ``m`` the
micro-batches, ``p`` the stages. Any schedule keeps three things: each rank computes all its
micro-batches; before a rank can begin, the first micro-batch has passed all earlier ranks; after
its last backward pass, the gradient passes them again. With one chunk per rank that says, for
every rank ``i``,

    time >= m * work_i + sum of work_j over j < i

and the split that makes the largest of these least has ``work / (1 - (1 - 1/m)**p)``. With more
chunks a pass through an earlier rank may be as short as its least layer, forward and backward:

    time >= m * work_i + i * least

of which the mean over ranks is ``m * work / p + (p - 1) / 2 * least``. Layers are indivisible: the
``k``-th layer of rank ``i`` cannot be had for less than ``m * k * least + i * least``, so of all
these numbers the one that is as large as there are layers is a bound, too. Where the backward pass
is split, ranks may end as they began, one after the other, and the work alone is left.

Transfers, gradient reduction and the optimizer only add to it (property test: never above the
simulated time, for any split).
"""

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import PassCost, Prices
from planner.layout.layout import Layout, Recompute
from planner.schedule.kinds import kind_of, schedule_name

FloatArray = NDArray[np.float64]


def _seconds(cost: PassCost) -> float:
    return cost.forward.total + cost.backward.total + cost.weight.total


def _block_s(prices: Prices, layout: Layout, block: str) -> float:
    """Return the seconds of one block for one micro-batch, nothing recomputed in full."""
    if kind_of(schedule_name(layout)).splits:
        kind = layout.recompute if block in ("dense", "moe") else Recompute.NONE
        return _seconds(prices.split_backward(block, layout, kind))
    if block in ("dense", "moe"):
        return _seconds(prices.layer(layout, block == "moe"))
    return _seconds((prices.embedding if block == "embedding" else prices.head)(layout))


def lower_bounds_s(prices: Prices, layouts: list[Layout]) -> FloatArray:
    """Return a lower bound for each layout, ``[layouts]`` seconds."""
    model, job = prices.model, prices.job
    moe_layers = model.moe_layers
    columns = np.array(
        [
            (
                _block_s(prices, layout, "dense") if moe_layers < model.layers else 0.0,
                _block_s(prices, layout, "moe") if moe_layers else 0.0,
                _block_s(prices, layout, "embedding"),
                _block_s(prices, layout, "head"),
                layout.micro_batches(job.global_batch),
                layout.pp,
                layout.vpp,
                kind_of(schedule_name(layout)).splits,
            )
            for layout in layouts
        ]
    ).reshape(len(layouts), 8)
    dense, moe, embedding, head, micro_batches, stages, chunks, splits = columns.T
    work = (model.layers - moe_layers) * dense + moe_layers * moe + embedding + head
    plain = work / (1 - (1 - 1 / micro_batches) ** stages)
    least = np.minimum(dense, moe) if 0 < moe_layers < model.layers else dense + moe
    alone = micro_batches * work / stages
    interleaved = alone + (stages - 1) / 2 * least
    bound = np.where(splits > 0, alone, np.where(chunks == 1, plain, interleaved))
    whole = [
        _whole_layers_s(model.layers, *row)
        for row in zip(least, embedding, head, micro_batches, stages, chunks, splits, strict=True)
    ]
    bound = np.maximum(bound, np.array(whole).reshape(len(layouts)))
    return np.asarray(bound / prices.cluster.gpu.ranks_per_core)


def _whole_layers_s(
    layers: int,
    least_s: float,
    embedding_s: float,
    head_s: float,
    micro_batches: float,
    stages: float,
    chunks: float,
    splits: float,
) -> float:
    """Return the bound of indivisible layers, each as short as the shortest kind."""
    count = int(stages)
    if count == 1 or splits:  # a split backward pass may put head and embedding on any rank
        return float(micro_batches * least_s * -(-layers // count))
    # ranks that a micro-batch passes first; the first one may hold the embedding alone
    before = np.arange(count) if count * chunks <= layers else np.maximum(0, np.arange(count) - 1)
    own_s = before * least_s
    own_s[0] += micro_batches * embedding_s
    own_s[-1] += micro_batches * head_s
    # no best split gives one rank more than all but ends would need
    most = np.arange(1, -(-layers // count) + 2 + int((embedding_s + head_s) // least_s))
    times = (own_s[:, None] + micro_batches * least_s * most).ravel()
    return float(np.partition(times, layers - 1)[layers - 1]) if len(times) >= layers else 0.0
