"""Experts copied to the ranks whose tokens want them (FSSDP; Hecate, arXiv 2502.02581, 4).

Every expert has a home that holds its masters. In each pass a sparse all-gather brings the most
loaded ones to other ranks of the expert group, and a sparse reduce-scatter brings their gradients
home: here all-to-alls of uneven parts, so a home that is copied often sends each copy itself. After
every step the counts of the last five steps say anew which experts are copied where.
"""

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .copies import holders, materialised
from .dispatch import Dispatch, all_to_all

WINDOW = 5  # steps whose mean load foretells the next (Hecate, 4.2)


@dataclass(frozen=True)
class Placement:
    """Where the experts of a group are. ``place`` [ranks, experts]: number on a rank, -1: none.

    ``table`` [experts, ranks] repeats the holders of each expert, ``copies`` counts them. ``sent``
    and ``received`` are the experts that travel from and to each rank, ``order`` the local numbers
    of those sent.
    """

    place: Tensor
    table: Tensor
    copies: Tensor
    width: int
    sent: list[int]
    received: list[int]
    order: Tensor

    @classmethod
    def of(
        cls, copies: tuple[int, ...], ranks: int, rank: int, device: torch.device
    ) -> "Placement":
        """Return the placement of experts with so many ``copies``, their homes included."""
        each, found = len(copies) // ranks, holders(copies, ranks, ranks)
        away = [[e for e, who in enumerate(found) if r in who and e // each != r]
                for r in range(ranks)]  # fmt: skip
        place = torch.full((ranks, len(copies)), -1)
        for r in range(ranks):
            here = [*range(r * each, (r + 1) * each), *away[r]]
            place[r, here] = torch.arange(len(here))
        mine = [[e - each * rank for e in some if e // each == rank] for some in away]
        table = [[sorted(who)[i % len(who)] for i in range(ranks)] for who in found]
        return cls(
            place.to(device),
            torch.tensor(table, device=device),
            torch.tensor(copies, device=device),
            each + max(len(some) for some in away),
            [len(some) for some in mine],
            [sum(e // each == home for e in away[rank]) for home in range(ranks)],
            torch.tensor([e for some in mine for e in some], dtype=torch.long, device=device),
        )


class _Widen(torch.autograd.Function):
    """Weights [experts, out, in] with those of copies behind them; gradients go home."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copies: "Copies") -> Tensor:
        """Gather sparsely."""
        ctx.copies, ctx.placement, ctx.own = copies, copies.placement, len(weight)
        return copies.gather(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own, away = gradients[0][: ctx.own], gradients[0][ctx.own :]
        return ctx.copies.reduce(own, away, ctx.placement), None


class Copies:
    """The copies of one layer on this rank. ``again``: gathered once more in the backward pass."""

    def __init__(
        self, experts: int, slots: int, again: bool, group: dist.ProcessGroup, device: torch.device
    ) -> None:
        self.experts, self.slots, self.again, self.group = experts, slots, again, group
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.counts = torch.zeros(experts, dtype=torch.long, device=device)
        self.history: deque[Tensor] = deque(maxlen=WINDOW)
        self.gathered_bytes = self.reduced_bytes = 0
        self.copies = (1,) * experts
        self.placement = Placement.of(self.copies, self.ranks, self.rank, device)

    def count(self, choice: Tensor) -> None:
        """Note which experts tokens chose."""
        self.counts += torch.bincount(choice.flatten(), minlength=self.experts)

    def place_again(self) -> None:
        """Choose the copies of the next step. Collective over the expert group."""
        dist.all_reduce(self.counts, group=self.group)
        self.history.append(self.counts.clone())
        self.counts.zero_()
        loads = torch.stack(tuple(self.history)).double().mean(0).tolist()
        # all slots are dealt: what hides behind attention is the planner's to say
        self.copies = materialised(loads, self.ranks, self.experts + self.slots, self.slots)
        self.placement = Placement.of(self.copies, self.ranks, self.rank, self.counts.device)

    def gather(self, weight: Tensor) -> Tensor:
        """Return ``weight`` and the copies that this rank holds. Collective."""
        now = self.placement
        self.gathered_bytes += sum(now.received) * weight[0].nbytes
        away = all_to_all(weight.detach()[now.order], now.sent, now.received, self.group)
        return torch.cat((weight.detach(), away))

    def reduce(self, own: Tensor, away: Tensor, placement: Placement) -> Tensor:
        """Return the gradient of this rank's experts, those of their copies added. Collective."""
        self.reduced_bytes += away.nbytes
        back = all_to_all(away, placement.received, placement.sent, self.group)
        return own.index_add(0, placement.order, back)

    def product(self, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Return ``rows`` times the matrix of each expert and copy."""
        wide = _Widen.apply(weight, self)  # type: ignore[no-untyped-call]
        storage = wide.untyped_storage()._cdata

        def pack(saved: Tensor) -> Any:
            if saved.untyped_storage()._cdata != storage:
                return saved
            return saved.shape, saved.stride(), saved.storage_offset()

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            return self.gather(weight).as_strided(*packed)

        with saved_tensors_hooks(pack, unpack) if self.again else nullcontext():
            return F.grouped_mm(rows, wide.transpose(1, 2), offs=ends[: len(wide)])


@dataclass(frozen=True)
class CopyDispatch(Dispatch):
    """Tokens stay where their expert is or has a copy, or go in turn to the ranks that hold it."""

    copies: Copies | None = None

    @property
    def width(self) -> int:
        """Experts of a rank, and the most copies."""
        assert self.copies is not None
        return self.copies.placement.width

    def _slots(self, choice: Tensor) -> Tensor:
        assert self.copies is not None
        self.copies.count(choice)
        now = self.copies.placement
        turn = torch.arange(choice.numel(), device=choice.device).view_as(choice)
        away = now.table[choice, turn % now.copies[choice]]
        here = torch.full_like(choice, self.copies.rank)
        rank = torch.where(now.place[here, choice] >= 0, here, away)
        return (rank * now.width + now.place[rank, choice]).flatten()
