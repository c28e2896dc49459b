"""Several hosts on one machine: network namespaces, veth pairs, and one link made slow by tc.

Three "nodes" of one process each hang on a bridge. What leaves one of them is shaped by a token
bucket; the profiler measures every pair of nodes and must name the slow ones.
"""

from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

from planner.report.profile import findings
from planner.spec.nodes import NodeLinks
from planner.spec.profile import Profile, load_profile
from tests.profiler.namespaces import network, profiled

pytestmark = pytest.mark.slow
NODES = 3
SLOW, SLOW_MBIT, FAST_MBIT = 2, 40, 400


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    """Return the profile of all nodes."""
    output = tmp_path_factory.mktemp("network") / "profile.json"
    rates = [SLOW_MBIT if node == SLOW else FAST_MBIT for node in range(NODES)]
    with network(rates, racks=[0] * NODES):
        profiled(NODES, output, "--largest", "1 MiB")
        yield load_profile(output)


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
