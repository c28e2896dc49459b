"""One process of the profiler: its device, its clock, and the rule by which ranks agree on a time.

The same code runs on CUDA with NCCL (RCCL) and on a CPU with gloo.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from planner.errors import SpecError

# No device of 2026 comes near: more than that is a clock that did not wait for the device.
FASTEST_FLOPS_PER_S = 5e16
FASTEST_BYTES_PER_S = 5e13


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is measured; ``inner`` calls share one reading of the clock."""

    warm_up: int = 5
    repetitions: int = 10
    inner: int = 5


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of the profiler; ``ranks_per_node`` of them share a machine."""

    rank: int
    world_size: int
    ranks_per_node: int
    device: torch.device
    backend: str

    @property
    def on_gpu(self) -> bool:
        """Whether times come from the device's own clock."""
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        """The device as its driver names it, or the processor of a CPU run."""
        if self.on_gpu:
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one GPU as the driver reports it."""
        if not self.on_gpu:
            return None
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def say(self, text: str) -> None:
        """Report progress: rank 0, on stderr."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def joined(timeout_s: float) -> Iterator[Worker]:
    """Join the processes that torchrun started, and leave them again."""
    environment = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if missing := [name for name in environment if name not in os.environ]:
        raise SpecError(
            f"{', '.join(missing)} not set: start it with torchrun --nproc-per-node N "
            "-m planner.profiler …"
        )
    rank, world_size, local, per_node = (int(os.environ[name]) for name in environment)
    on_gpu = torch.cuda.is_available()
    if on_gpu and per_node > torch.cuda.device_count():
        raise SpecError(
            f"{per_node} processes on a node with {torch.cuda.device_count()} GPUs; "
            f"use --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, timeout=timeout, device_id=device if on_gpu else None)
    try:
        yield Worker(rank, world_size, per_node, device, backend)
    finally:
        dist.destroy_process_group()


def measured_s(
    worker: Worker, call: Callable[[], object], effort: Effort, refill: Callable[[], object]
) -> float:
    """Return the seconds of one ``call``: of each repetition the slowest rank, then the median.

    All ranks start together, as in a training step. ``refill`` renews the operands before each
    repetition, outside the clock.
    """
    refill()
    for _ in range(effort.warm_up):
        call()
    readings = []
    for _ in range(effort.repetitions):
        refill()
        dist.barrier()
        readings.append(_clocked_s(worker, call, effort.inner) / effort.inner)
    slowest = torch.tensor(readings, dtype=torch.float64, device=worker.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(median(slowest.tolist()))


def _clocked_s(worker: Worker, call: Callable[[], object], times: int) -> float:
    if not worker.on_gpu:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return time.perf_counter() - start
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(worker.device)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def checked_s(name: str, seconds: float, flops: float = 0.0, moved_bytes: float = 0.0) -> float:
    """Return ``seconds``, or refuse a time that cannot be, naming what was measured.

    ``flops`` and ``moved_bytes`` are what was done in that time.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise SpecError(f"{name} took {seconds} s: no time can be that; profile again")
    if flops / seconds > FASTEST_FLOPS_PER_S:
        rate = f"{flops / seconds:.3g} FLOP/s"
        raise SpecError(f"{name} took {seconds:.3g} s: {rate} is more than any device does")
    if moved_bytes / seconds > FASTEST_BYTES_PER_S:
        rate = f"{moved_bytes / seconds:.3g} bytes/s"
        raise SpecError(f"{name} took {seconds:.3g} s: {rate} is more than any link carries")
    return seconds
