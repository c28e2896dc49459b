"""A lower bound on the step time of every layout, by arrays, however its layers are split.

``work`` is the seconds of all layers, embedding and head for one micro-batch, ``m`` the
micro-batches, ``p`` the stages. Any schedule keeps three things: each rank computes all its
micro-batches; before a rank can begin, the first micro-batch has passed all earlier ranks; after
its last backward pass, the gradient passes them again. With one chunk per rank that says, for
every rank ``i``,

    time >= m * work_i + sum of work_j over j < i

and the split that makes the largest of these least has ``work / (1 - (1 - 1/m)**p)``. With more
chunks a pass through the earlier ranks may be as short as one layer on each:

    time >= m * work / p + (p - 1) * (least layer forward + backward)

Transfers, gradient reduction and the optimizer only add to it (property test: never above the
simulated time, for any split).
"""

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import PassCost, Prices
from planner.layout.layout import Layout

FloatArray = NDArray[np.float64]


def _seconds(cost: PassCost) -> float:
    return cost.forward.total + cost.backward.total


def lower_bounds_s(prices: Prices, layouts: list[Layout]) -> FloatArray:
    """Return a lower bound for each layout, ``[layouts]`` seconds."""
    model, job = prices.model, prices.job
    moe_layers = model.moe_layers
    columns = np.array(
        [
            (
                _seconds(prices.layer(layout, False)) if moe_layers < model.layers else 0.0,
                _seconds(prices.layer(layout, True)) if moe_layers else 0.0,
                _seconds(prices.embedding(layout)) + _seconds(prices.head(layout)),
                layout.micro_batches(job.global_batch),
                layout.pp,
                layout.vpp,
            )
            for layout in layouts
        ]
    ).reshape(len(layouts), 6)
    dense, moe, ends, micro_batches, stages, chunks = columns.T
    work = (model.layers - moe_layers) * dense + moe_layers * moe + ends
    plain = work / (1 - (1 - 1 / micro_batches) ** stages)
    least = np.minimum(dense, moe) if 0 < moe_layers < model.layers else dense + moe
    interleaved = micro_batches * work / stages + (stages - 1) * least
    return np.asarray(np.where(chunks == 1, plain, interleaved))
