"""Start the profiler under torchrun from a process that does not need torch itself."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from planner.errors import PlannerError, SpecError
from planner.spec.profile import Profile, load_profile

KEPT_LINES = 20


def profile(
    processes: int,
    model: str | Path | None,
    output: Path,
    options: Sequence[str] = (),
    timeout_s: float = 3600.0,
) -> Profile:
    """Measure this machine with ``processes`` processes; return the profile written to ``output``.

    ``options`` are further arguments of ``planner.profiler``, such as ``("--tp", "8")``. Progress
    goes to stderr. What the processes say is wrong comes back as ``SpecError``.
    """
    if processes < 1:
        raise SpecError(f"{processes} processes cannot measure; start one for each GPU")
    if importlib.util.find_spec("torch") is None:
        raise SpecError("profiling needs torch: pip install 'llm-layout-planner[run]'")
    chosen = ["--output", str(output), *options]
    if model is not None:
        chosen += ["--model", str(model)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    workers = ["--nproc-per-node", str(processes), "-m", "planner.profiler"]
    code, lines = run_passing_on([*torchrun, *workers, *chosen], timeout_s)
    if code:
        raise _failure(code, lines)
    return load_profile(output)


def _failure(code: int, lines: list[str]) -> PlannerError:
    """Return the error that the processes reported, or else what they said last."""
    if said := dict.fromkeys(line[7:] for line in lines if line.startswith("error: ")):
        return SpecError(said)
    # torch marks the traceback of each process by its rank; its last line names the exception
    raised = (re.match(r"\[rank\d+\]: (\S*(?:Error|Exception)\b.*)", line) for line in lines)
    if reasons := dict.fromkeys(match[1] for match in raised if match):
        return PlannerError(f"the profiler stopped: {reason}" for reason in reasons)
    last = "\n".join(lines[-KEPT_LINES:])
    return PlannerError(f"the profiler stopped with exit code {code}; it said last:\n{last}")


def run_passing_on(command: Sequence[str], timeout_s: float) -> tuple[int, list[str]]:
    """Run ``command``, copy all it prints to stderr, and return its exit code and lines.

    After ``timeout_s`` it ends with all its children, and ``PlannerError`` is raised.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"OMP_NUM_THREADS": "1", **os.environ},  # what torchrun would set, with a warning
        start_new_session=True,  # a group of its own, so that all workers can be ended together
    )
    lines: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(process, lines), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        last = lines[-1] if lines else "nothing"
        message = f"profiling took more than {timeout_s:g} s and was stopped; it said last: {last}"
        raise PlannerError(message) from None
    except BaseException:  # Ctrl-C does not reach the group by itself
        _end(process)
        raise
    reader.join(timeout=5.0)
    return code, lines


def _pass_on(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            print(line, end="", file=sys.stderr, flush=True)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process and its group: first politely, then at once."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=5.0)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
