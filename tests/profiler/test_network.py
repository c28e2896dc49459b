"""Several hosts on one machine: network namespaces, veth pairs, and one link made slow by tc.

Three "nodes" of one process each hang on a bridge. What leaves one of them is shaped by a token
bucket; the profiler measures every pair of nodes and must name the slow ones.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("torch")

from planner.profiler.start import _end
from planner.report.profile import findings
from planner.spec.nodes import NodeLinks
from planner.spec.profile import Profile, load_profile

pytestmark = pytest.mark.slow
NODES = 3
SLOW, SLOW_MBIT, FAST_MBIT = 2, 40, 400
PREFIX = f"pl{os.getpid() % 10000}"


def run(words: str) -> None:
    subprocess.run(words.split(), check=True, capture_output=True, text=True)


def host(node: int) -> str:
    return f"{PREFIX}n{node}"


def address(node: int) -> str:
    return f"10.231.77.{node + 1}"


def shape(device: str, mbit: int, namespace: str) -> None:
    """Let ``mbit`` leave a device, with room for a tenth of a second."""
    burst, limit = max(16_000, mbit * 1000), mbit * 12_500
    run(f"ip netns exec {namespace} tc qdisc add dev {device} root tbf rate {mbit}mbit "
        f"burst {burst} limit {limit}")  # fmt: skip


def build() -> None:
    """Make a bridge and the nodes on it; both ways of a node have the rate of the node."""
    run(f"ip netns add {PREFIX}br")
    run(f"ip -n {PREFIX}br link add br0 type bridge")
    run(f"ip -n {PREFIX}br link set br0 up")
    for node in range(NODES):
        mbit = SLOW_MBIT if node == SLOW else FAST_MBIT
        run(f"ip netns add {host(node)}")
        run(f"ip -n {host(node)} link set lo up")
        run(f"ip -n {host(node)} link add eth0 type veth peer name v{node} netns {PREFIX}br")
        run(f"ip -n {host(node)} addr add {address(node)}/24 dev eth0")
        run(f"ip -n {host(node)} link set eth0 up")
        run(f"ip -n {PREFIX}br link set v{node} master br0 up")
        shape("eth0", mbit, host(node))
        shape(f"v{node}", mbit, f"{PREFIX}br")


def remove() -> None:
    for name in (*(host(node) for node in range(NODES)), f"{PREFIX}br"):
        with suppress(subprocess.CalledProcessError):
            run(f"ip netns del {name}")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Build the network, or skip with what the kernel said."""
    if not all(shutil.which(program) for program in ("ip", "tc")):
        pytest.skip("needs ip and tc (iproute2)")
    try:
        build()
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"this kernel or user may not do {' '.join(error.cmd)}: {error.stderr.strip()}")
    yield
    remove()


def start(node: int, output: Path) -> "subprocess.Popen[bytes]":
    words = ["ip", "netns", "exec", host(node), sys.executable, "-m", "torch.distributed.run"]
    words += ["--nnodes", str(NODES), "--nproc-per-node", "1", "--node-rank", str(node)]
    words += ["--master-addr", address(0), "--master-port", "29511", "-m", "planner.profiler"]
    words += ["--output", str(output), "--quick", "--largest", "1 MiB", "--timeout-s", "100"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "PLANNER_HOST": f"node{node}"}
    with output.with_name(f"node{node}.log").open("wb") as log:
        return subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture(scope="module")
def measured(network: None, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Return the profile of all nodes."""
    output = tmp_path_factory.mktemp("network") / "profile.json"
    nodes = [start(node, output) for node in range(NODES)]
    deadline = time.monotonic() + 240
    try:
        codes = [node.wait(max(1, deadline - time.monotonic())) for node in nodes]
    finally:
        for node in nodes:
            _end(node)  # type: ignore[arg-type]
    logs = "\n".join(log.read_text()[-1500:] for log in output.parent.glob("*.log"))
    assert codes == [0] * NODES, logs
    return load_profile(output)


def test_every_pair_of_nodes_is_measured_each_way(measured: Profile) -> None:
    across = {pair.ranks for pair in measured.pairs if pair.level == "cluster"}

    assert measured.hosts == ("node0", "node1", "node2")
    assert across == {(a, b) for a in range(NODES) for b in range(NODES) if a != b}


def test_rates_are_those_of_the_shaped_links(measured: Profile) -> None:
    links = measured.node_links
    assert isinstance(links, NodeLinks)
    for a in range(NODES):
        for b in range(NODES):
            if a == b:
                continue
            mbit = SLOW_MBIT if SLOW in (a, b) else FAST_MBIT
            rate = 8e-6 * links.bytes_per_s[a][b]
            # a bucket that is full lets the first bytes through at once; headers take some
            assert 0.5 * mbit < rate < 2.0 * mbit, (a, b, rate)
            assert 0 < links.latency_s[a][b] < 0.1


def test_the_slow_node_is_named(measured: Profile) -> None:
    # two of three pairs are slow, so the median is slow: the healthy pair cannot be blamed
    named = [text for text in findings(measured) if text.startswith("rank ")]
    links = measured.node_links
    assert links is not None
    best = {a: max(links.bytes_per_s[a]) for a in range(NODES)}

    assert not any(text.startswith("rank 0 to rank 1") for text in named)
    assert min(best, key=best.__getitem__) == SLOW
