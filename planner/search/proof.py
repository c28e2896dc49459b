"""How fast any stages of a layout could be: a bound on the step of every split that fits.

The simulated step is the longest of many chains of passes, and the seconds of each are linear in
the layers that the stages hold. So the least time that some chains and the memory of the ranks
allow (``programme``) bounds the step of every split. The simulator then tells which chain that
answer left out, and the programme is solved again: the layout with the least bound comes next.

Chains do not depend on seconds, so those found for one layout serve all with its schedule.
"""

import heapq
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.schedule.kinds import kind_of, schedule_name
from planner.search.partition import FloatArray
from planner.search.programme import StageProgramme, add_row, solved
from planner.search.recommend import Search
from planner.simulate.chains import Chain

LEAST_GAIN = 5e-4  # of the bound; a chain that says less ends the search
CHAINS_AT_ONCE = 10  # looked for before the next layout has its turn
MOST_PASSES = 2_000_000  # simulated in all to find chains: about a second


def provable(layout: Layout, layers: int) -> bool:
    """Whether the order of passes is fixed and what a stage costs is the sum of its layers."""
    name = schedule_name(layout)
    ordered = kind_of(name).pipelines == 1 and name != "zb_2p"  # whose order follows the seconds
    staged = layout.pp > 1 and layout.pp * layout.vpp <= layers + 2
    return ordered and staged and not layout.offload.fraction


@dataclass(slots=True)
class Open:
    """One programme of a layout: its least step, the columns with which, and HiGHS."""

    bound: float
    columns: FloatArray
    solver: Any


class LayoutBound:
    """The bound of one layout while chains are looked for; see ``StageProgramme``.

    ``bound`` is in units of ``until_s``, at most 1: what lies above is not told apart. ``known``
    are chains of the schedule, shared among its layouts. ``inner``, a split that fits, steadies the
    search: chains are looked for between it and the programme's answer.
    """

    def __init__(
        self,
        prices: Prices,
        layout: Layout,
        limit_bytes: float,
        until_s: float,
        uniform: bool,
        known: list[Chain],
        inner: Split | None = None,
    ) -> None:
        """Solve with the chains known so far."""
        self.programme = StageProgramme(prices, layout, limit_bytes)
        if not known:
            known += self.programme.plain_chains()
        self.known, self.until_s = known, until_s
        self.inner = None if inner is None else self.programme.columns(inner)
        numbers = self.programme.uniforms(until_s) if uniform else [None]
        solvers = (self.programme.solver(known, until_s, number) for number in numbers)
        self.open = [Open(*solved(one), one) for one in solvers if one is not None]
        self.passes = 0

    @property
    def bound(self) -> float:
        """The least of the programmes."""
        return min([1.0, *(one.bound for one in self.open)])

    def refine(self, chains: int) -> bool:
        """Look for more chains; False where there are none: the bound is as good as it gets."""
        for _ in range(chains):
            least = min(self.open, key=lambda one: one.bound, default=None)
            if least is None or least.bound >= 1:
                return False
            chain = self._missing(least.columns, least.bound)
            if chain is None:
                return False
            self.known.append(chain)
            add_row(least.solver, self.programme.chain_block([chain], self.until_s))
            least.bound, least.columns = solved(least.solver)
        return True

    def _missing(self, answer: FloatArray, bound: float) -> Chain | None:
        """Return a chain that ``answer`` does not keep, or None."""
        columns = answer.reshape(2, len(self.programme.kinds), self.programme.stages)
        points = [columns] if self.inner is None else [(columns + self.inner) / 2, columns]
        for point in points:
            chain = self.programme.longest(point)
            self.passes += self.programme.simulated_passes
            if self.programme.chain_s(chain, columns) > bound * self.until_s * (1 + LEAST_GAIN):
                return chain
        return None


def any_stages_bounds_s(
    prices: Prices, found: Search, until_s: float, uniform: bool, deadline: float
) -> dict[Layout, float]:
    """Return a bound on the step of every split of each fitting layout, below ``until_s`` at first.

    The layout with the least bound is always the next to be looked at, until no bound is below
    ``until_s``, as much was simulated as may be, or the monotonic clock has reached ``deadline``.
    """
    layers = prices.model.layers
    bounds = {
        one: bound_s
        for one, bound_s in found.bounds_s.items()
        if bound_s < until_s and (one.pp > 1 or one not in found.steps)
    }
    if prices.cluster.gpu.ranks_per_core > 1:  # who waits frees a core: chains do not tell the time
        return bounds
    heap = [(bound_s, row, one) for row, (one, bound_s) in enumerate(bounds.items())]
    heapq.heapify(heap)
    known: dict[tuple[str, int, int, int], list[Chain]] = defaultdict(list)
    begun: dict[Layout, LayoutBound] = {}
    passes = 0
    while heap and heap[0][0] < until_s and time.monotonic() < deadline:
        _, row, layout = heapq.heappop(heap)
        if not provable(layout, layers):
            continue
        if layout not in begun:
            order = schedule_name(layout), layout.pp, layout.vpp
            chains = known[*order, layout.micro_batches(prices.job.global_batch)]
            inner = found.steps[layout].split if layout in found.steps else None
            begun[layout] = LayoutBound(
                prices, layout, found.limit_bytes, until_s, uniform, chains, inner
            )
            more = True
        else:
            before = begun[layout].passes
            more = passes < MOST_PASSES and begun[layout].refine(CHAINS_AT_ONCE)
            passes += begun[layout].passes - before
        bounds[layout] = max(bounds[layout], begun[layout].bound * until_s)
        if more:
            heapq.heappush(heap, (bounds[layout], row, layout))
    return bounds
