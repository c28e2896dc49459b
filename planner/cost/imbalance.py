"""What slow machines cost, and what uneven routing does."""

from collections.abc import Sequence
from math import ceil

from planner.layout.layout import Layout
from planner.model.operations import Collective, Elementwise, Gemm, Operation
from planner.spec.cluster import ClusterSpec
from planner.spec.job import RoutingSpec, SoftwareSpec


def slow_node_stall_s(
    software: SoftwareSpec, layout: Layout, cluster: ClusterSpec, micro_batches: int
) -> float:
    """Seconds that a pipeline waits in one step for messages through a slow node.

    An estimate is a median: the stall counts when a slow node among those used is more likely than
    not, ``1 - (1 - share)^nodes > 1/2``. Each micro-batch passes the node's one or two pipeline
    hops forward and backward, and blocking sends put that on every rank's path.
    """
    if not software.slow_node_share or layout.pp == 1:
        return 0.0
    if layout.tp * layout.cp * layout.dp < cluster.domain_gpus:
        return 0.0
    nodes = ceil(layout.gpus / cluster.gpus_per_node)
    if 1 - (1 - software.slow_node_share) ** nodes <= 0.5:
        return 0.0
    hops = min(layout.pp - 1, 2)
    return micro_batches * 2 * hops * software.slow_node_message_s


def unbalanced(operations: Sequence[Operation], routing: RoutingSpec) -> list[Operation]:
    """Return the operations of an expert block as the rank sees them that has most to do.

    Products of experts, what lies between them and the exchange inside an expert grow with the
    tokens of the fullest rank, the all-to-alls with those that a rank receives.
    """
    found: list[Operation] = []
    inside = False  # between the first and the last product of the experts
    for operation in operations:
        if isinstance(operation, Gemm) and operation.grouped:
            inside = not inside
            operation = operation._replace(m=operation.m * routing.fullest_rank)
        elif isinstance(operation, Elementwise) and inside:
            operation = operation._replace(moved_bytes=operation.moved_bytes * routing.fullest_rank)
        elif isinstance(operation, Collective) and operation.axis in ("ep", "etp"):
            factor = routing.exchanged if operation.axis == "ep" else routing.fullest_rank
            operation = operation._replace(message_bytes=operation.message_bytes * factor)
        found.append(operation)
    return found
