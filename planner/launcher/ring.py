"""Ring attention: keys and values go from rank to rank, and no rank ever holds all of them.

Ring Attention (arXiv 2310.01889) over the zig-zag order of ``context``: rank ``r`` holds chunks
``r`` and ``2 * ranks - 1 - r`` of each sequence, so of another rank's keys every rank needs the
first half for all its queries, or both halves for its second queries: equal work, and no mask.
Blocks are merged by the logarithms of their sums (FlashAttention, arXiv 2205.14135, 3.1).
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

_Block = tuple[Tensor, Tensor]  # output [batch, heads, rows, head_dim], log of sums [.., rows]


def _uses_flash(query: Tensor) -> bool:
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and query.shape[-1] % 8 == 0


def block(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> _Block:
    """Return attention of one block and the logarithms of its sums; [batch, heads, seq, head_dim].

    All have as many heads and the same ``head_dim``; the logarithms are fp32.
    """
    if _uses_flash(query):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out, sums = flash(query, key, value, 0.0, causal)[:2]
        return out, sums
    if query.is_cuda:
        return _plain(query, key, value, causal)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal
    )


def _scores(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(mask, -math.inf)
    return scores


def _plain(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> _Block:
    scores = _scores(query, key, causal)
    return (scores.softmax(-1) @ value.float()).to(query.dtype), scores.logsumexp(-1)


def block_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], whole: _Block, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a block's query, key and value.

    ``whole`` is the merged output of these queries and the logarithm of all their sums: with them
    each block knows its share of the softmax.
    """
    query, key = inputs[:2]
    out, sums = whole
    if _uses_flash(query):
        nobody = torch.zeros(
            0, device=query.device, dtype=torch.int64
        )  # no dropout: no random state
        backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
        sizes = (query.shape[2], key.shape[2])
        found = backward(gradient, *inputs, out, sums, None, None, *sizes, 0.0, causal,
                         nobody, nobody)  # fmt: skip
        return found[0], found[1], found[2]
    if query.is_cuda:
        return _plain_gradients(gradient, inputs, whole, causal)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found = backward(gradient, *inputs, out, sums, 0.0, causal)
    return found[0], found[1], found[2]


def _plain_gradients(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], whole: _Block, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs
    out, sums = whole
    weights = (_scores(query, key, causal) - sums[..., None]).exp()
    by_weight = gradient.float() @ value.float().transpose(-2, -1)
    mean = (gradient.float() * out.float()).sum(-1, keepdim=True)
    by_score = weights * (by_weight - mean) / math.sqrt(query.shape[-1])
    by_value = weights.transpose(-2, -1) @ gradient.float()
    found = by_score @ key.float(), by_score.transpose(-2, -1) @ query.float(), by_value
    return found[0].to(query.dtype), found[1].to(key.dtype), found[2].to(value.dtype)


def merge(first: _Block, second: _Block) -> _Block:
    """Return attention over the keys of both blocks, of the same queries."""
    (a, a_sums), (b, b_sums) = first, second
    share = torch.sigmoid(b_sums - a_sums)[..., None]
    return a + share * (b - a), torch.logaddexp(a_sums, b_sums)


class _Neighbours:
    """Sends tensors one rank on, and gets those of the rank before, while this one computes."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def start(self, *tensors: Tensor) -> tuple[list[Tensor], list[dist.Work]]:
        """Return where the tensors of the rank before will be, and what to wait for."""
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        sent = [tensor.contiguous() for tensor in tensors]
        received = [torch.empty_like(tensor) for tensor in sent]
        calls = [dist.P2POp(dist.isend, tensor, group=self.group, group_peer=after)
                 for tensor in sent]  # fmt: skip
        calls += [dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=before)
                  for tensor in received]  # fmt: skip
        return received, dist.batch_isend_irecv(calls)


def _wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


def _parts(step: int, rank: int, rows: int) -> tuple[slice, slice]:
    """Return which rows of the queries meet which of the keys that came ``step`` ranks far."""
    every = slice(None)
    if step == 0:
        return every, every
    if step <= rank:  # an earlier rank: its first chunk is before, its last behind all of ours
        return every, slice(0, rows // 2)
    return slice(rows // 2, rows), every


class _Ring(torch.autograd.Function):
    """Causal attention of this rank's queries over the keys of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup
    ) -> Tensor:
        """All are [batch, heads, seq, head_dim] of this rank's tokens, with equally many heads."""
        ring = _Neighbours(group)
        rows = query.shape[2]
        here, coming, works = [key, value], [key, value], list[dist.Work]()
        out, sums = query.new_empty(0), query.new_empty(0)
        for step in range(ring.ranks):
            if step < ring.ranks - 1:
                coming, works = ring.start(*here)
            mine, theirs = _parts(step, ring.rank, rows)
            key_part, value_part = (tensor[:, :, theirs] for tensor in here)
            found, found_sums = block(query[:, :, mine], key_part, value_part, step == 0)
            if step == 0:
                out, sums = found.float(), found_sums
            else:
                merged = merge((out[:, :, mine], sums[:, :, mine]), (found.float(), found_sums))
                out[:, :, mine], sums[:, :, mine] = merged
            _wait(works)
            here, works = coming, []
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Keys go round once more, and the gradients that they collect travel with them, home."""
        query, key, value, out, sums = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        ring = _Neighbours(ctx.group)
        rows = query.shape[2]
        by_query = torch.zeros_like(query, dtype=torch.float32)
        collected = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value)]
        here, coming, works = [key, value], [key, value], list[dist.Work]()
        for step in range(ring.ranks):
            if step < ring.ranks - 1:
                coming, works = ring.start(*here)
            mine, theirs = _parts(step, ring.rank, rows)
            key_part, value_part = (tensor[:, :, theirs] for tensor in here)
            inputs = (query[:, :, mine], key_part, value_part)
            whole = (out[:, :, mine].contiguous(), sums[:, :, mine].contiguous())
            found = block_gradients(gradient[:, :, mine].contiguous(), inputs, whole, step == 0)
            by_query[:, :, mine] += found[0]
            for total, part in zip(collected, found[1:], strict=True):
                total[:, :, theirs] += part
            _wait(works)
            collected, works = ring.start(*collected)
            _wait(works)
            here, works = coming, []
        return by_query.to(query.dtype), *(t.to(key.dtype) for t in collected), None


def ring_attention(query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return causal attention of this rank's queries, [batch, seq, heads, head_dim of ``value``].

    All have [batch, seq, heads, head_dim] of this rank's tokens; keys may have fewer heads.
    Collective.
    """
    width, copies = value.shape[-1], query.shape[2] // key.shape[2]
    value = F.pad(value, (0, query.shape[-1] - width))
    if copies > 1:
        key, value = (tensor.repeat_interleave(copies, 2) for tensor in (key, value))
    query, key, value = (t.transpose(1, 2).contiguous() for t in (query, key, value))
    mixed: Tensor = _Ring.apply(query, key, value, group)  # type: ignore[no-untyped-call]
    return mixed.transpose(1, 2)[..., :width]
