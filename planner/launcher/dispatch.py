"""Tokens to the ranks that hold their experts, and back.

One all-to-all each way over the ``ep * etp`` ranks of an expert group. Where an expert's matrices
are split over ``etp`` ranks, each of them receives the row and returns its share of the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Experts = Callable[[Tensor, Tensor], Tensor]


class _Rows(torch.autograd.Function):
    """Rows in another order, each perhaps several times; the backward pass adds up the copies."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        """``order`` [rows * copies] numbers the copies; ``inverse`` undoes it."""
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return rows[order if copies == 1 else order // copies]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        back = gradients[0][inverse]
        if ctx.copies > 1:
            back = back.view(-1, ctx.copies, back.shape[1]).sum(1)
        return back, None, None, None


class _Exchange(torch.autograd.Function):
    """All-to-all of rows with a different number for each pair of ranks."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        """``sent`` and ``received`` count rows by rank of ``group``."""
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def all_to_all(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    """Return [received, ...] of all ranks; ``sent`` and ``received`` count rows by rank."""
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


def reorder(rows: Tensor, order: Tensor, copies: int = 1) -> Tensor:
    """Return ``rows`` [rows * copies, width] in ``order``."""
    return _Rows.apply(rows, order, inverse(order), copies)  # type: ignore[no-any-return, no-untyped-call]


def inverse(order: Tensor) -> Tensor:
    """Return the permutation that undoes ``order``."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back


def exchange_counts(sent: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, list[int], list[int]]:
    """Tell every rank how many rows it gets for each of its experts; wait for the answer.

    ``sent`` is [ranks, experts of a rank]. Returns what this rank receives in the same form, then
    the rows sent to and received from each rank.
    """
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    totals = torch.stack((sent.sum(1), received.sum(1))).tolist()
    return received, *totals


@dataclass(frozen=True)
class Dispatch:
    """How the rows of one rank reach ``experts`` experts; by default all are here."""

    experts: int
    ep: int = 1
    etp: int = 1
    group: dist.ProcessGroup | None = None

    def __call__(self, tokens: Tensor, choice: Tensor, share: Tensor, experts: Experts) -> Tensor:
        """Return the weighted sum of each token's experts, [tokens, hidden].

        ``choice`` and ``share`` are [tokens, top_k]. ``experts(rows, counts)`` gets rows sorted by
        expert and the number of rows of each expert on this rank.
        """
        slots = self._slots(choice)
        order = slots.argsort(stable=True)
        counts = torch.zeros(self.ep * self.etp * self.width, dtype=torch.long, device=slots.device)
        counts.scatter_add_(0, slots, torch.ones_like(slots))
        copies = choice.shape[1] * self.etp
        rows = reorder(tokens, order, copies)
        done = experts(rows, counts) if self.group is None else self._away(rows, counts, experts)
        back = reorder(done, inverse(order)).view(*choice.shape, self.etp, -1)
        # the parts of one expert first: what is weighed is kept for the backward pass
        whole = back.squeeze(2) if self.etp == 1 else back.sum(2)
        return (whole * share[:, :, None].to(whole.dtype)).sum(1)

    @property
    def width(self) -> int:
        """Experts of a rank."""
        return self.experts // self.ep

    def _slots(self, choice: Tensor) -> Tensor:
        """Return the destination of each copy, [tokens * top_k * etp], sorted by rank, expert."""
        each = self.width
        split = torch.arange(self.etp, device=choice.device)
        rank = (choice // each)[..., None] * self.etp + split
        return (rank * each + (choice % each)[..., None]).flatten()

    def _away(self, rows: Tensor, counts: Tensor, experts: Experts) -> Tensor:
        """Send ``rows`` to the ranks of their experts and return the results in the same order."""
        assert self.group is not None
        each = self.width
        received, sent, got = exchange_counts(counts.view(-1, each), self.group)
        rows = _Exchange.apply(rows, sent, got, self.group)  # type: ignore[no-untyped-call]
        # they arrive by rank; the experts want them by expert
        numbers = torch.arange(each, device=rows.device).repeat(len(sent))
        order = numbers.repeat_interleave(received.flatten(), output_size=sum(got)).argsort(
            stable=True
        )
        done = reorder(experts(reorder(rows, order), received.sum(0)), inverse(order))
        return _Exchange.apply(done, got, sent, self.group)  # type: ignore[no-any-return, no-untyped-call]
