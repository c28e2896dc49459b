"""Hosts of one machine: network namespaces on bridges, links shaped by a token bucket of ``tc``."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from planner.profiler.start import _end

PREFIX = f"pl{os.getpid() % 10000}"
Process = subprocess.Popen[str]


def run(words: str) -> None:
    subprocess.run(words.split(), check=True, capture_output=True, text=True)


def host(node: int) -> str:
    return f"{PREFIX}n{node}"


def address(node: int) -> str:
    return f"10.231.77.{node + 1}"


def _shape(device: str, mbit: int, namespace: str) -> None:
    """Let ``mbit`` leave a device, with room for a tenth of a second."""
    burst, limit = max(16_000, mbit * 1000), mbit * 12_500
    run(f"ip netns exec {namespace} tc qdisc add dev {device} root tbf rate {mbit}mbit "
        f"burst {burst} limit {limit}")  # fmt: skip


def _add_bridge(rack: int) -> None:
    run(f"ip netns add {PREFIX}br{rack}")
    run(f"ip -n {PREFIX}br{rack} link add br0 type bridge")
    run(f"ip -n {PREFIX}br{rack} link set br0 up")


def _add_node(node: int, rack: int, mbit: int) -> None:
    """Hang a node on the bridge of its rack; both ways have its rate."""
    bridge = f"{PREFIX}br{rack}"
    run(f"ip netns add {host(node)}")
    run(f"ip -n {host(node)} link set lo up")
    run(f"ip -n {host(node)} link add eth0 type veth peer name v{node} netns {bridge}")
    run(f"ip -n {host(node)} addr add {address(node)}/24 dev eth0")
    run(f"ip -n {host(node)} link set eth0 up")
    run(f"ip -n {bridge} link set v{node} master br0 up")
    _shape("eth0", mbit, host(node))
    _shape(f"v{node}", mbit, bridge)


def _add_trunk(mbit: int) -> None:
    """Join the bridges of the first two racks."""
    run(f"ip -n {PREFIX}br0 link add trunk type veth peer name trunk netns {PREFIX}br1")
    for rack in (0, 1):
        run(f"ip -n {PREFIX}br{rack} link set trunk master br0 up")
        _shape("trunk", mbit, f"{PREFIX}br{rack}")


@contextmanager
def network(mbit: Sequence[int], racks: Sequence[int], trunk_mbit: int = 0) -> Iterator[None]:
    """Build nodes of these rates in these racks, or skip with what the kernel said."""
    if not all(shutil.which(program) for program in ("ip", "tc")):
        pytest.skip("needs ip and tc (iproute2)")
    try:
        try:
            for rack in sorted(set(racks)):
                _add_bridge(rack)
            for node, (rate, rack) in enumerate(zip(mbit, racks, strict=True)):
                _add_node(node, rack, rate)
            if trunk_mbit:
                _add_trunk(trunk_mbit)
        except subprocess.CalledProcessError as error:
            words = " ".join(error.cmd)
            pytest.skip(f"this kernel or user may not do {words}: {error.stderr.strip()}")
        yield
    finally:
        names = [host(node) for node in range(len(mbit))]
        for name in (*names, *(f"{PREFIX}br{rack}" for rack in sorted(set(racks)))):
            with suppress(subprocess.CalledProcessError):
                run(f"ip netns del {name}")


def on_all(commands: dict[int, Sequence[str]], logs: Path, timeout_s: float = 280) -> None:
    """Run a command on each node at once; all must end well."""
    running: list[Process] = []
    deadline = time.monotonic() + timeout_s
    try:
        for node, command in commands.items():
            words = ["ip", "netns", "exec", host(node), *command]
            own = {"GLOO_SOCKET_IFNAME": "eth0", "PLANNER_HOST": f"node{node}"}
            with (logs / f"node{node}.log").open("w") as log:
                running.append(
                    subprocess.Popen(
                        words,
                        env=os.environ | own | {"OMP_NUM_THREADS": "1"},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        text=True,
                    )
                )
        codes = [one.wait(max(1, deadline - time.monotonic())) for one in running]
    finally:
        for one in running:
            _end(one)
    said = "\n".join(log.read_text()[-1500:] for log in logs.glob("node*.log"))
    assert codes == [0] * len(commands), said


def profiled(nodes: int, output: Path, *options: str) -> None:
    """Profile all nodes, one process each, into ``output``."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    torchrun += ["--nproc-per-node", "1", "--master-addr", address(0), "--master-port", "29511"]
    words = ["-m", "planner.profiler", "--output", str(output), "--quick", "--timeout-s", "100"]
    on_all(
        {node: [*torchrun, "--node-rank", str(node), *words, *options] for node in range(nodes)},
        output.parent,
    )
