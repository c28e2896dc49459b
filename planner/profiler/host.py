"""Rates of the host: copies over PCIe and in memory, AdamW on the CPU, and a drive.

CUDA paths were not run where this was written.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from planner.profiler.tasks import Effort, HostTask
from planner.profiler.worker import DoubtfulError, Worker, checked_s, readings

BLOCK_BYTES = 2**22  # of one read or write of a drive; O_DIRECT wants whole pages


def measure_host(worker: Worker, task: HostTask, effort: Effort) -> dict[str, Any]:
    """Return the fields of ``HostMeasurement`` that the task measures."""
    if task.what == "ssd":
        return _drive(worker, task)
    if task.what == "cpu_adam":
        return {"cpu_adam_parameters_per_s": _cpu_adam(worker, task.size // 4, effort)}
    if task.what == "copy":
        left, right = (torch.ones(task.size // 4) for _ in range(2))
        seconds = readings(worker, lambda: left.copy_(right), effort, alone=True).seconds
        return {"copy_bytes_per_s": _rate(2 * task.size, seconds)}
    return {f"{task.what}_bytes_per_s": _pcie(worker, task, effort)}


def _rate(moved_bytes: float, seconds: float) -> float:
    return moved_bytes / checked_s(seconds, moved_bytes=moved_bytes)


def _cpu_adam(worker: Worker, count: int, effort: Effort) -> float:
    weight = torch.nn.Parameter(torch.randn(count))
    weight.grad = torch.randn_like(weight)
    adam = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    return count / checked_s(readings(worker, adam.step, effort, alone=True).seconds)


def _pcie(worker: Worker, task: HostTask, effort: Effort) -> float:
    """Return bytes/s of pinned copies: of the first GPU alone, or of all at once."""
    host_out, host_in = (torch.empty(task.size, dtype=torch.uint8, pin_memory=True)
                         for _ in range(2))  # fmt: skip
    here, there = (torch.empty(task.size, dtype=torch.uint8, device=worker.device)
                   for _ in range(2))  # fmt: skip
    stream: Any = torch.cuda.Stream
    side = stream(worker.device)

    def call() -> None:
        if task.what.endswith("h2d") or task.what == "both":
            here.copy_(host_out, non_blocking=True)
        if task.what == "both":
            with torch.cuda.stream(side):
                host_in.copy_(there, non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
        elif task.what.endswith("d2h"):
            host_in.copy_(there, non_blocking=True)

    everyone = task.what.startswith("all_")
    found = readings(worker, call if everyone or worker.rank == 0 else lambda: None, effort)
    seconds = found.seconds if everyone else found.of([0]).seconds
    return _rate(task.size, seconds)


def _drive(worker: Worker, task: HostTask) -> dict[str, Any]:
    """Write and read one file on the first rank, past the page cache where the kernel lets us."""
    own: tuple[float, float, float] = (0.0, 0.0, 0.0)
    problem = ""
    if worker.rank == 0:
        try:
            own = drive_rates(Path(task.path), task.size)
        except OSError as error:
            problem = f"{task.path}: {error.strerror}"
    dist.barrier()
    write, read, direct = worker.gathered(own)[0]
    if problem or not write:
        raise DoubtfulError(problem or "the first rank could not use the drive")
    return {
        "ssd_path": task.path,
        "ssd_write_bytes_per_s": write,
        "ssd_read_bytes_per_s": read,
        "ssd_direct": bool(direct),
    }


def drive_rates(folder: Path, size_bytes: int) -> tuple[float, float, float]:
    """Return (write, read) bytes/s of a new file in ``folder``, and 1 where O_DIRECT was taken.

    The file is removed. OSError where the folder cannot be written.
    """
    path = folder / f".planner-profile-{os.getpid()}"
    size = max(BLOCK_BYTES, size_bytes // BLOCK_BYTES * BLOCK_BYTES)
    with mmap.mmap(-1, BLOCK_BYTES) as block, _gone_after(path):  # memory of whole pages
        block.write(os.urandom(BLOCK_BYTES))  # some drives compress
        handle, direct = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            start = time.perf_counter()
            for _ in range(size // BLOCK_BYTES):
                if os.write(handle, block) != BLOCK_BYTES:
                    raise OSError(28, "the drive is full")
            os.fsync(handle)
            write_s = time.perf_counter() - start
            if not direct:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(handle, 0, os.SEEK_SET)
            start = time.perf_counter()
            while os.readv(handle, [block]):
                pass
            read_s = time.perf_counter() - start
        finally:
            os.close(handle)
    return size / write_s, size / read_s, float(direct)


def _opened(path: Path, flags: int) -> tuple[int, bool]:
    """Open past the page cache, or with it where the file system refuses that (tmpfs)."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return os.open(path, flags, 0o600), False


@contextlib.contextmanager
def _gone_after(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
