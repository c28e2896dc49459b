"""The step of a mixture of experts with uneven routing: experts at home, or copied where needed.

FSSDP (Hecate, arXiv 2502.02581): before each pass of a layer a sparse all-gather copies its most
loaded experts to other ranks behind the attention of that layer, after it a sparse reduce-scatter
takes their gradients home. Copies stay until the backward pass, or are dropped and gathered again
(re-materialisation). Optimizer states never move.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from planner.cost.collectives import Group, collective_s
from planner.cost.experts import Balance, placed
from planner.cost.layer import Prices
from planner.cost.overlap import beside_s, lost_share
from planner.launcher.copies import materialised
from planner.layout.layout import Layout
from planner.model.operations import Collective, Shape, attention_operations
from planner.model.parameters import expert_parameters
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.job import RoutingSpec

WEIGHT_BYTES = 2
BACKWARD = 2.0  # the backward pass of attention takes twice the forward pass (Hecate, 4.1)
LIVE_LAYERS = 2  # with re-materialisation: the layer at work and the one being gathered


@dataclass(frozen=True, slots=True)
class Routed:
    """One way to place experts: its balance, step, and what it takes on a rank.

    ``slots`` are the copies beside its own experts that a rank holds of each layer; ``exposed_s``
    of the sparse collectives in a step; ``extra_bytes`` of copies and their gradients.
    """

    balance: Balance
    step: StepEstimate
    step_time_s: float
    slots: float = 0.0
    exposed_s: float = 0.0
    extra_bytes: float = 0.0

    @property
    def memory_bytes(self) -> float:
        """Peak of the fullest rank, copies included."""
        return self.step.memory.device + self.extra_bytes * (1 + self.step.memory.reserve_share)


def static(prices: Prices, layout: Layout, loads: Sequence[float]) -> Routed:
    """Return the step with every expert on its home rank only."""
    balance = placed(loads, layout.ep, node=prices.cluster.domain_gpus)
    step = _step(prices, layout, balance)
    return Routed(balance, step, step.step_time_s)


def sparse(
    prices: Prices,
    layout: Layout,
    loads: Sequence[float],
    capacity_bytes: float,
    again: bool,
    slots: int | None = None,
) -> Routed:
    """Return the step with copies of loaded experts (FSSDP).

    ``again``: copies are dropped after the forward pass and gathered again. ``slots`` of a rank for
    each layer; by default what ``capacity_bytes`` leaves.
    """
    expert_bytes = WEIGHT_BYTES * expert_parameters(prices.model) / layout.etp
    each = slot_bytes(prices, layout, again)
    if slots is None:
        memory = static(prices, layout, loads).step.memory
        room = (capacity_bytes - memory.device) / (1 + memory.reserve_share)
        slots = max(0, int(room // each))
    attention = _attention_s(prices, layout)
    copies = materialised(
        loads, layout.ep, _hidden(prices, layout, expert_bytes, len(loads), attention), slots
    )
    balance = placed(loads, layout.ep, copies, prices.cluster.domain_gpus)
    used = balance.sparsity * len(loads) / layout.ep
    gather_s = _gather_s(prices, layout, used * expert_bytes)
    group = Group.place(layout.ep, layout.etp, prices.cluster)
    lost = lost_share("all_gather", used * expert_bytes, group, prices.cluster)
    layers = ceil(prices.model.moe_layers / layout.pp)
    exposed_s = (
        layout.micro_batches(prices.job.global_batch)
        * layers
        * (
            beside_s(gather_s, attention, lost)
            + beside_s(gather_s * (1 + again), BACKWARD * attention, lost)
        )
    )
    step = _step(prices, layout, balance)
    return Routed(balance, step, step.step_time_s + exposed_s, used, exposed_s, used * each)


def slot_bytes(prices: Prices, layout: Layout, again: bool) -> float:
    """Return what one copy in each layer takes on a rank: its weights, and gradients of one layer.

    Weights of all layers stay until the backward pass, or of two with re-materialisation.
    """
    parameters = expert_parameters(prices.model) / layout.etp
    layers = ceil(prices.model.moe_layers / layout.pp)
    alive = min(LIVE_LAYERS, layers) if again else layers
    return parameters * (WEIGHT_BYTES * alive + prices.job.software.reduce_bytes)


def _step(prices: Prices, layout: Layout, balance: Balance) -> StepEstimate:
    routing = RoutingSpec(
        fullest_rank=max(1.0, balance.fullest), exchanged=max(0.0, balance.exchanged)
    )
    job = prices.job.model_copy(update={"routing": routing})
    return estimate_step(replace(prices, job=job, _cache={}), layout)


def _attention_s(prices: Prices, layout: Layout) -> float:
    """Seconds of the forward pass of a layer without its experts: what copies hide behind."""
    shape = Shape(
        layout.micro_batch, prices.job.seq_len, layout.tp, layout.cp, layout.ep, layout.etp,
        layout.sequence_parallel,
    )  # fmt: skip
    operations, _ = attention_operations(prices.model, shape, prices.job.software)
    return sum(prices.compute_s(op) for op in operations if not isinstance(op, Collective))


def _gather_s(prices: Prices, layout: Layout, received_bytes: float) -> float:
    """Seconds of a sparse all-gather (or reduce-scatter) of so many bytes for each rank.

    Priced as an all-gather that every rank receives as much from.
    """
    if received_bytes <= 0 or layout.ep == 1:
        return 0.0
    group = Group.place(layout.ep, layout.etp, prices.cluster)
    whole = received_bytes * layout.ep / (layout.ep - 1)
    return collective_s("all_gather", whole, group, prices.cluster)


def _hidden(
    prices: Prices, layout: Layout, expert_bytes: float, experts: int, attention_s: float
) -> int:
    """Return how many experts can be gathered everywhere behind attention: the degree t."""
    share = (layout.ep - 1) / layout.ep
    fitting = [
        count
        for count in range(1, experts + 1)
        if _gather_s(prices, layout, count * share * expert_bytes) <= attention_s
    ]
    return max(fitting, default=0)
