"""Where activations wait: host memory, or a file for each storage.

A ticket begins to store when it is made. On a GPU copies run on streams of their own from and to
pinned memory; on a CPU they are plain copies. Files are written and read by threads.
"""

import ctypes
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

THREADS = 4


class Ticket(Protocol):
    """One flat tensor that is away."""

    def settle(self) -> None:
        """Let what computes next wait until the store is over; its source may be freed then."""

    def load(self) -> Tensor:
        """Begin to bring a copy back; it may be read after ``arrive``."""

    def arrive(self) -> None:
        """Let what computes next wait until the copy is there."""

    def drop(self) -> None:
        """Forget it, stored or not."""


Place = Callable[[Tensor], Ticket]


class Streams:
    """The streams that copy beside compute, one for each direction."""

    def __init__(self, device: torch.device) -> None:
        self.out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self, stream: torch.cuda.Stream) -> Iterator[torch.cuda.Event]:
        """Run copies on ``stream`` after what is queued now; the event is their end."""
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield end
            end.record(stream)


class _Kept:
    """In host memory."""

    def __init__(self, flat: Tensor, streams: Streams | None) -> None:
        self.streams, self.device = streams, flat.device
        self.host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=streams is not None)
        self.stored: torch.cuda.Event | None = None
        self.loaded: torch.cuda.Event | None = None
        if streams is None:
            self.host.copy_(flat)
            return
        with streams.beside(streams.out) as self.stored:
            self.host.copy_(flat, non_blocking=True)

    def settle(self) -> None:
        if self.stored is not None:
            torch.cuda.current_stream(self.device).wait_event(self.stored)

    def load(self) -> Tensor:
        target = torch.empty(self.host.shape, dtype=self.host.dtype, device=self.device)
        if self.streams is None:
            return target.copy_(self.host)
        with self.streams.beside(self.streams.back) as self.loaded:
            target.copy_(self.host, non_blocking=True)
        return target

    def arrive(self) -> None:
        if self.loaded is not None:
            torch.cuda.current_stream(self.device).wait_event(self.loaded)

    def drop(self) -> None:
        pass  # pinned memory is reused when its last reference is gone


def _raw(tensor: Tensor) -> "ctypes.Array[ctypes.c_char]":
    """Return the bytes of a contiguous tensor on the host, not a copy of them."""
    size = tensor.numel() * tensor.element_size()
    return (ctypes.c_char * size).from_address(tensor.data_ptr())


class _Filed:
    """In a file. The drive's own copy of a GPU tensor is made from and to pinned memory."""

    def __init__(
        self, flat: Tensor, streams: Streams | None, pool: ThreadPoolExecutor, path: Path
    ) -> None:
        self.streams, self.pool, self.path, self.device = streams, pool, path, flat.device
        self.shape, self.dtype = flat.shape, flat.dtype
        self.reading: Future[torch.cuda.Event | None] | None = None
        staged = _Kept(flat, streams) if streams is not None else None
        self.writing = pool.submit(self._write, flat if staged is None else staged.host, staged)

    def _write(self, host: Tensor, staged: _Kept | None) -> None:
        if staged is not None and staged.stored is not None:
            staged.stored.synchronize()
        with self.path.open("wb", buffering=0) as file:
            view = memoryview(_raw(host)).cast("B")
            while view:
                view = view[file.write(view) :]

    def _read(self, target: Tensor) -> torch.cuda.Event | None:
        self.writing.result()
        host = target
        if self.streams is not None:
            host = torch.empty(self.shape, dtype=self.dtype, pin_memory=True)
        view = memoryview(_raw(host)).cast("B")
        with self.path.open("rb", buffering=0) as file:
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError(f"{self.path}: ends {len(view)} bytes early")
                view = view[count:]
        if self.streams is None:
            return None
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.streams.back):
            target.copy_(host, non_blocking=True)
            end.record(self.streams.back)
        return end

    def settle(self) -> None:
        self.writing.result()

    def load(self) -> Tensor:
        target = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if self.streams is not None:  # its memory may still be at work
            self.streams.back.wait_stream(torch.cuda.current_stream(self.device))
        self.reading = self.pool.submit(self._read, target)
        return target

    def arrive(self) -> None:
        assert self.reading is not None
        end = self.reading.result()
        if end is not None:
            torch.cuda.current_stream(self.device).wait_event(end)

    def drop(self) -> None:
        self.writing.cancel()
        with suppress(RuntimeError):  # the pool is closed when the process ends
            self.pool.submit(self.path.unlink, missing_ok=True)


def place_for(target: str, device: torch.device, directory: Path | None, rank: int) -> Place:
    """Return what stores tensors in ``target``: host, or ssd, files below ``directory``."""
    streams = Streams(device) if device.type == "cuda" else None
    if target == "host":
        return lambda flat: _Kept(flat, streams)
    assert directory is not None
    own = directory / f"activations-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    for left in own.glob("*.bin"):  # of a run that was killed
        left.unlink()
    pool, numbers = ThreadPoolExecutor(THREADS), itertools.count()
    return lambda flat: _Filed(flat, streams, pool, own / f"{next(numbers)}.bin")
