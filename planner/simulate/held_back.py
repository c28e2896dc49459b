"""Weight gradients held back: how many ``zb_2p`` has room for."""

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.memory.activations import layer_bytes
from planner.memory.moments import job_shape
from planner.model.operations import ACTIVATION_BYTES, Gemm

FloatArray = NDArray[np.float64]


def weight_delay(
    prices: Prices,
    layout: Layout,
    forward_s: FloatArray,
    backward_s: FloatArray,
    weight_s: FloatArray,
    hops_s: FloatArray,
) -> int:
    """Return how many weight gradients the last rank of ``zb_2p`` holds back.

    As many as fill the time from the first rank to the last and back, ``(p - 1) (F + B) / W`` on
    equal stages, at least those of ``zb_h2`` and at most what fits beside its one pass into the
    memory of ``2 p`` passes. All arrays ``[stages]`` seconds, hops one fewer.
    """
    there_and_back = forward_s[:-1].sum() + backward_s[:-1].sum() + 2 * hops_s.sum()
    wanted = round(there_and_back / weight_s[-1]) if weight_s[-1] else 0
    room = (2 * layout.pp - 1) / weight_share(prices, layout)
    return int(max(min(wanted, room), 2 * (layout.pp - 1)))


def weight_share(prices: Prices, layout: Layout) -> float:
    """Return what one layer keeps for its weight gradients, of what it keeps from its forward pass.

    A weight gradient multiplies the input of its layer by the gradient of its output.
    """
    model, job = prices.model, prices.job
    moe = model.is_moe_layer(model.layers - 1)
    kept = layer_bytes(model, job_shape(job, layout), job.software, layout.recompute, moe)
    operations, _ = prices.operations("moe" if moe else "dense", layout)
    products = [op for op in operations if isinstance(op, Gemm) and op.weight]
    return ACTIVATION_BYTES * sum(op.copies * op.m * (op.k + op.n) for op in products) / kept
