"""A Slurm of one node, this machine: munge, controller and node daemon, all in one folder.

Nothing of an installed cluster is read or changed. The GPUs are empty files. (Debian's Slurm allows
one node per machine.)
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_START_S, _ENDED = 30.0, ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={control}
SlurmdPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Gres=gpu:{gpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Return why no Slurm can be started here; empty when one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no {', '.join(absent)} (Debian: slurm-wlm, munge)"
    try:
        socket.gethostbyname(host())
    except OSError:
        return f"the name of this machine, {host()!r}, does not resolve"
    return ""


def host() -> str:
    """Return the name of the only node."""
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


@dataclass(frozen=True)
class Slurm:
    """A running cluster; ``environ`` is what its commands need."""

    folder: Path
    environ: dict[str, str]

    def command(self, *words: str, folder: Path | None = None) -> str:
        """Return what a Slurm command prints; raises with its words where it fails."""
        done = subprocess.run(
            words, env=self.environ, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, job: Path, *arguments: str, timeout_s: float = 300) -> tuple[str, int, str]:
        """Submit from the folder of ``job``; return state, exit code and output of the end."""
        output = self.folder / "job.out"
        words = ("sbatch", "--parsable", f"--output={output}", job.name, *arguments)
        number = self.command(*words, folder=job.parent).strip()
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            shown = self.command("scontrol", "--oneliner", "show", "job", number)
            fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
            if fields["JobState"] in _ENDED:
                return fields["JobState"], int(fields["ExitCode"].split(":")[0]), output.read_text()
            time.sleep(0.5)
        self.command("scancel", number)
        raise AssertionError(f"job {number} is {shown}\n{output.read_text()}")


def _write_conf(folder: Path, gpus: int) -> None:
    control, port = _free_ports(2)
    for number in range(gpus):
        (folder / f"gpu{number}").touch()
    text = _CONF.format(host=host(), user=getpass.getuser(), folder=folder, control=control,
                        port=port, cores=os.cpu_count(), gpus=gpus)  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


@contextmanager
def _daemon(slurm: Slurm, *words: str) -> Iterator[None]:
    log = slurm.folder / f"{words[0]}-{words[-1].rpartition('/')[2]}.out"
    with log.open("w") as out:
        process = subprocess.Popen(words, env=slurm.environ, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def slurm(folder: Path, gpus: int = 4) -> Iterator[Slurm]:
    """Run a node with so many GPUs until the block ends."""
    _write_conf(folder, gpus)
    conf = {"PATH": _PATH, "SLURM_CONF": f"{folder}/slurm.conf"}
    cluster = Slurm(folder, os.environ | conf)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log",
             "seed-file": "seed"}  # fmt: skip
    munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    with ExitStack() as stack:
        stack.enter_context(_daemon(cluster, "munged", "--foreground", "--force", *munge))
        _until(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(_daemon(cluster, "slurmctld", "-D"))
        stack.enter_context(_daemon(cluster, "slurmd", "-D"))
        _until(lambda: _state(cluster) == "idle", folder)
        yield cluster


def _state(cluster: Slurm) -> str:
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], env=cluster.environ, check=False,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.strip()


def _until(ready: Callable[[], bool], folder: Path) -> None:
    until = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > until:
            logs = {file.name: file.read_text()[-1000:] for file in folder.glob("*.out")}
            raise TimeoutError(f"Slurm does not start: {logs}")
        time.sleep(0.2)
