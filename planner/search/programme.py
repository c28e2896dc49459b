"""The layers of a layout's stages as a linear programme: all, with room, and no chain too long.

Columns are the layers, kept or recomputed, that each stage holds; the step is the last one. Rows
say that all layers are somewhere, that ranks have room, that no chain of passes (simulate.chains)
is longer than the step. Layers may be cut, which only lowers the answer; whole ones count where a
rank has no time or room for one more. HiGHS solves.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from planner.cost.imbalance import slow_node_stall_s
from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split, StageLayers
from planner.schedule.kinds import schedule_name, stage_of
from planner.search.climb import end_seconds, layer_seconds
from planner.search.ilp import stdout_silenced
from planner.search.partition import FloatArray, IntArray
from planner.search.stages import partition_problem
from planner.simulate.chains import Chain, longest_chain, plain_chains
from planner.simulate.hops import hops_s
from planner.simulate.step import run_kind
from planner.simulate.tails import rank_tail

SIMULATED_GROUPS = 3  # micro-batches, in units of the ranks, that show the steady state
MOST_UNIFORM = 8  # recomputed layers of a stage told apart where all stages recompute as many
NEARLY = 1 + 1e-9


class Block:
    """Linear limits, ``low <= factors @ columns + step * the step <= high``, a row each."""

    def __init__(self, factors: FloatArray, low: Any, high: Any, step: float = 0.0) -> None:
        """Factors are ``[rows, 2, kinds, stages]``; the others ``[rows]`` or one for all."""
        count = len(factors)
        self.factors = factors
        self.matrix = np.column_stack([factors.reshape(count, -1), np.full(count, step)])
        self.low = np.broadcast_to(np.asarray(low, dtype=float), count)
        self.high = np.broadcast_to(np.asarray(high, dtype=float), count)


class StageProgramme:
    """The layers of each stage as columns ``[2, kinds, stages]``, kept and recomputed.

    ``kinds`` are those of layers: with experts and without. One more column, the last, is the step.
    """

    def __init__(self, prices: Prices, layout: Layout, limit_bytes: float) -> None:
        """Price layers, ends, transfers, tails and memory of ``layout``."""
        model, job, name = prices.model, prices.job, schedule_name(layout)
        self.layout, self.kind = layout, run_kind(layout, job.software)
        self.of_rank = stage_of(name, layout.pp, layout.vpp)
        self.stages = self.of_rank.size
        self.micro_batches = layout.micro_batches(job.global_batch)
        self.simulated = self.micro_batches
        if name in ("1f1b", "interleaved_1f1b"):
            steady, groups = SIMULATED_GROUPS * layout.pp, self.micro_batches // layout.pp
            self.simulated -= max(0, groups * layout.pp - steady)
        self.problem = partition_problem(prices, layout, limit_bytes, least=True)
        moe = np.array([model.is_moe_layer(layer) for layer in range(model.layers)])
        self.kinds, self.first, self.count = np.unique(moe, return_index=True, return_counts=True)
        self.kind_of_layer = np.searchsorted(self.kinds, moe)
        by_kind = [layer_seconds(prices, layout, again) for again in (False, True)]
        # [2, kinds, 3]
        self.layer_s = np.array([[kind[one] for one in self.kinds.tolist()] for kind in by_kind])
        self.ends_s = end_seconds(prices, layout, self.stages)
        self.prices = prices
        self.stall_s = slow_node_stall_s(job.software, layout, prices.cluster, self.micro_batches)
        self.arguments: dict[str, Any] = {
            "kind": name,
            "stages": layout.pp,
            "chunks": layout.vpp,
            "micro_batches": self.micro_batches,
            "send_s": hops_s(prices, layout, self.of_rank, self.kind.splits),
            "overlap_p2p": job.software.overlap_pipeline,
        }

    @cached_property
    def tails(self) -> tuple[FloatArray, FloatArray]:
        """Return the least tail of a rank: seconds ``[ranks]`` and for a layer ``[ranks, kinds]``.

        A line below the tails of some numbers of layers, by a hundredth: a tail is convex in them
        (what shows of an exchange is what exceeds the passes it hides behind) but for the steps in
        which buckets are filled. Recomputed layers hide most.
        """
        found: dict[tuple[bool, bool], FloatArray] = {}
        lines = []
        for mine in self.of_rank.T:
            ends = bool((mine == 0).any()), bool((mine == self.stages - 1).any())
            if ends not in found:
                found[ends] = self._tail_line(ends, self.ends_s[mine].sum(axis=0))
            lines.append(found[ends])
        return np.array(lines)[:, 0], np.array(lines)[:, 1:]

    def _tail_line(self, ends: tuple[bool, bool], ends_s: FloatArray) -> FloatArray:
        """Return seconds at no layers, and for one more of each kind, ``[1 + kinds]``."""
        each = np.eye(len(self.kinds), dtype=np.int64)
        usual = len(self.kinds) - 1  # of experts, if there are any
        mean = max(2, int(self.count.sum()) // self.layout.pp)

        def tail(layers: IntArray) -> float:
            counts = dict(zip(self.kinds.tolist(), layers.tolist(), strict=True))
            held = StageLayers(counts.get(False, 0), counts.get(True, 0), *ends)
            forward_s, *backward_s = (layers @ self.layer_s[1] + ends_s).tolist()
            seconds = forward_s, sum(backward_s)
            return rank_tail(self.prices, self.layout, self.kind, held, *seconds).total

        some = np.unique([1, mean // 2, mean - 1, mean, mean + 1, 2 * mean])
        tails = np.array([tail(each[usual] * count) for count in some])
        here = tails[some == mean][0]
        slope = np.array([tail(each[usual] * mean + one) - here for one in each])
        slope[usual] = (here - tails[0]) / (mean - 1)
        lowest = (tails - slope[usual] * some).min() - 0.01 * here
        return np.append(lowest, slope)

    @property
    def simulated_passes(self) -> int:
        """Passes of one simulation."""
        return self.stages * self.simulated * (2 + self.kind.splits)

    def plain_chains(self) -> list[Chain]:
        """Return the chains of every order."""
        return plain_chains(self.kind, self.of_rank, self.micro_batches)

    def columns(self, split: Split) -> FloatArray:
        """Return a split as columns."""
        found, first = np.zeros((2, len(self.kinds), self.stages)), 0
        recomputed = split.recomputed or (0,) * self.stages
        for stage, (count, again) in enumerate(zip(split.layers, recomputed, strict=True)):
            for layer in range(count):
                found[int(layer < again), self.kind_of_layer[first + layer], stage] += 1
            first += count
        return found

    def stage_s(self, columns: FloatArray) -> FloatArray:
        """Return seconds of forward, backward and weight pass of each stage, ``[stages, 3]``."""
        return np.asarray(np.einsum("rks,rkp->sp", columns, self.layer_s) + self.ends_s)

    def chain_block(self, chains: Sequence[Chain], until_s: float) -> Block:
        """Keep the step, in units of ``until_s``, no shorter than each chain with its tail."""
        passes = np.stack([chain.passes for chain in chains])
        factors = np.einsum("csp,rkp->crks", passes, self.layer_s)
        constant = np.stack([chain.hops for chain in chains]) @ self.arguments["send_s"]
        constant += np.einsum("csp,sp->c", passes, self.ends_s) + self.stall_s
        tail_s, of_layer_s = self.tails
        for row, chain in enumerate(chains):
            factors[row][:, :, self.of_rank[:, chain.rank]] += of_layer_s[chain.rank][:, None]
            constant[row] += tail_s[chain.rank]
        return Block(-factors / until_s, constant / until_s, np.inf, 1.0)

    def chain_s(self, chain: Chain, columns: FloatArray) -> float:
        """Return the seconds of a chain with the tail behind it."""
        block = self.chain_block([chain], 1.0)
        return float(block.low[0] - (block.factors[0] * columns).sum())

    def longest(self, columns: FloatArray) -> Chain:
        """Return the longest chain of the simulated schedule.

        Of many micro-batches through whole backward passes only some are simulated: in the steady
        state the rank that does most on the chain does all passes of the others as well.
        """
        forward_s, backward_s, weight_s = self.stage_s(columns).T
        times = {"forward_s": forward_s, "backward_s": backward_s}
        times["weight_s"] = weight_s if self.kind.splits else None
        by_rank = columns.sum(axis=0)[:, self.of_rank].sum(axis=1)  # [kinds, ranks]
        tail_s, of_layer_s = self.tails
        tails_s = tail_s + (of_layer_s.T * by_rank).sum(axis=0)
        few = self.arguments | times | {"micro_batches": self.simulated}
        _, chain = longest_chain(few, self.kind, tails_s)
        if self.simulated < self.micro_batches:
            busiest = chain.passes[self.of_rank].sum(axis=(0, 2)).argmax()
            chain.passes[self.of_rank[:, busiest], :2] += self.micro_batches - self.simulated
        return chain

    def solver(self, chains: Sequence[Chain], until_s: float, uniform: int | None) -> Any:
        """Return the programme in HiGHS, the step in units of ``until_s``; None: no split can be.

        ``uniform``: what every stage recomputes, or all of its layers if it has fewer.
        """
        room = self._whole_layers(until_s, uniform)
        if (
            room.high.reshape(-1, self.layout.pp).sum(axis=1) < [self.count.sum(), *self.count]
        ).any():
            return None
        blocks = [self._all_layers(), self._filled_stages(), self._memory(), room]
        upper = np.full((2, len(self.kinds), self.stages), np.inf)
        if uniform is not None:
            blocks.append(self._uniform(uniform, self._most_layers(until_s)))
            upper[1] = uniform
        return _highs([*blocks, self.chain_block(chains, until_s)], upper)

    def uniforms(self, until_s: float) -> list[int | None]:
        """Return the numbers of recomputed layers to tell apart where all stages have the same."""
        most = self._most_layers(until_s)
        return list(range(most + 1)) if most <= MOST_UNIFORM else [None]

    def _most_layers(self, until_s: float) -> int:
        """Return the layers of one stage that ``until_s`` leaves time for."""
        return int(until_s / (self.micro_batches * self.layer_s[0].sum(axis=-1).min()))

    def _all_layers(self) -> Block:
        factors = self._zeros(len(self.kinds))
        kinds = np.arange(len(self.kinds))
        factors[kinds, :, kinds] = 1
        return Block(factors, self.count, self.count)

    def _filled_stages(self) -> Block:
        """Give every stage a layer, or all but the ends where there are too few."""
        filled = self._filled()
        factors = self._zeros(len(filled))
        factors[np.arange(len(filled)), :, :, filled] = 1
        return Block(factors, 1.0, np.inf)

    def _filled(self) -> IntArray:
        few = self.stages > self.count.sum()
        return np.arange(1, self.stages - 1) if few else np.arange(self.stages)

    def _layer_bytes(self) -> tuple[FloatArray, FloatArray]:
        """Return bytes of a layer: kept for a pass ``[2, kinds]``, and always ``[kinds]``."""
        problem = self.problem
        kept = np.stack([problem.kept_bytes[self.first], problem.kept_recompute_bytes[self.first]])
        return kept, problem.static_bytes[self.first]

    def _memory(self) -> Block:
        """Keep every rank within its memory at each moment."""
        kept, static = self._layer_bytes()
        ranks, limit = self.layout.pp, self.problem.limit_bytes
        passes = self.problem.moments[:, self.of_rank]  # [moments, chunks, ranks]
        factors = self._zeros(len(passes), ranks)
        for rank, mine in enumerate(self.of_rank.T):
            at_moments = kept[..., None] * passes[:, None, None, :, rank] + static[:, None]
            factors[:, rank][..., mine] = at_moments / limit[rank]
        room = 1 - self.problem.stage_bytes[self.of_rank].sum(axis=0) / limit
        return Block(factors.reshape(-1, *factors.shape[2:]), -np.inf, np.tile(room, len(passes)))

    def _whole_layers(self, until_s: float, uniform: int | None) -> Block:
        """Keep the whole layers of a rank within its time and memory, of all kinds or each alone.

        Rows ``[1 + kinds, ranks]``. ``uniform`` stages recompute so many, or all.
        """
        kept, static = self._layer_bytes()
        kept_s = self.layer_s[0].sum(axis=-1)
        again_s = (self.layer_s[1] - self.layer_s[0]).sum(axis=-1).min()
        own_s = self.ends_s.sum(axis=-1)[self.of_rank].sum(axis=0)
        left_s = (until_s - self.stall_s) / self.micro_batches - own_s  # [ranks]
        left_bytes = self.problem.limit_bytes
        left_bytes = left_bytes - self.problem.stage_bytes[self.of_rank].sum(axis=0)
        passes = self.problem.moments[:, self.of_rank].min(axis=(0, 1))[:, None, None]
        count = 1 + min(self.count.sum(), max(0, int(left_s.max() / kept_s.min() * NEARLY)))
        layers, again = np.arange(count)[:, None], np.arange(count)
        others = min(uniform or 0, 1) * (self.layout.vpp - 1)  # a layer of each other chunk
        allowed = (again <= layers) & (again >= np.minimum(layers, (uniform or 0) + others))
        if uniform is not None:
            allowed &= again <= uniform * self.layout.vpp
        every = list(range(len(self.kinds)))
        most, factors = [], self._zeros(1 + len(every), self.layout.pp)
        for row, kinds in enumerate((every, *([kind] for kind in every))):
            seconds = kept_s[kinds].min() * layers + again_s * again
            saved, full = (kept[0] - kept[1])[kinds].max(), kept[0][kinds].min()
            size = passes * np.maximum(0, full * layers - saved * again)
            fits = size + static[kinds].min() * layers <= left_bytes[:, None, None] * NEARLY
            fits &= allowed & (seconds <= left_s[:, None, None] * NEARLY)
            most.append((fits.any(axis=2) * np.arange(1, count + 1)).max(axis=1) - 1)
            for rank, mine in enumerate(self.of_rank.T):
                factors[row, rank][:, np.array(kinds)[:, None], mine] = 1
        return Block(factors.reshape(-1, *factors.shape[2:]), -np.inf, np.concatenate(most))

    def _uniform(self, again: int, most: int) -> Block:
        """Recompute ``min(again, held)`` of the layers of a stage: the hull for 1 to ``most``."""
        slope = (again - 1) / max(1, most - 1)
        filled = self._filled()
        factors = self._zeros(2, len(filled))
        rows = np.arange(len(filled))
        factors[:, rows, 1, :, filled] = 1
        factors[1, rows, :, :, filled] -= slope
        low = np.repeat([-np.inf, 1 - slope if again else 0.0], len(filled))
        high = np.repeat([float(again), np.inf], len(filled))
        return Block(factors.reshape(-1, *factors.shape[2:]), low, high)

    def _zeros(self, *rows: int) -> FloatArray:
        return np.zeros((*rows, 2, len(self.kinds), self.stages))


def _highs(blocks: Sequence[Block], upper: FloatArray) -> Any:
    """Return a HiGHS model that minimises the step; columns are 0 to ``upper``."""
    import highspy

    factors = np.concatenate([block.matrix for block in blocks])
    used = factors != 0
    linear = highspy.HighsLp()
    linear.num_row_, linear.num_col_ = factors.shape
    linear.col_cost_ = np.append(np.zeros(upper.size), 1.0)
    linear.col_lower_ = np.zeros(upper.size + 1)
    linear.col_upper_ = np.append(upper.ravel(), np.inf)
    linear.row_lower_ = np.concatenate([block.low for block in blocks])
    linear.row_upper_ = np.concatenate([block.high for block in blocks])
    linear.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    linear.a_matrix_.start_ = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    linear.a_matrix_.index_ = np.nonzero(used)[1]
    linear.a_matrix_.value_ = factors[used]
    with stdout_silenced():
        solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.passModel(linear)
    return solver


def add_row(solver: Any, block: Block) -> None:
    """Add the one row of ``block``."""
    (factors,) = block.matrix
    used = np.flatnonzero(factors)
    solver.addRow(block.low[0], block.high[0], len(used), used.astype(np.int32), factors[used])


def solved(solver: Any) -> tuple[float, FloatArray]:
    """Return the least step and the other columns; 1 where no answer is possible.

    Where HiGHS gives up, nothing is known: 0.
    """
    solver.run()
    status = solver.getModelStatus().name
    if status != "kOptimal":
        return float(status == "kInfeasible"), np.zeros(solver.getNumCol() - 1)
    values = np.array(solver.getSolution().col_value)
    return float(values[-1]), values[:-1]
