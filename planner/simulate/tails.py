"""What a rank does after its last pass: gradients, optimizer, weights for the next step."""

from dataclasses import replace
from typing import NamedTuple

from planner.cost.data_parallel import sync, tied_table_s, update_s
from planner.cost.layer import Prices
from planner.cost.offload import host_update
from planner.cost.overlap import beside_s
from planner.cost.sharded import gradient_copies, weight_bytes, weight_refresh
from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, trained_local
from planner.layout.stages import StageLayers
from planner.schedule.kinds import Kind


class RankTail(NamedTuple):
    """Exposed seconds of one rank after its last pass; weights are gathered for the next step.

    ``offload_s``: gradients, update and weights on the host's side, beyond ``update_s``.
    """

    gradients_s: float
    offload_s: float
    update_s: float
    weights_s: float

    @property
    def total(self) -> float:
        """Seconds from the last pass to the end of the step."""
        return sum(self)


def _gradient_tail_s(
    prices: Prices, layout: Layout, local: LocalParameters, last_s: float
) -> float:
    """Seconds of gradient reduction after the last backward pass, which took ``last_s``."""
    software, cluster = prices.job.software, prices.cluster
    kind, parts, bytes_each = gradient_copies(local, layout, cluster, software)
    found = sync(kind, parts, bytes_each, software.bucket_bytes, cluster)
    late = software.reduces_after_pipeline and layout.pp > 1
    if late or not software.overlap_grad_reduce:
        return found.seconds
    return found.one_s + beside_s(found.seconds - found.one_s, last_s, found.lost)


def _weight_gather_s(
    prices: Prices, layout: Layout, local: LocalParameters, first_s: float
) -> float:
    """Seconds of gathering updated weights that the first forward pass does not hide."""
    software, parts = prices.job.software, weight_refresh(local, layout, prices.cluster)
    if parts is None:
        return 0.0
    bucket = software.gather_bucket_bytes
    found = sync("all_gather", parts, weight_bytes(software), bucket, prices.cluster)
    if not software.overlap_param_gather:
        return found.seconds
    return found.one_s + beside_s(found.seconds - found.one_s, first_s, found.lost)


def rank_tail(
    prices: Prices,
    layout: Layout,
    kind: Kind,
    layers: StageLayers,
    forward_s: float,
    backward_s: float,
) -> RankTail:
    """Return what a rank that holds ``layers`` does after its last pass.

    ``forward_s`` and ``backward_s`` are the seconds of its passes of one micro-batch.
    """
    job, model, cluster = prices.job, prices.model, prices.cluster
    copies = replace(layout, dp=layout.dp * kind.pipelines)  # each pipeline has its own stages
    local = trained_local(model, job, layers, layout)
    gradients = _gradient_tail_s(prices, copies, local, backward_s)
    # where weight gradients are passes, the table's come first and are added up behind the others
    if not kind.splits and layers.embedding != layers.head:
        gradients += tied_table_s(model, job, layout, cluster)
    weights = _weight_gather_s(prices, layout, local, forward_s)
    update, offload = update_s(local, layout, job, model, cluster), 0.0
    if layout.offload_optimizer:
        passes_s = layout.micro_batches(job.global_batch) * (forward_s + backward_s)
        out, host = host_update(local, layout, job, cluster, backward_s, passes_s)
        update *= 1 - layout.offload_optimizer
        offload = out + max(0.0, host - update)
    return RankTail(gradients, offload, update, weights)
