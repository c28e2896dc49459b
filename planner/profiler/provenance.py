"""What a profile says about the machine it is of: device, driver, libraries, topology."""

import os
import platform
import socket
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from planner.profiler.worker import Worker

TOPOLOGY_S = 20.0


def identity(worker: Worker, hosts: tuple[str, ...]) -> dict[str, Any]:
    """Return what must be equal where an interrupted run goes on."""
    return {
        "device": device_name(worker),
        "world_size": worker.world_size,
        "ranks_per_node": worker.ranks_per_node,
        "backend": worker.backend,
        "torch_version": torch.__version__,
        "hosts": list(hosts),
    }


def device_name(worker: Worker) -> str:
    """Return the device as its driver names it, or the processor of a CPU run."""
    if worker.on_gpu:
        return torch.cuda.get_device_name(worker.device)
    return f"CPU {_cpu_model()}, {os.cpu_count()} cores"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def facts(worker: Worker) -> dict[str, Any]:
    """Return the fields of a profile that tell where and with what it was measured."""
    return {
        "date": date.today().isoformat(),
        "driver": _driver(worker),
        "library": _library(worker),
        "topology": _topology(worker),
        "memory_bytes": memory_bytes(worker),
        "ranks_per_core": worker.ranks_per_core,
    }


def memory_bytes(worker: Worker) -> int | None:
    """Memory of one GPU as the driver reports it, or a rank's share of the host's."""
    if worker.on_gpu:
        return int(torch.cuda.get_device_properties(worker.device).total_memory)
    total = _meminfo("MemTotal")
    return total // worker.ranks_per_node if total else None


def free_bytes(worker: Worker) -> float:
    """Memory that one rank may use now: of the GPU, or its share of the host's."""
    if worker.on_gpu:
        return float(torch.cuda.mem_get_info(worker.device)[0])
    available = _meminfo("MemAvailable")
    return available / worker.ranks_per_node if available else float("inf")


def _meminfo(field: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _said(command: list[str]) -> list[str]:
    """Return the lines a program prints, or nothing where it is not there."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOPOLOGY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _driver(worker: Worker) -> str:
    if not worker.on_gpu:
        return f"{platform.system()} {platform.release()}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return next(iter(_said(query)), "")


def _library(worker: Worker) -> str:
    if not worker.on_gpu:
        return f"gloo of torch {torch.__version__}"
    numbers = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return f"{'RCCL' if torch.version.hip else 'NCCL'} {numbers}"


def _topology(worker: Worker) -> tuple[str, ...]:
    """Return the driver's matrix of links and the network devices with their line rates."""
    matrix = _said(["nvidia-smi", "topo", "-m"]) if worker.on_gpu else []
    return tuple(line.rstrip() for line in matrix if line.strip()) + tuple(_network())


def _network() -> list[str]:
    """Return network and InfiniBand devices as sysfs shows them."""
    found = []
    for rate in sorted(Path("/sys/class/infiniband").glob("*/ports/*/rate")):
        found.append(f"{rate.parts[-4]} port {rate.parts[-2]}: {_first_line(rate)}")
    for speed in sorted(Path("/sys/class/net").glob("*/speed")):
        mbit = _first_line(speed)
        if mbit.isdigit():
            found.append(f"{speed.parts[-2]}: {mbit} Mbit/s")
    return found


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip().partition("\n")[0]
    except OSError:
        return ""


def host_name() -> str:
    """Name of this machine; PLANNER_HOST stands for it where several share one name."""
    return os.environ.get("PLANNER_HOST") or socket.gethostname()
