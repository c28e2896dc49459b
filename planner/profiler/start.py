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
from planner.profiler.journal import journal_path
from planner.profiler.watch import PARENT
from planner.spec.profile import Profile, load_profile

KEPT_LINES = 20
TERMINATED = 15  # how torchrun ends the others


def profile(
    processes: int,
    model: str | Path | None,
    output: Path,
    options: Sequence[str] = (),
    timeout_s: float = 6 * 3600.0,
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
        raise _failure(code, lines, output)
    return load_profile(output)


def _failure(code: int, lines: list[str], output: Path) -> PlannerError:
    """Return the error that the processes reported, or else what they said last."""
    kept = ""
    if journal_path(output).exists():
        kept = "; what is measured is kept, the same command again goes on (or add --restart)"
    if said := dict.fromkeys(line[7:] for line in lines if line.startswith("error: ")):
        stalled = any(line.startswith("no progress for ") for line in said)
        return PlannerError(f"{line}{kept}" for line in said) if stalled else SpecError(said)
    if killed := _killed(lines):
        return PlannerError(f"{killed}{_during(lines)}{kept}")
    if code < 0:
        return PlannerError(f"torchrun was ended by {_signal(-code)}{_during(lines)}{kept}")
    # torch marks the traceback of each process by its rank; its last line names the exception
    raised = (re.match(r"\[rank\d+\]: (\S*(?:Error|Exception)\b.*)", line) for line in lines)
    if reasons := dict.fromkeys(match[1] for match in raised if match):
        return PlannerError(f"the profiler stopped: {reason}{kept}" for reason in reasons)
    last = "\n".join(lines[-KEPT_LINES:])
    return PlannerError(f"the profiler stopped with exit code {code}{kept}; it said last:\n{last}")


def _killed(lines: list[str]) -> str:
    """Return who was ended by a signal, from the report of torchrun: the first, not its peers."""
    rank = ""
    for line in lines:
        if match := re.match(r"\s*rank\s*: (\d+)", line):
            rank = match[1]
        elif (match := re.match(r"\s*exitcode\s*: -(\d+)", line)) and int(match[1]) != TERMINATED:
            return f"rank {rank} was ended by {_signal(int(match[1]))}"
    return ""


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    often = " (often the kernel, out of memory)" if name == "SIGKILL" else ""
    return f"{name}{often}"


def _during(lines: list[str]) -> str:
    """Return which measurement ran, from the last line of progress."""
    named = [line.partition(" left: ")[2] for line in lines if line.startswith("[")]
    return f" about {named[-1]!r}" if named and named[-1] else ""


def run_passing_on(
    command: Sequence[str], timeout_s: float, quiet: bool = False
) -> tuple[int, list[str]]:
    """Run ``command``, copy what it prints to stderr unless quiet; return exit code and lines.

    After ``timeout_s`` it ends with all its children, and ``PlannerError`` is raised.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # one thread is what torchrun would set, with a warning
        env={"OMP_NUM_THREADS": "1", **os.environ, PARENT: str(os.getpid())},
        start_new_session=True,  # a group of its own, so that all workers can be ended together
    )
    lines: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(process, lines, quiet), daemon=True)
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


def _pass_on(process: "subprocess.Popen[str]", lines: list[str], quiet: bool) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if quiet:
                continue
            # on a terminal a bar takes the place of the bar before
            bar = sys.stderr.isatty() and line.startswith("[")
            shown = f"\r\x1b[K{lines[-1]}" if bar else line
            print(shown, end="", file=sys.stderr, flush=True)


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
