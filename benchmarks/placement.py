"""What placing nodes on measured links gains in communication, for every shape of a job.

    python -m benchmarks.placement LINKS...        (from the root of the repository)

LINKS are files that ``planner recommend --links`` takes. A job of ``p`` stages on all nodes has a
ring in each stage and a hop between neighbours; the ring takes as long as all hops of one pass
there and back over healthy links do, so that both count.
"""

import sys
import time
from itertools import pairwise

import numpy as np

from planner.cost.links import link_shares
from planner.formats.mpigraph import read_node_links
from planner.layout.rules import divisors
from planner.search.placement import (
    FloatArray,
    PlacementProblem,
    communication_s,
    host_order,
    place_nodes,
)


def problem(stages: int, shares: FloatArray) -> PlacementProblem:
    """Return a job of ``stages`` stages on all nodes."""
    count = len(shares)
    nodes = np.arange(count).reshape(stages, count // stages)
    hops = [[(a[k], b[k]) for a, b in pairwise(nodes)] for k in range(count // stages)]
    rings = [np.stack([row, np.roll(row, -1)], axis=-1) for row in nodes if len(row) > 1]
    hop_s = (1 / shares) * (1 - np.eye(count))
    return PlacementProblem(
        count,
        hop_s,
        np.array(hops, dtype=np.int64).reshape(count // stages, stages - 1, 2),
        1 / shares,
        tuple(rings),
        np.full(len(rings), max(1.0, (stages - 1) / stages)),
        np.arange(len(rings)),
    )


def main() -> None:
    """Print one line for each file and number of stages."""
    print(f"{'file':24} {'nodes':>5} {'stages':>6} {'less communication':>18} {'search':>8}")
    for path in sys.argv[1:]:
        shares = link_shares(read_node_links(path))
        for stages in divisors(len(shares)):
            one = problem(stages, shares)
            started = time.perf_counter()
            found = place_nodes(one)
            took_s = time.perf_counter() - started
            gain = 1 - found.seconds / float(communication_s(one, host_order(one)))
            name = path.rpartition("/")[2]
            print(f"{name:24} {len(shares):5} {stages:6} {100 * gain:16.1f} % {took_s:6.2f} s")


if __name__ == "__main__":
    main()
