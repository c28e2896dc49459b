"""A thread beside each process of the profiler: it leaves with its parent, and names who is silent.

A collective whose peer is gone does not return, on NCCL not even with an error, so only a thread
can speak. Each process counts in the store that torchrun keeps; one whose count stands still does
not answer.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

STALLED = 75  # exit code of a run without progress, EX_TEMPFAIL
PARENT = "PLANNER_PROFILER_PARENT"  # pid of ``planner profile``, for its own processes
BEAT_S = 0.5
START_S = 180.0  # imports and rendezvous of many processes on few cores take long
LOST_BEATS = 10  # so often the store of torchrun may be out of reach


class Watch:
    """Watches one process from a thread of its own until ``stop``."""

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self._rank, self._world_size, self._timeout_s = rank, world_size, timeout_s
        self._what, self._since, self._allowed_s = "", 0.0, timeout_s
        self._parents = {os.getppid()}
        self._starter = int(os.environ.get(PARENT, "0"))
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @contextmanager
    def on(self, what: str, at_least_s: float = 0.0) -> Iterator[None]:
        """Allow ``what`` the timeout."""
        self._allowed_s = max(self._timeout_s, at_least_s)
        self._what, self._since = what, time.monotonic()
        try:
            yield
        finally:
            self._since = 0.0

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()

    def _run(self) -> None:
        store, count, lost = None, 0, 0
        while not self._ended.wait(BEAT_S):
            if self._orphaned():
                os._exit(STALLED)
            since, count = self._since, count + 1
            late = since and time.monotonic() - since > self._allowed_s
            try:
                store = store or _own_store()
                store.set(f"beat/{self._rank}", str(count))
                lost = 0
            except Exception:  # torchrun is gone, or busy
                store, lost = None, lost + 1
                if lost > LOST_BEATS:
                    os._exit(STALLED)
            if late:
                self._give_up(store, count)

    def _orphaned(self) -> bool:
        if os.getppid() not in self._parents:
            return True
        return bool(self._starter) and not _alive(self._starter)

    def _give_up(self, store: "Store | None", count: int) -> None:
        """Say who is silent, and leave; the first rank that answers speaks for all."""
        silent: list[int] = []
        if store is not None:
            before = _beats(store, self._world_size)
            time.sleep(4 * BEAT_S)
            store.set(f"beat/{self._rank}", str(count + 1))
            time.sleep(2 * BEAT_S)
            after = _beats(store, self._world_size)
            silent = [rank for rank in range(self._world_size)
                      if before[rank] == after[rank] and rank != self._rank]  # fmt: skip
        answering = [rank for rank in range(self._world_size) if rank not in silent]
        if self._rank == answering[0]:
            print(f"error: {stalled(self._what, self._allowed_s, silent)}", file=sys.stderr)
            sys.stderr.flush()
            time.sleep(BEAT_S)
        else:
            time.sleep(6 * BEAT_S)
        os._exit(STALLED)


def stalled(what: str, timeout_s: float, silent: list[int]) -> str:
    """Return the sentence about a run that stands still."""
    if silent:
        named = ", ".join(str(rank) for rank in silent)
        one = len(silent) == 1
        who = f"rank {named} does not answer" if one else f"ranks {named} do not answer"
        remedy = "look at that process and its machine"
    else:
        who = "every rank answers, so the call itself hangs"
        remedy = "run again with NCCL_DEBUG=INFO"
    return f"no progress for {timeout_s:g} s in {what!r}: {who}; {remedy} (or raise --timeout-s)"


def _own_store() -> "Store":
    """Connect once more to the store of torchrun: a thread must not wait behind another."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=3))
    return store


def _beats(store: "Store", world_size: int) -> list[bytes]:
    keys = [f"beat/{rank}" for rank in range(world_size)]
    return [store.get(key) if store.check([key]) else b"" for key in keys]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
