"""Context parallelism: every rank holds part of each sequence, chosen so that all work equally.

A sequence is cut into twice as many chunks as there are ranks; rank ``r`` holds chunk ``r`` and the
``r``-th from the end, so the long and the short rows of the causal triangle fall together (the
zig-zag order of Llama 3, arXiv 2407.21783, 3.3.2). Keys and values are gathered before attention,
and again in the backward pass; or they go round a ring, or heads are exchanged for tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from .ring import ring_attention
from .ulysses import own_part, whole_sequence

_SEQUENCE = 1  # dimension of [batch, seq, heads, head_dim]
_View = tuple[int, torch.Size, tuple[int, ...], int]  # of which tensor, then as_strided's


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
    """Where a rank stands in its context-parallel group; by default alone with whole sequences.

    ``exchange`` is all_gather, ring or all_to_all, as in ``job.software.context_exchange``.
    ``gathers_again``: the backward pass gathers keys and values once more instead of keeping them.
    """

    ranks: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    gathers_again: bool = True
    exchange: str = "all_gather"

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


class _PartsOnly:
    """Keeps parts of tensors for the backward pass where the whole ones would be kept.

    All wholes are gathered again when the first saved tensor is asked for, whichever that is: the
    ranks choose other kernels for their chunks, but must call the same collectives. (No subclass of
    torch's hooks: an object that holds its own methods waits for the garbage collector.)
    """

    def __init__(self, context: Context, parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> None:
        self.context = context
        self.parts = [part.detach() for part in parts]
        self.places = {whole.untyped_storage()._cdata: i for i, whole in enumerate(wholes)}
        self.packed = 0
        self.wholes: list[Tensor] = []

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context in which what is saved goes through here."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> Tensor | _View:
        """Return what is kept of ``tensor``."""
        self.packed += 1
        place = self.places.get(tensor.untyped_storage()._cdata)
        if place is None:
            return tensor
        return place, tensor.shape, tensor.stride(), int(tensor.storage_offset())

    def unpack(self, kept: Tensor | _View) -> Tensor:
        """Return the tensor of which ``kept`` was kept."""
        if not self.wholes:
            with torch.no_grad():
                self.wholes = [self.context.whole(part) for part in self.parts]
        tensor = kept if isinstance(kept, Tensor) else self.wholes[kept[0]].as_strided(*kept[1:])
        self.packed -= 1
        if self.packed == 0:
            self.wholes = []
        return tensor


def flash_lower_right(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what ``lower_right`` does, without a mask, on a GPU in half precision.

    Flash attention wants heads of one size: narrower values are padded.
    """
    width = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - width)) if width < query.shape[-1] else value
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, 0.0, True)[0][..., :width]  # type: ignore[no-any-return]


def lower_right(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal attention of fewer queries than keys; the last query stands at the last key.

    All are [batch, heads, seq, head_dim]. ``F.scaled_dot_product_attention`` puts the *first* query
    at the first key, so its mask has to be written out; flash attention needs none
    (``torch/nn/attention/bias.py``, whose own class does not work under a dispatch mode).
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and query.shape[-1] % 8 == 0:
        return flash_lower_right(query, key, value)
    rows, columns = query.shape[2], key.shape[2]
    mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=shared)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
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
    if context.ranks == 1:
        return causal(query, key, value)
    if context.exchange == "ring" and context.group is not None:
        return ring_attention(query, key, value, context.group)
    if context.exchange == "all_to_all" and context.group is not None:
        whole = (whole_sequence(part, context.group) for part in (query, key, value))
        return own_part(causal(*whole), context.group)
    size = query.shape[_SEQUENCE] // 2
    whole_key, whole_value = wholes = context.whole(key), context.whole(value)
    again = context.gathers_again
    with _PartsOnly(context, (key, value), wholes).hooks() if again else nullcontext():
        mixed = [
            causal(piece, whole_key[:, : (i + 1) * size], whole_value[:, : (i + 1) * size])
            for piece, i in zip(query.chunk(2, _SEQUENCE), context.chunks, strict=True)
        ]
    return torch.cat(mixed, _SEQUENCE)
