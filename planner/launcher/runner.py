"""Forward and backward of one step: micro-batches in a loop, or a pipeline schedule."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from .mesh import Grid
from .model import Decoder
from .parallel import synchronise
from .plan_file import PlanFile
from .rules import ALL_AT_ONCE

Schedule = (
    Schedule1F1B
    | ScheduleGPipe
    | ScheduleInterleaved1F1B
    | ScheduleZBVZeroBubble
    | ScheduleDualPipeV
)
Loss = Callable[[Tensor, Tensor], Tensor]


V_SHAPED: dict[str, type[ScheduleZBVZeroBubble] | type[ScheduleDualPipeV]] = {
    "zb_v": ScheduleZBVZeroBubble,
    "dualpipe_v": ScheduleDualPipeV,
}


def stages_of_rank(plan: PlanFile, rank: int) -> list[int]:
    """Return the stages of a pipeline rank: round and round, or in a V down and back."""
    count, pp = len(plan.stages), plan.layout.pp
    if plan.schedule in V_SHAPED:
        return [rank, count - 1 - rank]
    return list(range(rank, count, pp))


class Runner(Protocol):
    """Accumulates the gradients of one step."""

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """Return the mean loss of this rank's rows; None where another stage has the loss."""


class Loop:
    """Micro-batches one after the other on a rank that holds the whole model."""

    def __init__(self, plan: PlanFile, model: Decoder, loss: Loss) -> None:
        self.plan, self.model, self.loss = plan, model, loss

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Run the micro-batches of ``tokens`` and ``targets`` [rows, seq]."""
        count = self.plan.micro_batches
        total = torch.zeros((), device=tokens.device)
        pieces = zip(tokens.chunk(count), targets.chunk(count), strict=True)
        for i, (x, y) in enumerate(pieces):
            if isinstance(self.model, FSDPModule):
                synchronise(self.model, self.plan.layout, last=i == count - 1)
            loss = self.loss(self.model(x), y) / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total


class Pipeline:
    """The plan's schedule, by torch's name for it, over this rank's stages."""

    def __init__(
        self,
        plan: PlanFile,
        grid: Grid,
        stages: dict[int, Decoder],
        loss: Loss,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self.first = 0 in stages
        self.last = len(plan.stages) - 1 in stages
        group = grid.mesh.get_group("pipeline")
        shapes = _Shapes(plan, grid, compute_dtype)
        wrapped = [
            PipelineStage(
                module,
                number,
                len(plan.stages),
                device,
                input_args=shapes.before(number),
                output_args=shapes.before(number + 1),
                group=group,
            )
            for number, module in stages.items()
        ]
        # both average the gradients over the micro-batches
        self.schedule: Schedule
        if plan.layout.vpp == 1:
            single = ScheduleGPipe if plan.schedule == ALL_AT_ONCE else Schedule1F1B
            self.schedule = single(wrapped[0], plan.micro_batches, loss_fn=loss)
        else:
            made = V_SHAPED.get(plan.schedule, ScheduleInterleaved1F1B)
            self.schedule = made(list(wrapped), plan.micro_batches, loss_fn=loss)

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """Run the schedule; the first stage reads ``tokens``, the last one ``targets``."""
        losses: list[Tensor] = []
        inputs = (tokens,) if self.first else ()
        if not self.last:
            self.schedule.step(*inputs, return_outputs=False)
            return None
        self.schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
        return torch.stack([loss.detach() for loss in losses]).mean()


class _Shapes:
    """Shapes of what passes between stages, so that torch need not try them out at start-up."""

    def __init__(self, plan: PlanFile, grid: Grid, compute_dtype: torch.dtype) -> None:
        self.plan, self.dtype = plan, compute_dtype
        self.vocab = local_vocab(plan.model.vocab, grid)

    def before(self, number: int) -> Tensor:
        """Return a meta tensor like the input of stage ``number``; one past the last: logits."""
        model, layout = self.plan.model, self.plan.layout
        batch, seq = layout.micro_batch, self.plan.seq_len // layout.cp
        if number == 0:
            return torch.empty(batch, seq, dtype=torch.long, device="meta")
        if number == len(self.plan.stages):
            return self._floats(batch, seq, self.vocab)
        part = seq // layout.tp if layout.sequence_parallel else seq
        return self._floats(batch, part, model.hidden)

    def _floats(self, *shape: int) -> Tensor:
        # without requires_grad the schedule would send no gradients back
        return torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True)


def local_vocab(vocab: int, grid: Grid) -> int:
    """Return how many logits this rank holds: equal parts, the last ones smaller."""
    part = -(-vocab // grid.tp)
    return min(part, vocab - part * grid.tensor_rank)
