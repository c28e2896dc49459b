"""Which machine takes which place of a job: the order of nodes with the least communication.

The seconds of one order are those of the critical path (Pipette, DATE 2024): the slowest pipeline's
hops, and the slowest stage's collectives, each as slow as its slowest link. 1F1B cannot hide one
round of hops there and back for every ``p`` micro-batches. The same holds for every run of ``k``
neighbouring stages, which hold ``k`` micro-batches at a time: one slow hop alone (``k = 2``) may
hold up the step more than the whole path. Every stage's collectives count, not only the first's.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import perm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_ENUMERATED = 6000  # orders; 7 nodes have 5,040
RESTARTS = 24
MOST_NEIGHBOURS = 6000  # orders looked at in one step; 32 nodes have 4,000
MOST_ELEMENTS = 40_000_000  # links looked up in one search: about 2 seconds
SPREAD = 1e-3  # weight of the mean beside the largest: leads over plateaus of equal maxima


@dataclass(frozen=True, slots=True, eq=False)
class PlacementProblem:
    """Seconds of one step's communication between nodes, by the pair of nodes that carries it.

    ``places`` of the job are filled by as many of the ``M`` measured nodes. ``hop_s`` ``[M, M]``
    is one hop of all micro-batches, there and back. ``pipelines`` ``[P, H, 2]`` are
    the places that each pipeline's hops join. ``slowness`` ``[M, M]`` is a link's time against a
    healthy one's. ``rings`` holds for each stage and kind of group the pairs of places its
    messages cross; ``ring_s`` what it takes over healthy links, ``ring_stage`` whose it is.
    """

    places: int
    hop_s: FloatArray
    pipelines: IntArray
    slowness: FloatArray
    rings: tuple[IntArray, ...]
    ring_s: FloatArray
    ring_stage: IntArray

    @property
    def nodes(self) -> int:
        """Measured nodes to choose from."""
        return len(self.slowness)

    @property
    def links(self) -> int:
        """Numbers that are looked up and added for one order, about."""
        hops = self.pipelines.size // 2 * min(8, self.pipelines.shape[1])
        return max(1, int(hops) + sum(len(ring) for ring in self.rings))


@dataclass(frozen=True, slots=True)
class Placement:
    """An order of nodes: ``nodes[place]``, its seconds, and whether no order has fewer."""

    nodes: tuple[int, ...]
    seconds: float
    exact: bool


def communication_s(problem: PlacementProblem, orders: IntArray) -> FloatArray:
    """Return the seconds of each order, ``[..., places or more]`` to ``[...]``."""
    return _seconds(problem, orders)[0]


class _Rings(NamedTuple):
    """All rings of a problem in one row of pairs: where each starts, and what it weighs."""

    first: IntArray  # [E]
    second: IntArray  # [E]
    starts: IntArray  # [R]
    of_stage: FloatArray  # [R, stages], seconds of the ring in its stage's column
    mean: FloatArray  # [E]


@lru_cache(maxsize=8)
def _flat(problem: PlacementProblem) -> _Rings:
    lengths = np.array([len(ring) for ring in problem.rings], dtype=np.int64)
    pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *problem.rings])
    stages = int(problem.ring_stage.max(initial=0)) + 1
    of_stage = np.zeros((len(lengths), stages))
    of_stage[np.arange(len(lengths)), problem.ring_stage] = problem.ring_s
    mean = np.repeat(problem.ring_s / np.maximum(lengths, 1) / stages, lengths)
    return _Rings(pairs[:, 0], pairs[:, 1], np.cumsum(lengths) - lengths, of_stage, mean)


def _seconds(problem: PlacementProblem, orders: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the seconds by the largest pipeline and stage, and by their means."""
    rings, count = _flat(problem), problem.nodes
    worst, mean = np.zeros(orders.shape[:-1]), np.zeros(orders.shape[:-1])
    if len(rings.starts):
        links = orders[..., rings.first] * count + orders[..., rings.second]
        slow = problem.slowness.ravel().take(links)
        of_ring = np.maximum.reduceat(slow, rings.starts, axis=-1)
        of_stage = of_ring @ rings.of_stage
        worst, mean = of_stage.max(axis=-1), of_stage.mean(axis=-1) + slow @ rings.mean
    if problem.pipelines.size:
        ends = orders[..., problem.pipelines]
        hops = problem.hop_s.ravel().take(ends[..., 0] * count + ends[..., 1])
        worst = worst + critical_s(hops).max(axis=-1)
        mean = mean + hops.mean(axis=(-2, -1))
    return worst, mean


def critical_s(hops: FloatArray) -> FloatArray:
    """Return what hops ``[..., H]`` add to the step: the slowest run of neighbouring stages.

    A run of ``n`` hops passes ``n + 1`` micro-batches in one round. Of long pipelines not every
    length is looked at, the whole path always is.
    """
    count = hops.shape[-1]
    sums = np.concatenate([np.zeros((*hops.shape[:-1], 1)), hops.cumsum(axis=-1)], axis=-1)
    lengths = {*range(1, min(count, 8) + 1), *(2**power for power in range(4, 12)), count}
    runs = [
        (sums[..., length:] - sums[..., :-length]).max(axis=-1) / (length + 1)
        for length in sorted(lengths)
        if length <= count
    ]
    return np.asarray(np.max(runs, axis=0))


