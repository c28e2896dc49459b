"""Compute of one block by kind of work: which seconds are products, attention, memory traffic.

The operations and their prices are those of ``Prices``; here they are only sorted.
"""

from collections.abc import Iterable
from typing import NamedTuple

from planner.cost.layer import Prices, repeated
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.model.adapters import trained_backward
from planner.model.flops import operation_flops
from planner.model.operations import Collective, Gemm, Operation, is_attention


class Kinds(NamedTuple):
    """Seconds of compute by kind, and the FLOPs that recompute repeats, on one rank.

    The seconds are those of one forward and backward pass without what is recomputed.
    """

    products_s: float = 0.0
    attention_s: float = 0.0
    memory_bound_s: float = 0.0
    repeated_flops: float = 0.0

    @property
    def compute_s(self) -> float:
        """Seconds of all kinds."""
        return self.products_s + self.attention_s + self.memory_bound_s

    def plus(self, other: "Kinds", times: float = 1.0) -> "Kinds":
        """Return the sum with ``times`` of another."""
        return Kinds(*(a + times * b for a, b in zip(self, other, strict=True)))


def _sorted(prices: Prices, operations: Iterable[Operation]) -> Kinds:
    products, attention, memory_bound = 0.0, 0.0, 0.0
    for operation in operations:
        if isinstance(operation, Collective):
            continue
        seconds = prices.compute_s(operation)
        if is_attention(operation):
            attention += seconds
        elif isinstance(operation, Gemm):
            products += seconds
        else:
            memory_bound += seconds
    return Kinds(products, attention, memory_bound)


def block_kinds(prices: Prices, block: str, layout: Layout, recompute: Recompute) -> Kinds:
    """Return the kinds of one micro-batch of a block (dense, moe, embedding or head)."""
    software = prices.job.software
    operations, core = prices.operations(block, layout)
    reverse = [part for operation in operations for part in trained_backward(operation, prices.job)]
    again = repeated(operations, core, recompute, software)
    found = _sorted(prices, (*operations, *reverse))
    return found._replace(repeated_flops=sum(operation_flops(one) for one in again))


def stage_kinds(prices: Prices, layout: Layout, stage: StageLayers) -> Kinds:
    """Return the kinds of one micro-batch of one (virtual) stage."""
    total = Kinds()
    for count, moe_layer, recompute in stage.kinds(layout.recompute):
        block = "moe" if moe_layer else "dense"
        total = total.plus(block_kinds(prices, block, layout, recompute), count)
    for block, present in (("embedding", stage.embedding), ("head", stage.head)):
        if present:
            total = total.plus(block_kinds(prices, block, layout, Recompute.NONE))
    return total
