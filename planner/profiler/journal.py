"""What is measured so far, in a file beside the profile: an interrupted run goes on from it.

The file is written whole after each task, so it is never cut short; it goes when the profile is
there.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from planner.errors import SpecError
from planner.spec.files import read_text, write_whole

JOURNAL_VERSION = 1
WAIT_S = 5.0  # the processes of a killed run end by themselves


def journal_path(output: Path) -> Path:
    """Return where the measurements of an unfinished profile are."""
    return output.with_name(f"{output.name}.part")


class Journal:
    """Results by task; ``machine`` is what must be equal for a run to go on."""

    def __init__(self, output: Path, machine: dict[str, Any], restart: bool = False) -> None:
        self.path, self.machine = journal_path(output), machine
        self.results: dict[str, dict[str, Any]] = {}
        if self.path.exists() and not restart:
            self.results = self._read()
        self._write()

    def _read(self) -> dict[str, dict[str, Any]]:
        remedy = "finish it on that machine, or start anew with --restart"
        try:
            data = json.loads(read_text(self.path))
            version, machine = data["version"], data["machine"]
            writer, results = data["writer"], data["results"]
        except (ValueError, KeyError, TypeError):
            raise SpecError(
                f"{self.path}: not what the profiler writes; remove it or add --restart"
            ) from None
        if version != JOURNAL_VERSION:
            raise SpecError(f"{self.path}: of another version of planner; add --restart")
        differing = [
            f"{name} {machine.get(name)!r}, here {value!r}"
            for name, value in self.machine.items()
            if machine.get(name) != value
        ]
        if differing:
            raise SpecError(f"{self.path}: begun with {'; '.join(differing)}; {remedy}")
        _wait_for(self.path, writer)
        return dict(results)

    def add(self, task: str, result: dict[str, Any]) -> None:
        """Keep the records of a task."""
        self.results[task] = result
        self._write()

    def _write(self) -> None:
        data = {
            "version": JOURNAL_VERSION,
            "machine": self.machine,
            "writer": {"host": socket.gethostname(), "pid": os.getpid()},
            "results": self.results,
        }
        write_whole(self.path, json.dumps(data))

    def close(self) -> None:
        """Remove the file: the profile is written."""
        self.path.unlink(missing_ok=True)


def _wait_for(path: Path, writer: dict[str, Any]) -> None:
    """Refuse to write what another profiler is writing."""
    if writer["host"] != socket.gethostname() or writer["pid"] == os.getpid():
        return
    deadline = time.monotonic() + WAIT_S
    while Path(f"/proc/{writer['pid']}").exists() and _is_profiler(writer["pid"]):
        if time.monotonic() > deadline:
            raise SpecError(
                f"{path}: process {writer['pid']} is still writing it; wait for it or end it"
            )
        time.sleep(0.1)


def _is_profiler(pid: int) -> bool:
    try:
        return b"planner.profiler" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