def host_order(problem: PlacementProblem) -> IntArray:
    """Return the nodes as they were measured, those without a place last."""
    return np.arange(problem.nodes)


def place_nodes(problem: PlacementProblem, seed: int = 0) -> Placement:
    """Return the best order: all of them where they are few, else a local search.

    It is never slower than the order of measurement, and the same for the same problem and seed.
    """
    if perm(problem.nodes, problem.places) <= MOST_ENUMERATED:
        return enumerate_orders(problem)
    return local_search(problem, seed)


def enumerate_orders(problem: PlacementProblem) -> Placement:
    """Return the best of all orders; the first in order of names where several are."""
    orders = np.array(list(permutations(range(problem.nodes), problem.places)))
    seconds = communication_s(problem, orders)
    best = int(np.argmax(seconds <= seconds.min() * (1 + 1e-12)))
    return Placement(tuple(orders[best].tolist()), float(seconds[best]), True)


def local_search(problem: PlacementProblem, seed: int = 0, restarts: int = RESTARTS) -> Placement:
    """Return the best order that descents from several starts reach.

    The first descent begins at the order of measurement, the second at a greedy chain of fast
    links, later ones at the best order with two of its runs exchanged or at a random one. A
    descent takes the best of all exchanges, reversals and moves of runs until none helps.
    """
    chance = np.random.default_rng(seed)
    best = host_order(problem)
    best_s = float(communication_s(problem, best))
    budget = MOST_ELEMENTS
    moves = _moves(problem.nodes, problem.places, chance)
    for start in range(restarts):
        order, cost = _descend(problem, _start(problem, best, start, chance), moves)
        budget -= cost
        seconds = float(communication_s(problem, order))
        if seconds < best_s * (1 - 1e-12):
            best, best_s = order, seconds
        if budget <= 0:
            break
    return Placement(tuple(best[: problem.places].tolist()), best_s, False)


def _start(
    problem: PlacementProblem, best: IntArray, start: int, chance: np.random.Generator
) -> IntArray:
    if start == 0:
        return best
    if start == 1:
        return _chain(problem)
    if start % 3 == 0:
        return chance.permutation(problem.nodes)
    cuts = np.sort(chance.choice(problem.nodes + 1, 4, replace=problem.nodes < 4))
    head, one, two, three, tail = np.split(best, cuts)
    return np.concatenate([head, three, two, one, tail])


def _chain(problem: PlacementProblem) -> IntArray:
    """Return nodes so that each is the fastest to reach from the one before."""
    slow = problem.slowness + problem.hop_s / max(float(problem.hop_s.max()), 1e-300)
    left, chain = set(range(problem.nodes)), [int(slow.sum(axis=1).argmin())]
    left.remove(chain[0])
    while left:
        chain.append(min(left, key=lambda node: (slow[chain[-1], node], node)))
        left.remove(chain[-1])
    return np.array(chain)


def _descend(problem: PlacementProblem, order: IntArray, moves: IntArray) -> tuple[IntArray, int]:
    """Return the order that no move improves, and how many links were looked up on the way."""
    looked_up = 0
    now = float(_guided(problem, order))
    while True:
        seconds = _guided(problem, order[moves])
        looked_up += len(moves) * problem.links
        chosen = int(seconds.argmin())
        if not seconds[chosen] < now * (1 - 1e-12) or looked_up > MOST_ELEMENTS:
            return order, looked_up
        order, now = order[moves[chosen]], float(seconds[chosen])


def _guided(problem: PlacementProblem, orders: IntArray) -> FloatArray:
    worst, mean = _seconds(problem, orders)
    return worst + SPREAD * mean


def _moves(nodes: int, places: int, chance: np.random.Generator) -> IntArray:
    """Return neighbours of an order as permutations of its places, ``[moves, nodes]``.

    Exchanges of two nodes, reversals of a run (2-opt), and a run of one to three nodes moved
    elsewhere, as it is or reversed; of many nodes as large a sample as there is time for. Moves
    among nodes without a place are left out.
    """
    kinds = [(0, i, j) for i in range(places) for j in range(i + 1, nodes)]
    kinds += [(4, i, j) for i in range(places) for j in range(i + 2, nodes)]
    for run in (1, 2, 3):
        starts = [(i, to) for i in range(nodes - run + 1) for to in range(nodes - run + 1)]
        used = [(i, to) for i, to in starts if i != to and min(i, to) < places]
        kinds += [(run, i, to) for i, to in used]
        kinds += [(-run, i, to) for i, to in used if run > 1]
    if len(kinds) > MOST_NEIGHBOURS:
        sample = chance.choice(len(kinds), MOST_NEIGHBOURS, replace=False)
        kinds = [kinds[index] for index in sample]
    return np.array([_moved(nodes, *kind) for kind in kinds]).reshape(-1, nodes)


def _moved(nodes: int, kind: int, i: int, j: int) -> IntArray:
    """Return one neighbour: kind 0 exchanges, 4 reverses, else a run of so many goes to ``j``."""
    order = np.arange(nodes)
    if kind == 0:
        order[[i, j]] = j, i
        return order
    if kind == 4:
        order[i : j + 1] = order[i : j + 1][::-1].copy()
        return order
    length = abs(kind)
    run, rest = order[i : i + length], np.delete(order, slice(i, i + length))
    return np.concatenate([rest[:j], run if kind > 0 else run[::-1], rest[j:]])
