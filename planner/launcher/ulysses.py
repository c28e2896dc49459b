"""Context parallelism by all-to-all: whole sequences of some heads instead of parts of all heads.

DeepSpeed-Ulysses (arXiv 2309.14509): before attention each rank gives away its tokens of most heads
and gets all tokens of ``heads / ranks`` of them, afterwards back again.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SEQUENCE, _HEADS = 1, 2  # dimensions of [batch, seq, heads, head_dim]


class _Exchange(torch.autograd.Function):
    """Part ``i`` of a tensor goes to rank ``i``; the backward pass is the same exchange."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """``parts`` [ranks, ...] of this rank; returns [ranks, ...], one part of each rank."""
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        sent = torch.empty_like(gradients[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(sent, gradients[0].contiguous(), group=ctx.group)
        return sent, None


def _exchange(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    found: Tensor = _Exchange.apply(parts, group)  # type: ignore[no-untyped-call]
    return found


def whole_sequence(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return [batch, whole seq, heads / ranks, head_dim], in order of position.

    ``part`` [batch, seq, heads, head_dim] holds this rank's two chunks in zig-zag order
    (``context``). Collective.
    """
    ranks = dist.get_world_size(group)
    found = _exchange(torch.stack(part.chunk(ranks, _HEADS)), group)
    first, second = torch.stack(found.chunk(2, _SEQUENCE + 1)).unbind()
    ordered = torch.cat((first, second.flip(0)))  # [2 * ranks, batch, chunk, ...]
    return ordered.transpose(0, 1).flatten(1, 2)


def own_part(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return [batch, seq, heads, head_dim] of this rank's tokens; undoes ``whole_sequence``."""
    ranks = dist.get_world_size(group)
    chunks = torch.stack(whole.chunk(2 * ranks, _SEQUENCE))
    first, second = chunks[:ranks], chunks[ranks:].flip(0)
    found = _exchange(torch.cat((first, second), _SEQUENCE + 1), group)
    return torch.cat(found.unbind(), _HEADS)
