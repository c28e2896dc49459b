"""One process of the profiler: its device, its clock, and the rule by which ranks agree on a time.

The same code runs on CUDA with NCCL (RCCL) and on a CPU with gloo.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist

from planner.errors import SpecError
from planner.profiler.tasks import Effort
from planner.profiler.watch import START_S, Watch

# No device of 2026 comes near: more than that is a clock that did not wait for the device.
FASTEST_FLOPS_PER_S = 5e16
FASTEST_BYTES_PER_S = 5e13
UNSTABLE_SPREAD = 0.5  # distance of the quartiles, as a share of the median
TRIES = 4
READING_S = {"cuda": 2e-3, "cpu": 20e-3}  # several turns of the scheduler where cores are shared
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


class DoubtfulError(Exception):
    """A measurement that is not believed; its text says why."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of the profiler; ``ranks_per_node`` of them share a machine."""

    rank: int
    world_size: int
    ranks_per_node: int
    device: torch.device
    backend: str
    watch: Watch

    @property
    def on_gpu(self) -> bool:
        """Whether times come from the device's own clock."""
        return self.device.type == "cuda"

    @property
    def own_clock(self) -> bool:
        """Whether a thread's clock tells what a kernel takes: one thread on a CPU.

        It stands still while another program has the core, so load from outside is not measured.
        """
        return not self.on_gpu and torch.get_num_threads() == 1

    @property
    def ranks_per_core(self) -> float:
        """Ranks that share a core of this machine while all compute; 1 where each has its own."""
        return 1.0 if self.on_gpu else max(1.0, self.ranks_per_node / len(os.sched_getaffinity(0)))

    @property
    def dtype(self) -> torch.dtype:
        """What activations and weights are held in."""
        return torch.bfloat16

    def most(self, value: float) -> float:
        """Return the largest value of all ranks. Collective."""
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return float(shared.item())

    def gathered(self, values: Sequence[float]) -> list[list[float]]:
        """Return the values of every rank, by rank. Collective."""
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        all_ranks = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(all_ranks, own)
        return [one.tolist() for one in all_ranks]


@dataclass(frozen=True, slots=True)
class Readings:
    """Seconds of one call: by rank, then by repetition."""

    by_rank: tuple[tuple[float, ...], ...]

    def of(self, ranks: Sequence[int]) -> "Readings":
        """Return the readings of some ranks only."""
        return Readings(tuple(self.by_rank[rank] for rank in ranks))

    @property
    def slowest(self) -> list[float]:
        """The slowest rank of each repetition."""
        return [max(column) for column in zip(*self.by_rank, strict=True)]

    @property
    def seconds(self) -> float:
        """The median over the repetitions."""
        return median(self.slowest)

    @property
    def least_s(self) -> float:
        """The best repetition."""
        return min(self.slowest)

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        low, _, high = quantiles(self.slowest, n=4)
        return (high - low) / self.seconds


@contextmanager
def joined(timeout_s: float) -> Iterator[Worker]:
    """Join the processes that torchrun started, and leave them again."""
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:
        raise SpecError(
            f"{', '.join(missing)} not set: start it with torchrun --nproc-per-node N "
            "-m planner.profiler …"
        )
    rank, world_size, local, per_node = (int(os.environ[name]) for name in ENVIRONMENT)
    on_gpu = torch.cuda.is_available()
    if on_gpu and per_node > torch.cuda.device_count():
        raise SpecError(
            f"{per_node} processes on a node with {torch.cuda.device_count()} GPUs; "
            f"use --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backend = "nccl" if on_gpu else "gloo"
    # the watch is to speak first: it can name who is silent
    timeout = timedelta(seconds=timeout_s + 60)
    watch = Watch(rank, world_size, timeout_s)
    with watch.on("the start of the processes", START_S):
        dist.init_process_group(backend, timeout=timeout, device_id=device if on_gpu else None)
    try:
        yield Worker(rank, world_size, per_node, device, backend, watch)
        dist.barrier()
    finally:
        watch.stop()
    dist.destroy_process_group()
    sys.stderr.flush()


def readings(
    worker: Worker,
    call: Callable[[], object],
    effort: Effort,
    refill: Callable[[], object] = lambda: None,
    most_spread: float = UNSTABLE_SPREAD,
    alone: bool = False,
) -> Readings:
    """Return the seconds of one ``call``, of every rank and repetition. Collective.

    All ranks start together, as in a training step, and repeat as often as the budget allows;
    several short calls share one reading of the clock. ``refill`` renews the operands before each
    repetition, outside the clock. What is unstable is measured again for longer, then doubted.
    ``alone``: the call waits for no other rank, so that the clock of its own thread serves; ranks
    that share a core then take turns on it.
    """
    clock = Clock(worker, alone)
    refill()
    call()
    dist.barrier()
    once_s = worker.most(clock.seconds(call, 1))
    inner = max(1, min(200, math.ceil(READING_S[worker.device.type] / max(once_s, 1e-9))))
    for _ in range(min(effort.warm_up, max(0, int(effort.budget_s / max(once_s, 1e-9))))):
        call()
    found = Readings(())
    for again in range(TRIES):  # what else runs on the machine comes in bursts
        time.sleep(again * effort.budget_s)
        wanted = int(effort.budget_s * (1 + again) / (inner * max(once_s, 1e-9)))
        count = max(effort.least_repetitions, min(effort.most_repetitions, wanted))
        found = _repeated(clock, call, inner, count, refill)
        if found.spread <= most_spread:
            return found
    raise DoubtfulError(
        f"unstable: the quartiles of {len(found.slowest)} repetitions are {found.spread:.0%} of "
        f"the median {found.seconds:.3g} s apart"
    )


def _repeated(
    clock: "Clock",
    call: Callable[[], object],
    inner: int,
    count: int,
    refill: Callable[[], object],
) -> Readings:
    own = []
    for _ in range(count):
        refill()
        dist.barrier()
        own.append(clock.seconds(call, inner) / inner)
    return Readings(tuple(tuple(values) for values in clock.worker.gathered(own)))


@dataclass(frozen=True, slots=True)
class Clock:
    """The device's clock; on a CPU the wall's, or its own thread's for work that waits for none."""

    worker: Worker
    alone: bool = False

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the seconds of so many calls, as they take while all ranks compute."""
        if self.worker.on_gpu:
            return self._on_device(call, times)
        own = self.alone and self.worker.own_clock
        now = time.thread_time if own else time.perf_counter
        start = now()
        for _ in range(times):
            call()
        return (now() - start) * (self.worker.ranks_per_core if own else 1.0)

    def _on_device(self, call: Callable[[], object], times: int) -> float:
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize(self.worker.device)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def checked_s(seconds: float, flops: float = 0.0, moved_bytes: float = 0.0) -> float:
    """Return ``seconds``, or doubt a time that cannot be.

    ``flops`` and ``moved_bytes`` are what was done in that time.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise DoubtfulError(f"{seconds} s: no time can be that")
    if flops / seconds > FASTEST_FLOPS_PER_S:
        rate = f"{flops / seconds:.3g} FLOP/s"
        raise DoubtfulError(f"{seconds:.3g} s: {rate} is more than any device does")
    if moved_bytes / seconds > FASTEST_BYTES_PER_S:
        rate = f"{moved_bytes / seconds:.3g} bytes/s"
        raise DoubtfulError(f"{seconds:.3g} s: {rate} is more than any link carries")
    return seconds
