"""A lower bound on the step time of every layout, by arrays.

Any schedule keeps three things: each rank computes all its micro-batches; before the last rank can
begin, the first micro-batch has passed all earlier ranks; after its last backward pass, the
gradient passes them again. The slowest rank is at least the average one. So the step is at least

    m * work / p + (p - 1) * (least chunk forward + backward)

with ``work`` the seconds of all layers, embedding and head for one micro-batch. Transfers, gradient
reduction and the optimizer only add to it (property test: never above the simulated time).
"""

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import PassCost, Prices
from planner.layout.layout import Layout
from planner.layout.stages import split_layers

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
                min(split_layers(model.layers, layout.pp * layout.vpp)),
            )
            for layout in layouts
        ]
    ).reshape(len(layouts), 6)
    dense, moe, ends, micro_batches, stages, least_layers = columns.T
    work = (model.layers - moe_layers) * dense + moe_layers * moe + ends
    least = np.minimum(dense, moe) if 0 < moe_layers < model.layers else dense + moe
    fill = (stages - 1) * least_layers * least
    return np.asarray(micro_batches * work / stages + fill)
