"""What slow machines cost."""

from math import ceil

from planner.layout.layout import Layout
from planner.spec.cluster import ClusterSpec
from planner.spec.job import SoftwareSpec


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
