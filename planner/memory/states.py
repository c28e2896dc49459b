"""Bytes of weights, gradients and optimizer state on one rank.

Mixed precision: 2-byte weights, a main gradient of ``gradient_bytes`` (fp32 in Megatron-LM, PTD-P
section 5), fp32 master weight and the state of the optimizer (``spec.optimizer``; 12 bytes
of AdamW, ZeRO, section 3.1).
Each class is divided by its own group (``shard = weights, gradients, optimizer``); experts
are replicated ``edp`` times, so only that group shares theirs (MoE Parallel Folding, 3.2).
"""

from dataclasses import dataclass

from planner.layout.layout import Layout
from planner.layout.local import (
    LocalParameters,
    sharded_by_kind,
    sharded_parameters,
    streams_gradients,
)
from planner.spec.job import SoftwareSpec
from planner.spec.optimizer import kept_bytes

WEIGHT_BYTES = 2
HOST_GRADIENT_BYTES = 4
BUCKETS = 2  # one is filled while the other travels


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of the three tensor classes on one rank; ``host``: in the memory of its node."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """All three on the GPU."""
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    local: LocalParameters,
    layout: Layout,
    software: SoftwareSpec,
    optimizer: str = "adamw",
    trained: LocalParameters | None = None,
) -> StateBytes:
    """Return the state of ``local`` parameters under the layout's sharding.

    ``trained`` adapters stand beside them where they are frozen, and have all that is not weights.

    Under a pipeline whole weights and gradients stay until the last micro-batch, whatever the ZeRO
    stage: FSDP2 keeps them (torch/distributed/pipelining/stage.py), Megatron's distributed
    optimizer is ZeRO-1.
    """
    shard, edp = layout.shard, max(1, layout.edp)

    def divided(held: LocalParameters, group: int) -> float:
        return held.dense / group + held.expert / min(group, edp)

    whole = layout.pp > 1
    # FSDP gathers from the fp32 weights that the optimizer updates; there is no 2-byte copy
    copied = whole or not (software.sharded_master and 1 < shard.weights == shard.optimizer)
    frozen, whole_model = 0.0, local
    if trained is not None:
        frozen = WEIGHT_BYTES * divided(local, 1 if whole else shard.weights)
        local = trained
    second = WEIGHT_BYTES * divided(whole_model, shard.secondary) if shard.secondary else 0.0
    states = StateBytes(
        frozen + copied * WEIGHT_BYTES * divided(local, 1 if whole else shard.weights) + second,
        software.gradient_bytes * divided(local, 1 if whole else shard.gradients),
        kept_bytes(optimizer, software.optimizer_bytes, *sharded_by_kind(local, layout)),
    )
    return (
        _offloaded(states, local, layout, software, frozen) if layout.offload_optimizer else states
    )


def _offloaded(
    states: StateBytes,
    local: LocalParameters,
    layout: Layout,
    software: SoftwareSpec,
    frozen: float,
) -> StateBytes:
    """Return ``states`` with a share of them on the host.

    Gradients that leave in the backward pass do so layer by layer (FSDP), or through two buckets on
    the GPU. On the host an fp32 gradient waits for the update: 16 bytes of AdamW for each parameter
    (ZeRO-Offload, ATC 21).
    """
    share = layout.offload_optimizer
    parameters = sharded_parameters(local, layout)
    host = share * (states.optimizer + HOST_GRADIENT_BYTES * parameters)
    gradients, weights = states.gradients, states.weights
    if streams_gradients(layout, software):
        buckets = min(BUCKETS * software.bucket_bytes, software.reduce_bytes * local.total)
        buckets = 0.0 if software.sharded_master else buckets
        gradients = (1 - share) * gradients + share * min(gradients, buckets)
    if layout.offload_weights:
        host += frozen if software.sharded_master else weights  # its master is there already
        weights = 0.0
    return StateBytes(weights, gradients, (1 - share) * states.optimizer, host)
