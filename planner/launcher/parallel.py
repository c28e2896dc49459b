"""Data parallelism applied to one stage of the model: FSDP over dense layers and over experts."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from .dispatch import Dispatch
from .experts import Experts, MixtureOfExperts
from .facts import masters_apart
from .materialise import Copies, CopyDispatch
from .mesh import Grid, expert_data_mesh
from .model import Block, Decoder, TiedHead
from .plan_file import LayoutConfig


def _reshard(layout: LayoutConfig) -> bool | int:
    """Return what FSDP does with gathered weights after the forward pass.

    Kept whole (ZeRO-1, ZeRO-2), sharded again (ZeRO-3), or sharded over fewer ranks than the
    master weights are (the secondary shard of ZeRO++, arXiv 2306.10209). Weights on the host are
    fetched for each pass.
    """
    if layout.offload_weights:
        return True
    return layout.shard_secondary or layout.shard_weights > 1


def _mixtures(stage: Decoder) -> list[MixtureOfExperts]:
    blocks = (block for block in stage.layers.values() if isinstance(block, Block))
    return [block.mlp for block in blocks if isinstance(block.mlp, MixtureOfExperts)]


def split_experts(stage: Decoder, grid: Grid) -> None:
    """Give each rank its experts (``ep``) and its part of their matrices (``etp``), in place."""
    for mixture in _mixtures(stage):
        assert grid.expert_mesh is not None
        mesh = grid.expert_mesh["ep", "etp"]
        experts = mixture.experts
        for name, weight in list(experts.named_parameters()):
            inner = 2 if name == "down" else 1
            split = distribute_tensor(weight, mesh, (Shard(0), Shard(inner)))
            experts.register_parameter(name, nn.Parameter(split))
        ep, etp = mesh["ep"].size(), mesh["etp"].size()
        mixture.dispatch = Dispatch(mixture.dispatch.experts, ep, etp, grid.expert_group)


def copy_experts(stage: Decoder, slots: int, again: bool, device: torch.device) -> list[Copies]:
    """Let every expert layer of ``stage`` copy its loaded experts to ``slots`` of each rank."""
    made = []
    for mixture in _mixtures(stage):
        old = mixture.dispatch
        assert old.group is not None
        copies = Copies(old.experts, slots, again, old.group, device)
        mixture.experts.copies = copies
        mixture.dispatch = CopyDispatch(old.experts, old.ep, old.etp, old.group, copies)
        made.append(copies)
    return made


def expert_parameters(stage: Decoder) -> list[nn.Parameter]:
    """Return the parameters of all routed experts of ``stage``."""
    return [weight for mixture in _mixtures(stage) for weight in mixture.experts.parameters()]


def _expert_placement(experts: Experts, ranks: int) -> Shard:
    """Shard over experts where they divide evenly, else over rows of every matrix if those do."""
    shapes = [p.to_local().shape if isinstance(p, DTensor) else p.shape
              for p in experts.parameters()]  # fmt: skip
    over_rows = any(shape[0] % ranks for shape in shapes)
    return Shard(int(over_rows and not any(shape[1] % ranks for shape in shapes)))


@dataclass(frozen=True)
class Sharding:
    """What FSDP does with the modules of a stage; masters and reductions are fp32."""

    policy: MixedPrecisionPolicy
    reshard: bool | int
    offload: OffloadPolicy

    def apply(self, module: nn.Module, mesh: DeviceMesh, *, keep: bool = False) -> None:
        """Shard ``module``; with ``keep`` it stays whole after the forward pass."""
        reshard = False if keep else self.reshard
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=self.policy,
            reshard_after_forward=reshard,
            offload_policy=self.offload,
        )

    def apply_to_experts(self, experts: Experts, mesh: DeviceMesh) -> None:
        """Shard ``experts`` over the ranks that hold the same ones."""
        place = _expert_placement(experts, mesh.size(mesh.ndim - 1))
        fully_shard(
            experts,
            mesh=mesh,
            mp_policy=self.policy,
            reshard_after_forward=self.reshard,
            shard_placement_fn=lambda weight: place,
            offload_policy=self.offload,
        )


def shard_data(
    stage: Decoder, grid: Grid, layout: LayoutConfig, compute_dtype: torch.dtype
) -> None:
    """Shard ``stage`` over the data-parallel ranks, in place.

    Applied for one data-parallel rank too: it is what computes in ``compute_dtype``.
    """
    apart = masters_apart(layout)
    if apart:
        stage.to(compute_dtype)  # a copy: masters are elsewhere
    if apart and layout.shard_weights == 1:
        return
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    # masters, gradients and moments on the host; a layer's weights are copied from there
    pinned = grid.data_mesh.device_type == "cuda"
    away = layout.offload_optimizer and not apart
    offload = CPUOffloadPolicy(pin_memory=pinned) if away else OffloadPolicy()
    sharding, mesh = Sharding(policy, _reshard(layout), offload), grid.data_mesh
    for mixture in _mixtures(stage):
        sharding.apply_to_experts(mixture.experts, expert_data_mesh(grid))
    for block in stage.layers.values():
        sharding.apply(block, mesh)
    if not isinstance(stage.head, TiedHead):
        for table in (stage.embedding, stage.positions):
            if table is not None:
                sharding.apply(table, mesh)
                assert isinstance(table, FSDPModule)
                table.set_unshard_in_backward(False)  # a table's gradient does not read it
        if stage.head is not None:
            # the backward pass starts here, so sharding again would only gather twice; apart from
            # the norm, because torch 2.13 gathers a group of two modules once too often per step
            sharding.apply(stage.head, mesh, keep=True)
    sharding.apply(stage, mesh, keep=True)


def scale_expert_gradients(weights: list[nn.Parameter], layout: LayoutConfig) -> None:
    """Make the gradients of experts, which FSDP averaged over ``edp``, averages over the batch.

    An expert sees the tokens of all ranks, and the loss is a mean over ``dp * cp`` of them. (FSDP's
    own ``set_gradient_divide_factor`` divides twice where the group has one rank, and gloo cannot
    run the reduction it asks for.)
    """
    factor = layout.edp / (layout.dp * layout.cp)
    for weight in weights:
        if factor != 1 and weight.grad is not None:
            assert isinstance(weight.grad, DTensor)
            weight.grad.to_local().mul_(factor)


def synchronise(root: FSDPModule, layout: LayoutConfig, last: bool) -> None:
    """Tell FSDP before a backward pass what to reduce and what to keep; ``last``: micro-batch.

    Unsharded gradients wait for the last micro-batch (ZeRO-1). Sharded ones are scattered every
    time, and replicas are summed once. Whole weights stay until the step needs them no more.
    """
    root.set_is_last_backward(last)
    if layout.shard_gradients == 1:
        # with the optimizer on the host gradients leave after each pass where nobody shares them
        streams = layout.offload_optimizer > 0 and layout.dp * layout.cp == 1
        root.set_requires_gradient_sync(last or streams)
    else:
        root.set_requires_all_reduce(last)
    if layout.shard_weights == 1 and not layout.offload_weights:
        root.set_reshard_after_backward(last)
