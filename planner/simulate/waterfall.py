"""From the card's peak to the step time: what each cause adds, in seconds that add up.

The first part is the time that the model's FLOPs take at dense peak, spread evenly over all GPUs;
``flops.py`` defines them, so the first part divided by the step time is MFU. Passes are means over
the pipeline ranks. The busiest rank then exceeds that mean (imbalance), and what it neither
computes nor spends on its own end of the step is waiting: transfers between stages, as far as the
step is shorter without them, slow nodes, and the bubble.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.cost.compute import half_precision_peak, mean_peak
from planner.cost.kinds import Kinds, stage_kinds
from planner.cost.layer import Prices, Seconds
from planner.model.flops import attention_flops_per_token, model_flops_per_token
from planner.simulate.cores import on_shared_cores_s
from planner.simulate.pipeline import pipeline_time
from planner.simulate.step import (
    StageCost,
    StepCosts,
    StepEstimate,
    ends_s,
    pipeline_arguments,
    step_costs,
)
from planner.simulate.tails import RankTail

IDEAL, PRECISION = "ideal", "precision"


@dataclass(frozen=True, slots=True)
class Waterfall:
    """One step by cause. ``parts_s`` begins with ``ideal`` and adds up to ``step_time_s``.

    ``precision`` is negative where products run in 8 or 4 bits: their peak is higher than the one
    that MFU divides by. ``hfu`` counts recomputed FLOPs, ``mfu`` does not.
    """

    parts_s: dict[str, float]
    step_time_s: float
    mfu: float
    hfu: float
    peak_flops: float

    def mfu_at(self, step_time_s: float) -> float:
        """Return MFU of a step that takes another time."""
        return self.mfu * self.step_time_s / step_time_s

    def hfu_at(self, step_time_s: float) -> float:
        """Return HFU of a step that takes another time."""
        return self.hfu * self.step_time_s / step_time_s


def waterfall(prices: Prices, step: StepEstimate) -> Waterfall:
    """Return where the time of an estimated step goes."""
    layout, job = step.layout, prices.job
    costs = step_costs(prices, layout, step.split)
    work = Kinds()
    size = layout.gpus // layout.pp
    for rank, held in enumerate(costs.held):
        own = prices.on(rank * size, size)
        for stage in held:
            work = work.plus(stage_kinds(own, layout, costs.stages[stage]))
    on_each_rank = costs.micro_batches / layout.pp
    mean, again_s = _mean_passes(costs.costs, on_each_rank)
    ideal = _ideal(prices, layout.gpus)
    parts = {IDEAL: ideal.products_s + ideal.attention_s}
    gain = _eight_bit_share(prices) * ideal.products_s
    if gain:
        parts[PRECISION] = -gain
    parts |= {
        "products": on_each_rank * work.products_s - (ideal.products_s - gain),
        "attention": on_each_rank * work.attention_s - ideal.attention_s,
        "memory_bound": on_each_rank * work.memory_bound_s,
        "recompute": again_s,
        "tensor_parallel": mean.tp,
        "context_parallel": mean.cp,
        "expert_parallel": mean.ep,
        "host": mean.host,
    }
    parts |= _ends_and_waits(prices, step, costs, mean)
    parts["bubble"] = step.step_time_s - sum(parts.values())
    flops = (
        model_flops_per_token(prices.model, job.seq_len, job.lora_rank > 0)
        * job.global_batch
        * job.seq_len
    )
    repeated = work.repeated_flops * costs.micro_batches * (layout.gpus // layout.pp)
    return Waterfall(
        parts, step.step_time_s, step.mfu, step.mfu * (1 + repeated / flops), step.peak_flops
    )


def _ideal(prices: Prices, gpus: int) -> Kinds:
    """Return seconds of the model's FLOPs at dense half-precision peak, on every GPU."""
    job = prices.job
    tokens = job.global_batch * job.seq_len
    peak = gpus * mean_peak(prices.cluster)
    attention = 3 * attention_flops_per_token(prices.model, job.seq_len)
    products = model_flops_per_token(prices.model, job.seq_len, job.lora_rank > 0) - attention
    return Kinds(tokens * products / peak, tokens * attention / peak)


def _eight_bit_share(prices: Prices) -> float:
    """Return the share of the products' ideal time that a higher peak of their precision saves."""
    gpu = prices.cluster.gpu
    half = half_precision_peak(gpu)
    return 1 - half / (gpu.peak_flops.get(prices.job.precision) or half)


def _mean_passes(costs: Iterable[StageCost], on_each_rank: float) -> tuple[Seconds, float]:
    """Return the passes of the mean rank, and of these the compute that is recompute."""
    total, again = Seconds(), 0.0
    for cost in costs:
        for passes in (cost.forward, cost.backward, cost.weight):
            total = total.plus(passes, on_each_rank)
        again += on_each_rank * cost.recompute.compute
    return total, again


def _ends_and_waits(
    prices: Prices, step: StepEstimate, costs: StepCosts, mean: Seconds
) -> dict[str, float]:
    """Return what the busiest rank adds to the mean passes, without the bubble."""
    arguments = pipeline_arguments(prices, step.layout, costs)
    pipeline = pipeline_time(**arguments | {"send_s": np.zeros_like(costs.hops_s)})
    ends = ends_s(costs, pipeline) + costs.stall_s
    without_hops = max(float(end) + tail.total for end, tail in zip(ends, costs.tails, strict=True))
    busiest = int(np.argmax(pipeline.per_rank_busy_s))
    tail = costs.tails[busiest]
    above_mean_s = float(pipeline.per_rank_busy_s[busiest]) - mean.total
    if (crowd := prices.cluster.gpu.ranks_per_core) > 1:
        work = pipeline.per_rank_busy_s + [tail.total for tail in costs.tails] + costs.stall_s
        without_hops = on_shared_cores_s(work, without_hops, crowd)
        # the busiest rank has the cores of those that wait: the mean rank's work is what counts
        above_mean_s, tail = 0.0, RankTail(*np.mean(costs.tails, axis=0).tolist())
    return {
        "data_parallel": mean.dp + tail.gradients_s + tail.weights_s,
        "pipeline_parallel": step.step_time_s - without_hops,
        "offload": mean.offload + tail.offload_s,
        "optimizer": tail.update_s,
        "imbalance": above_mean_s,
        "slow_nodes": costs.stall_s,
    }
