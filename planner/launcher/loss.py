"""Cross entropy over logits whose vocabulary is split across tensor-parallel ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _VocabularyLoss(torch.autograd.Function):
    """Mean cross entropy; keeps the logits and one number per token for the backward pass.

    Three small reductions replace the gathering of the logits (Megatron-LM,
    ``core/tensor_parallel/cross_entropy.py``).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, first: int, group: dist.ProcessGroup | None
    ) -> Tensor:
        """``logits`` [tokens, local vocabulary], ``targets`` [tokens] over the whole vocabulary."""
        scores = logits.to(torch.float32, copy=True)  # the only one; all that follows is in place
        largest = scores.max(dim=-1).values
        if group is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        scores.sub_(largest[:, None])
        index = targets - first
        mine = (index >= 0) & (index < logits.shape[-1])
        index = index.clamp(0, logits.shape[-1] - 1)
        picked = scores.gather(-1, index[:, None]).squeeze(-1) * mine
        sums = torch.stack((scores.exp_().sum(dim=-1), picked))
        if group is not None:
            dist.all_reduce(sums, dist.ReduceOp.SUM, group)
        log_sum = sums[0].log()
        ctx.save_for_backward(logits, largest + log_sum, index, mine)
        return (log_sum - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Softmax minus the one-hot target, over the number of tokens."""
        logits, normaliser, index, mine = ctx.saved_tensors
        probability = logits.to(torch.float32, copy=True).sub_(normaliser[:, None]).exp_()
        probability.scatter_add_(-1, index[:, None], -mine.to(probability.dtype)[:, None])
        probability.mul_(gradients[0] / logits.shape[0])
        return probability.to(logits.dtype), None, None, None


def cross_entropy(
    logits: Tensor, targets: Tensor, group: dist.ProcessGroup | None, vocab: int
) -> Tensor:
    """Return the mean loss of ``logits`` [batch, seq, local vocabulary], equal on every rank.

    ``group`` is the tensor-parallel group, None for one rank. Ranks hold equal parts of the
    vocabulary, the last ones less when it does not divide (as ``torch.chunk``).
    """
    first = 0
    if group is not None:
        first = dist.get_rank(group) * -(-vocab // dist.get_world_size(group))
    return _VocabularyLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
        logits.flatten(0, -2), targets.flatten(), first, group
    )
