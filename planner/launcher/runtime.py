"""Process start and end: device, rank map, process group, and a clean exit."""

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Process:
    """The running process: its GPU slot (node-major), its rank, and its device."""

    slot: int
    rank: int
    device: torch.device

    @property
    def speaks(self) -> bool:
        """Whether this process prints and writes the log: slot 0, wherever rank 0 is."""
        return self.slot == 0


def remap_rank(environ: MutableMapping[str, str], rank_map: tuple[int, ...]) -> int:
    """Give this GPU slot the rank the plan wants there; return the slot.

    torchrun numbers processes by slot. Only the logical rank moves: the process keeps its GPU. It
    must happen before the process group exists, because a device mesh silently sorts its ranks.
    """
    slot = int(environ["RANK"])
    environ["RANK"] = str(rank_map[slot])
    return slot


def _own_device(local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        print(
            f"error: local rank {local_rank} has no GPU, this node shows {gpus}; "
            "lower NPROC_PER_NODE or use --backend gloo",
            file=sys.stderr,
        )
        sys.exit(2)
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def start(rank_map: tuple[int, ...], backend: str, timeout_s: float) -> Process:
    """Remap this process, choose its device and join the process group."""
    slot = remap_rank(os.environ, rank_map)
    # FSDP warns that its outputs must not be changed in place; nothing here does
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    device = _own_device(int(os.environ["LOCAL_RANK"])) if backend == "nccl" else _CPU
    dist.init_process_group(
        # gloo reduces what lies on the host: norms of offloaded gradients
        "cpu:gloo,cuda:nccl" if backend == "nccl" else backend,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if backend == "nccl" else None,
    )
    return Process(slot=slot, rank=dist.get_rank(), device=device)


@contextmanager
def named(process: Process) -> Iterator[None]:
    """Name the rank before the traceback of what it raises; torchrun then ends all the others."""
    try:
        yield
    except Exception:
        print(
            f"error: rank {process.rank} (slot {process.slot}, {socket.gethostname()}, "
            f"{process.device}) failed:",
            file=sys.stderr,
            flush=True,
        )
        raise


def watch_for_stop() -> Callable[[], bool]:
    """Return whether SIGTERM came; from now on it does not end the process by itself."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked.is_set


def finish() -> NoReturn:
    """Leave without running destructors: threads of gloo sometimes abort at interpreter exit."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
