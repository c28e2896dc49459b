"""Bytes of weights, gradients and optimizer state on one rank.

Mixed precision: 2-byte weights, a main gradient of ``gradient_bytes`` (fp32 in Megatron-LM, PTD-P
section 5), fp32 master weight and the state of the optimizer (``spec.optimizer``; 12 bytes
of AdamW, ZeRO, section 3.1).
Each class is divided by its own group (``shard = weights, gradients, optimizer``); experts
are replicated ``edp`` times, so only that group shares theirs (MoE Parallel Folding, 3.2).
"""

from dataclasses import dataclass

from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, sharded_by_kind
from planner.spec.job import SoftwareSpec
from planner.spec.optimizer import kept_bytes

WEIGHT_BYTES = 2


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of the three tensor classes on one rank."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All three."""
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    local: LocalParameters, layout: Layout, software: SoftwareSpec, optimizer: str = "adamw"
) -> StateBytes:
    """Return the state of ``local`` parameters under the layout's sharding.

    Under a pipeline whole weights and gradients stay until the last micro-batch, whatever the ZeRO
    stage: FSDP2 keeps them (torch/distributed/pipelining/stage.py), Megatron's distributed
    optimizer is ZeRO-1.
    """
    shard, edp = layout.shard, max(1, layout.edp)

    def divided(group: int) -> float:
        return local.dense / group + local.expert / min(group, edp)

    whole = layout.pp > 1
    # FSDP gathers from the fp32 weights that the optimizer updates; there is no 2-byte copy
    copied = whole or not (software.sharded_master and 1 < shard.weights == shard.optimizer)
    return StateBytes(
        copied * WEIGHT_BYTES * divided(1 if whole else shard.weights),
        software.gradient_bytes * divided(1 if whole else shard.gradients),
        kept_bytes(optimizer, software.optimizer_bytes, *sharded_by_kind(local, layout)),
    )
