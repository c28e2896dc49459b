"""Context parallelism: every rank holds part of each sequence, chosen so that all work equally.

A sequence is cut into twice as many chunks as there are ranks; rank ``r`` holds chunk ``r`` and the
``r``-th from the end, so the long and the short rows of the causal triangle fall together (the
zig-zag order of Llama 3, arXiv 2407.21783, 3.3.2). Keys and values are gathered before attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

_SEQUENCE = 1  # dimension of [batch, seq, heads, head_dim]


class _Gather(torch.autograd.Function):
    """All parts of a tensor, in rank order; the backward pass sums what the ranks ask of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        """``part`` has the same shape on every rank; returns [ranks, *part.shape]."""
        ctx.group = group
        whole = part.new_empty(dist.get_world_size(group) * part.shape[0], *part.shape[1:])
        dist.all_gather_single(whole, part.contiguous(), group=group)
        return whole.view(-1, *part.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous()
        part = torch.empty_like(whole[0])
        dist.reduce_scatter_single(part, whole.flatten(0, 1), group=ctx.group)
        return part, None


@dataclass(frozen=True)
class Context:
    """Where a rank stands in its context-parallel group; by default alone with whole sequences."""

    ranks: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def chunks(self) -> tuple[int, ...]:
        """The chunks this rank holds, of ``2 * ranks`` (of one, when it is alone)."""
        return (0,) if self.ranks == 1 else (self.rank, 2 * self.ranks - 1 - self.rank)

    def positions(self, count: int, device: torch.device | None = None) -> Tensor:
        """Return where in the whole sequence the ``count`` tokens of this rank stand."""
        size = count // len(self.chunks)
        parts = [torch.arange(i * size, (i + 1) * size, device=device) for i in self.chunks]
        return torch.cat(parts)

    def whole(self, part: Tensor) -> Tensor:
        """Return [batch, whole seq, heads, head_dim] of every rank's part, in order of position."""
        if self.group is None:
            return part
        # [ranks, chunk of the rank, batch, ...]: the first chunks rise, the second ones fall
        chunks = _Gather.apply(torch.stack(part.chunk(2, _SEQUENCE)), self.group)  # type: ignore[no-untyped-call]
        first, second = chunks.unbind(1)
        ordered = torch.cat((first, second.flip(0)))
        return ordered.transpose(0, 1).flatten(1, 2)


def lower_right(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal attention of fewer queries than keys; the last query stands at the last key.

    All are [batch, heads, seq, head_dim]. ``F.scaled_dot_product_attention`` puts the *first* query
    at the first key, so its mask would have to be written out; flash attention needs none
    (``torch/nn/attention/bias.py``, whose own class does not work under a dispatch mode).
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and query.shape[-1] == value.shape[-1] and query.shape[-1] % 8 == 0:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, True)[0]  # type: ignore[no-any-return]
    rows, columns = query.shape[2], key.shape[2]
    mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=shared)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to all keys up to each query's own; [batch, seq, heads, head_dim] all."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if query.shape[2] < key.shape[2]:
        return lower_right(query, key, value).transpose(1, 2)
    shared = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)
    return mixed.transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
    """Return causal attention [batch, seq, heads, head_dim of ``value``] of this rank's queries.

    All have [batch, seq, heads, head_dim] of this rank's tokens; keys may have fewer heads.
    """
    key, value = context.whole(key), context.whole(value)
    size = query.shape[_SEQUENCE] // len(context.chunks)
    pieces = query.chunk(len(context.chunks), _SEQUENCE)
    ends = ((chunk + 1) * size for chunk in context.chunks)
    mixed = [_causal(q, key[:, :end], value[:, :end]) for q, end in zip(pieces, ends, strict=True)]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, _SEQUENCE)
