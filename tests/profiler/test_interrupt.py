"""Kill -9 of a rank, torchrun or the command at random moments: nothing half, resume ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from planner.profiler.journal import journal_path
from planner.spec.profile import load_profile

WHO = ("rank", "torchrun", "command")
KILLS = int(os.environ.get("PLANNER_KILLS", "6"))  # half a minute each; 20 were made
CASES = [(number, WHO[number % 3]) for number in range(KILLS)]


def command(output: Path) -> list[str]:
    words = ["profile", "tiny-llama", "--nproc", "2", "--output", str(output), "--quick"]
    words += ["--seq-len", "64", "--micro-batch", "1", "--largest", "64 KiB"]
    return [sys.executable, "-m", "planner", *words]


def processes(output: Path) -> dict[str, list[int]]:
    """Return pids of the ranks, of torchrun and of the command that write ``output``."""
    found: dict[str, list[int]] = {name: [] for name in WHO}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(output).encode() not in words:
            continue
        kinds = {b"torch.distributed.run": "torchrun", b"planner": "command"}
        kind = next((name for word, name in kinds.items() if word in words), "rank")
        found[kind].append(int(folder.name))
    return found


def tasks_done(output: Path) -> int:
    """Return how many measurements are saved; the file must be whole whenever it is looked at."""
    try:
        text = journal_path(output).read_text()
    except FileNotFoundError:
        return 0
    return len(json.loads(text)["results"])


def wait_for(output: Path, who: str, count: int, running: "subprocess.Popen[str]") -> list[int]:
    """Wait until ``count`` measurements are saved; return who can be killed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        found = processes(output)[who]
        if found and (count == 0 or tasks_done(output) >= count):
            return found
        time.sleep(0.02)
    return []


def interrupt(tmp_path: Path, number: int, who: str) -> None:
    output = tmp_path / "profile.json"
    chance = random.Random(number)
    count = chance.choice([0, 1, 3, 10, 30, 60])
    with subprocess.Popen(
        command(output), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as running:
        victims = wait_for(output, who, count, running)
        time.sleep(chance.uniform(0, 0.2))
        for victim in [chance.choice(victims)] if victims else []:
            os.kill(victim, signal.SIGKILL)
        _, said = running.communicate(timeout=120)
    saved = tasks_done(output)
    if output.exists():  # it had ended before the blow
        load_profile(output)
        return
    if victims and who == "rank":
        assert "SIGKILL" in said
        assert "rank " in said
    again = subprocess.run(
        command(output), capture_output=True, text=True, timeout=180, check=False
    )

    assert again.returncode == 0, again.stderr[-2000:]
    found = load_profile(output)
    assert found.gemms or found.rejected  # on a machine with other work all may be doubted
    assert not journal_path(output).exists()
    if saved:
        # those of a killed command may have gone on for a moment
        before = int(again.stderr.partition(" of them measured before")[0].rpartition(" ")[2])
        assert before >= saved


@pytest.mark.slow
@pytest.mark.parametrize(("number", "who"), CASES)
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, number: int, who: str) -> None:
    interrupt(tmp_path, number, who)


@pytest.mark.slow
def test_a_rank_that_stops_is_named(tmp_path: Path) -> None:
    output = tmp_path / "profile.json"
    words = [*command(output), "--timeout", "5s"]
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as running:
        found = wait_for(output, "rank", 3, running)
        ranks = {pid: _rank(pid) for pid in found}
        stopped = next(pid for pid, rank in ranks.items() if rank == 1)
        os.kill(stopped, signal.SIGSTOP)
        _, said = running.communicate(timeout=120)

    assert running.returncode == 2
    assert "no progress for 5 s in " in said
    assert "rank 1 does not answer" in said
    assert "what is measured is kept" in said


def _rank(pid: int) -> int:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(word[5:]) for word in words if word.startswith(b"RANK="))
