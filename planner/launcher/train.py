"""Build the planned job and run its steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .data import rows
from .facts import masters_apart
from .learning_rate import LearningRate
from .loss import cross_entropy
from .masters import Masters
from .materialise import Copies
from .mesh import Grid, build_grid
from .model import Decoder
from .offload import LEAST_BYTES, Offloader
from .optimizer import build_optimizer, clip_gradients, gradient_norm, set_rate
from .parallel import (
    copy_experts,
    expert_parameters,
    scale_expert_gradients,
    shard_data,
    split_experts,
)
from .places import place_for
from .plan_file import PlanFile
from .runner import Loop, Loss, Pipeline, Runner, stages_of_rank
from .tensor_parallel import split_tensors
from .tied import TiedCopies
from .token_file import TokenFile
from .weights import initialise

_RATE = LearningRate()


@dataclass(frozen=True)
class Options:
    """What the command line decides and the plan does not."""

    steps: int = 10
    lr: LearningRate = _RATE
    optimizer: str = "adamw"
    dtype: torch.dtype = torch.float32
    seed: int = 0
    clip: float = 0.0
    data: Path | None = None
    token_bytes: int = 2
    offload_directory: Path | None = None
    least_offload_bytes: int = LEAST_BYTES
    expert_slots: int = 0
    gather_again: bool = False


@dataclass(frozen=True)
class Step:
    """One measured step, the same on every rank: the slowest rank's time, the mean loss.

    ``stop``: a rank was asked to end the run.
    """

    number: int
    step_time_s: float
    loss: float
    gradient_norm: float | None
    stop: bool = False


@dataclass(frozen=True)
class Skeleton:
    """The groups and stages of this rank, split and sharded, before anything is in memory."""

    grid: Grid
    stages: dict[int, Decoder]
    tied: TiedCopies | None


def build_skeleton(plan: PlanFile, options: Options, device: torch.device) -> Skeleton:
    """Make every process group and every stage, on the meta device. Collective."""
    grid = build_grid(plan, device)
    numbers = stages_of_rank(plan, grid.pp_rank)
    stages = {n: build_stage(plan, n, grid, options) for n in numbers}
    tied = plan.model.tied_embeddings and plan.layout.pp > 1
    return Skeleton(grid, stages, TiedCopies(grid, list(stages.values())) if tied else None)


class Job:
    """The model of this rank, ready to train. No rank ever holds a stage whole.

    Making groups and splitting tensors is over before the first byte is allocated, so a trace of
    memory can take ``skeleton`` from outside and watch everything else.
    """

    def __init__(
        self,
        plan: PlanFile,
        options: Options,
        device: torch.device,
        skeleton: Skeleton | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Build and fill the stages of this rank. Collective. ``stop`` is asked after each step."""
        skeleton = skeleton or build_skeleton(plan, options, device)
        self.plan, self.options, self.device = plan, options, device
        self.stop, self.first_step, self.rate = stop, 1, options.lr.peak
        self.grid, self.tied = skeleton.grid, skeleton.tied
        self.stages = list(skeleton.stages.values())
        self.masters = self._fill()
        self.copies = self._copies()
        self.offloader = self._offloader()
        self.runner = self._runner(skeleton.stages)
        weights = {n: p for s in self.stages for n, p in s.named_parameters()}
        self.named_parameters = weights if self.masters is None else self.masters.named
        self.parameters = list(self.named_parameters.values())
        self.experts = [p for stage in self.stages for p in expert_parameters(stage)]
        self.optimizer = build_optimizer(options.optimizer, self.parameters, options.lr.peak)
        self.file = self._file()

    def _fill(self) -> Masters | None:
        """Bring the stages into memory and fill them; return the masters that are apart."""
        layout, options = self.plan.layout, self.options
        apart = masters_apart(layout)
        home = self.device if apart or not layout.offload_optimizer else torch.device("cpu")
        for stage in self.stages:
            stage.to_empty(device=home)
            if not apart:
                initialise(stage, options.seed, tied_head=self.plan.model.tied_embeddings)
        if not apart:
            return None
        masters = Masters(self.stages[0], self.grid, layout, options.dtype)
        masters.initialise(options.seed)
        return masters

    def _copies(self) -> list[Copies]:
        slots, again = self.options.expert_slots, self.options.gather_again
        if not slots:
            return []
        return [c for s in self.stages for c in copy_experts(s, slots, again, self.device)]

    def _offloader(self) -> Offloader | None:
        """Let the plan's fraction of saved activations wait elsewhere; None where nothing does."""
        layout, options = self.plan.layout, self.options
        if not layout.offload_fraction:
            return None
        directory, rank = options.offload_directory, dist.get_rank()
        place = place_for(layout.offload_target, self.device, directory, rank)
        offloader = Offloader(layout.offload_fraction, place, options.least_offload_bytes)
        for stage in self.stages:
            stage.give_away(offloader)
        return offloader

    def _file(self) -> TokenFile | None:
        options, plan = self.options, self.plan
        if options.data is None:
            return None
        sizes = (options.token_bytes, plan.seq_len, plan.model.vocab)
        return TokenFile(options.data, *sizes, options.seed)

    def _runner(self, stages: dict[int, Decoder]) -> Runner:
        loss = _loss(self.plan, self.grid)
        if self.grid.pp == 1:
            return Loop(self.plan, stages[0], loss)
        return Pipeline(self.plan, self.grid, stages, loss, self.options.dtype, self.device)

    def _batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return tokens and targets [rows, seq / cp] of this rank's share of the global batch."""
        plan = self.plan
        count = plan.global_batch // plan.layout.dp
        first = self.grid.dp_rank * count
        if self.file is not None:
            batch = self.file.rows((number - 1) * plan.global_batch + first, count)
        else:
            batch = rows(first, count, number, self.options.seed, plan.seq_len, plan.model.vocab)
        places = self.grid.context.positions(plan.seq_len // plan.layout.cp)
        return batch[:, places], batch[:, places + 1]

    def _clip(self) -> Tensor | None:
        if not self.options.clip:
            return None
        copy = self.tied.head if self.tied is not None else None
        counted = [p for p in self.parameters if p is not copy]
        group = self.grid.mesh.get_group("pipeline") if self.grid.pp > 1 else None
        norm = gradient_norm(counted, group, self.device)
        clip_gradients(self.parameters, norm, self.options.clip)
        return norm

    def update(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Train on tokens [rows, seq / cp]; return the loss, if this rank has one, and the norm."""
        if self.masters is not None:
            return self._update_masters(self.masters, tokens, targets)
        self.optimizer.zero_grad()
        loss = self.runner.step(tokens.to(self.device), targets.to(self.device))
        scale_expert_gradients(self.experts, self.plan.layout)
        if self.tied is not None:
            self.tied.add_gradients()
        norm = self._clip()
        set_rate(self.optimizer, self.rate)
        self.optimizer.step()
        for copies in self.copies:
            copies.place_again()
        return loss, norm

    def _update_masters(
        self, masters: Masters, tokens: Tensor, targets: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        loss = self.runner.step(tokens.to(self.device), targets.to(self.device))
        masters.collect()
        norm = self._clip()
        set_rate(self.optimizer, self.rate)  # no earlier: a delayed update reads its own
        masters.update(self.optimizer)
        return loss, norm

    def settle(self) -> None:
        """Wait for an update that runs behind the passes."""
        if self.masters is not None:
            self.masters.settle()

    def step(self, number: int) -> Step:
        """Run one optimizer step; the batch is made before the clock starts."""
        self.rate = self.options.lr.at(number)
        tokens, targets = self._batch(number)
        self._wait()
        begin = time.perf_counter()
        loss, norm = self.update(tokens, targets)
        self._wait()
        seconds = time.perf_counter() - begin
        length = None if norm is None else norm.item()
        slowest, stop = self._most(seconds, float(self.stop()))
        return Step(number, slowest, self._mean(loss), length, stop > 0)

    def steps(self) -> Iterator[Step]:
        """Run all steps that are left, numbered from 1, or as many until one is the last."""
        for number in range(self.first_step, self.options.steps + 1):
            step = self.step(number)
            yield step
            if step.stop:
                return

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _most(self, *values: float) -> list[float]:
        """Return the largest of each value over all ranks."""
        most = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.tolist()

    def _mean(self, loss: Tensor | None) -> float:
        """Return the mean over the ranks that have a loss; they hold equal shares of the rows."""
        pair = torch.zeros(2, dtype=torch.float64, device=self.device)
        if loss is not None:
            pair[0], pair[1] = loss.double(), 1.0
        dist.all_reduce(pair)
        return (pair[0] / pair[1]).item()


def build_stage(plan: PlanFile, number: int, grid: Grid, options: Options) -> Decoder:
    """Return stage ``number``, split and sharded, on the meta device."""
    with torch.device("meta"):
        stage = Decoder(plan.model, plan.stages[number], grid.context)
    if grid.tp > 1:
        split_tensors(stage, grid.mesh["tensor"], plan.layout.sequence_parallel)
    split_experts(stage, grid)
    shard_data(stage, grid, plan.layout, options.dtype)
    return stage


def _loss(plan: PlanFile, grid: Grid) -> Loss:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, grid.tensor_group, plan.model.vocab)

    return loss
