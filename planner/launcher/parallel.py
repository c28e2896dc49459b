"""Tensor, sequence and data parallelism applied to one stage of the model."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from .model import Block, Decoder, TiedHead
from .plan_file import LayoutConfig

_SEQUENCE = 1  # dimension of [batch, seq, hidden]
_HEADS = 2  # dimension of [batch, seq, heads, head_dim]


def _between(sequence_parallel: bool) -> Shard | Replicate:
    """How a tensor between two tensor-parallel regions lies across the tensor-parallel ranks."""
    return Shard(_SEQUENCE) if sequence_parallel else Replicate()


def _split_block(block: Block, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    between = _between(sequence_parallel)
    # gathered once for all products that read it, reduced once in the backward pass
    entry = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
    plan: dict[str, ParallelStyle] = {
        "attention": entry,
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.out": RowwiseParallel(output_layouts=between),
        "mlp": entry,
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=between),
    }
    if block.mlp.gate is not None:
        plan["mlp.gate"] = ColwiseParallel()
    if block.attention.query_norm is not None:
        # one weight for all heads: its gradient is summed over the ranks that hold the heads
        over_heads = SequenceParallel(sequence_dim=_HEADS, use_local_output=True)
        plan |= {"attention.query_norm": over_heads, "attention.key_norm": over_heads}
    if sequence_parallel:
        plan |= {"attention_norm": SequenceParallel(), "mlp_norm": SequenceParallel()}
    parallelize_module(block, mesh, plan)


def _split_head(stage: Decoder, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    between = _between(sequence_parallel)
    if sequence_parallel:
        parallelize_module(stage, mesh, {"norm": SequenceParallel()})
    if not isinstance(stage.head, TiedHead):
        split = ColwiseParallel(input_layouts=between, output_layouts=Shard(-1))
        parallelize_module(stage, mesh, {"head": split})
        return
    gather = PrepareModuleInput(
        input_layouts=(between, None), desired_input_layouts=(Replicate(), None)
    )
    local = PrepareModuleOutput(output_layouts=Shard(-1), desired_output_layouts=Shard(-1))
    parallelize_module(stage, mesh, {"head": gather})
    parallelize_module(stage, mesh, {"head": local})


def split_tensors(stage: Decoder, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split the matrices of ``stage`` over the tensor-parallel ``mesh``, in place.

    Column then row products (Megatron-LM, arXiv 1909.08053); with ``sequence_parallel`` the norms
    and everything sent between stages hold one part of the sequence (arXiv 2205.05198). Logits
    stay split over the vocabulary.
    """
    rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=_between(sequence_parallel))
    tables = ("embedding", "positions")
    present = {name: rows for name in tables if getattr(stage, name) is not None}
    parallelize_module(stage, mesh, dict[str, ParallelStyle](present))
    for block in stage.layers.values():
        assert isinstance(block, Block)
        _split_block(block, mesh, sequence_parallel)
    if stage.head is not None:
        _split_head(stage, mesh, sequence_parallel)


def _reshard(layout: LayoutConfig) -> bool | int:
    """Return what FSDP does with gathered weights after the forward pass.

    Kept whole (ZeRO-1, ZeRO-2), sharded again (ZeRO-3), or sharded over fewer ranks than the
    master weights are (the secondary shard of ZeRO++, arXiv 2306.10209).
    """
    if layout.shard_weights in (1, layout.shard_optimizer):
        return layout.shard_weights > 1
    return layout.shard_weights


def shard_data(
    stage: Decoder, mesh: DeviceMesh, layout: LayoutConfig, compute_dtype: torch.dtype
) -> None:
    """Shard ``stage`` over the data-parallel ranks, in place; masters and reductions are fp32.

    Applied for one data-parallel rank too: it is what computes in ``compute_dtype``.
    """
    reshard = _reshard(layout)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in stage.layers.values():
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    if not isinstance(stage.head, TiedHead):
        for table in (stage.embedding, stage.positions):
            if table is not None:
                fully_shard(table, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
                assert isinstance(table, FSDPModule)
                table.set_unshard_in_backward(False)  # a table's gradient does not read it
        if stage.head is not None:
            # the backward pass starts here, so sharding again would only gather twice; apart from
            # the norm, because torch 2.13 gathers a group of two modules once too often per step
            fully_shard(stage.head, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def synchronise(root: FSDPModule, layout: LayoutConfig, last: bool) -> None:
    """Tell FSDP before a backward pass what to reduce and what to keep; ``last``: micro-batch.

    Unsharded gradients wait for the last micro-batch (ZeRO-1). Sharded ones are scattered every
    time, and replicas are summed once. Whole weights stay until the step needs them no more.
    """
    root.set_is_last_backward(last)
    if layout.shard_gradients == 1:
        root.set_requires_gradient_sync(last)
    else:
        root.set_requires_all_reduce(last)
    if layout.shard_weights == 1:
        root.set_reshard_after_backward(last)
