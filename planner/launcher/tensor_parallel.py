"""Tensor and sequence parallelism applied to one stage of the model."""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from .attention import Attention, LatentAttention
from .experts import MixtureOfExperts
from .mlp import Mlp
from .model import Block, Decoder, TiedHead

_SEQUENCE = 1  # dimension of [batch, seq, hidden]
_HEADS = 2  # dimension of [batch, seq, heads, head_dim]


def _between(sequence_parallel: bool) -> Shard | Replicate:
    """How a tensor between two tensor-parallel regions lies across the tensor-parallel ranks."""
    return Shard(_SEQUENCE) if sequence_parallel else Replicate()


def _entry(between: Shard | Replicate) -> PrepareModuleInput:
    """Gather once for all products that read the tensor, reduce once in the backward pass."""
    return PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))


def _local_sequence() -> SequenceParallel:
    """Whole weights over the local part of the sequence; their gradient is summed over ranks."""
    return SequenceParallel(use_local_output=True)


def _heads_plan(attention: Attention, between: Shard | Replicate) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        "attention": _entry(between),
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.out": RowwiseParallel(output_layouts=between),
    }
    if attention.query_norm is not None:
        # one weight for all heads: its gradient is summed over the ranks that hold the heads
        over_heads = SequenceParallel(sequence_dim=_HEADS, use_local_output=True)
        plan |= {"attention.query_norm": over_heads, "attention.key_norm": over_heads}
    return plan


def _latent_plan(
    attention: LatentAttention, between: Shard | Replicate
) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        "attention.query_up": ColwiseParallel(input_layouts=between),
        "attention.key_value_up": ColwiseParallel(input_layouts=between),
        "attention.out": RowwiseParallel(output_layouts=between),
    }
    if isinstance(between, Shard):
        down = ["key_value_down", "key_value_norm"]
        down += [] if attention.query_down is None else ["query_down", "query_norm"]
        plan |= {f"attention.{name}": _local_sequence() for name in down}
    return plan


def _gather_shared_key(
    attention: LatentAttention, mesh: DeviceMesh, between: Shard | Replicate
) -> None:
    """Give every rank the one key of all heads; each adds the gradient of its own heads."""

    def gather(module: nn.Module, inputs: tuple[Tensor], key: Tensor) -> Tensor:
        spread = DTensor.from_local(key, mesh, (between,), run_check=False)
        whole = spread.redistribute(placements=(Replicate(),))
        return whole.to_local(grad_placements=(Partial(),))

    attention.shared_key.register_forward_hook(gather)


def _mlp_plan(name: str, mlp: Mlp, between: Shard | Replicate) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        name: _entry(between),
        f"{name}.up": ColwiseParallel(),
        f"{name}.down": RowwiseParallel(output_layouts=between),
    }
    if mlp.gate is not None:
        plan[f"{name}.gate"] = ColwiseParallel()
    return plan


def _experts_plan(
    mixture: MixtureOfExperts, between: Shard | Replicate
) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {"mlp.router": _local_sequence()}
    if mixture.shared is not None:
        plan |= _mlp_plan("mlp.shared", mixture.shared, between)
    if mixture.shared_gate is not None:
        plan["mlp.shared_gate"] = _local_sequence()
    return plan


def split_block(block: Block, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split the matrices of one layer over ``mesh``, in place."""
    between = _between(sequence_parallel)
    latent, experts = block.attention, block.mlp
    if isinstance(latent, LatentAttention):
        plan = _latent_plan(latent, between)
        _gather_shared_key(latent, mesh, between)
    else:
        plan = _heads_plan(latent, between)
    if isinstance(experts, MixtureOfExperts):
        plan |= _experts_plan(experts, between)
    else:
        plan |= _mlp_plan("mlp", experts, between)
    if sequence_parallel:
        # what does not gather at once wants the local part as a plain tensor
        plan["attention_norm"] = SequenceParallel(
            use_local_output=isinstance(latent, LatentAttention)
        )
        plan["mlp_norm"] = SequenceParallel(use_local_output=isinstance(experts, MixtureOfExperts))
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
        split_block(block, mesh, sequence_parallel)
    if stage.head is not None:
        _split_head(stage, mesh, sequence_parallel)
