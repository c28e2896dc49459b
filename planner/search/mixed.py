"""Nodes of several kinds in one job: uneven stages, or the slower kinds left out.

A stage takes the pace and the memory of the nodes it is on, so each kind of node gets as many
layers as it is fast. Every choice of kinds is priced, each alone too: the fastest is the plan.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np

from planner.cost.layer import PassCost, Prices
from planner.layout.layout import Layout
from planner.layout.space import layouts as legal_layouts
from planner.layout.stages import Split, StageLayers, split_layers
from planner.memory.estimate import allocated_limit, rank_memory
from planner.memory.fit import least_recompute
from planner.plan import CandidateRecord, Plan
from planner.search.answer import NoFit, build_plan, recommend
from planner.search.climb import least_recompute_of
from planner.search.families import family
from planner.search.partition import FloatArray, Partition, PartitionProblem, partition
from planner.search.recommend import Options, Search
from planner.search.stages import EQUAL, Staged, end_s, partition_problem
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec, NodeGroup
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.parts import of_groups, one_kind
from planner.units import format_s

MOST_MOVED = 4  # layers that the simulator moves after the partition
CLIMBED = "dynamic programme + climb"
MOST_ORDERED = 3  # kinds of nodes whose every order in the pipeline is tried


@dataclass(frozen=True, slots=True)
class Choice:
    """Some kinds of nodes and the best that they do together; ``plan`` is None: nothing fits."""

    groups: tuple[NodeGroup, ...]
    plan: Plan | None
    reason: str = ""


def recommend_mixed(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: Target, options: Options
) -> Plan | NoFit:
    """Return the fastest plan on all or some kinds of nodes; what the others take stands in it."""
    choices: list[Choice] = []
    refusals: list[NoFit] = []
    each = 2 ** len(cluster.node_groups) - 1
    options = replace(options, budget_s=options.budget_s / each)
    for count in range(1, len(cluster.node_groups) + 1):
        for groups in combinations(cluster.node_groups, count):
            unable = [
                group.gpu.name for group in groups if job.precision not in group.gpu.peak_flops
            ]
            if unable:
                reason = f"{', '.join(unable)} cannot compute in {job.precision}"
                choices.append(Choice(groups, None, reason))
                continue
            found = _best_of(model, cluster, groups, job, target, options)
            if isinstance(found, Plan):
                choices.append(Choice(groups, found))
            else:
                refusals += [found] if found else []
                choices.append(Choice(groups, None, "nothing fits"))
    plans = [choice for choice in choices if choice.plan is not None]
    if not plans:
        none = NoFit("no legal layout", 0.0, 0.0, ())
        return min(refusals, key=lambda no: no.shortfall_bytes, default=none)
    best = min(plans, key=_step_s)
    assert best.plan is not None
    others = [choice for choice in choices if choice is not best]
    others.sort(key=_step_s)
    lines = tuple(_compared(choice, best, cluster) for choice in (best, *others))
    return best.plan.model_copy(update={"node_choices": lines})


def _step_s(choice: Choice) -> float:
    return choice.plan.estimate.step_time_s if choice.plan else float("inf")


def _compared(choice: Choice, best: Choice, cluster: ClusterSpec) -> CandidateRecord:
    """Return one choice in words: the nodes used, and how much slower than the best."""
    names = " + ".join(f"{one.nodes} x {_name(one)}" for one in choice.groups)
    out = [group for group in cluster.node_groups if group not in choice.groups]
    label = names + (f", without {' and '.join(map(_name, out))}" if out else "")
    if choice.plan is None:
        return CandidateRecord(label=label, reason=choice.reason)
    slower = 100 * (_step_s(choice) / _step_s(best) - 1)
    said = "fastest" if choice is best else f"{slower:.1f}% slower"
    return CandidateRecord(
        label=label,
        step_time_s=_step_s(choice),
        memory_bytes=choice.plan.estimate.memory_bytes,
        reason=f"{said}, {choice.plan.to_layout().label()}",
    )


def _name(group: NodeGroup) -> str:
    return group.gpu.name + (f" at {100 * group.speed:.0f}% speed" if group.speed < 1 else "")


def _best_of(
    model: ModelSpec,
    cluster: ClusterSpec,
    groups: tuple[NodeGroup, ...],
    job: JobSpec,
    target: Target,
    options: Options,
) -> Plan | NoFit | None:
    """Return the fastest plan on all nodes of ``groups``, in the best order along the pipeline."""
    if len(groups) == 1:
        found = recommend(model, one_kind(cluster, groups[0]), job, target, options)
        hosts = groups[0].hosts
        return found.model_copy(update={"hosts": hosts}) if isinstance(found, Plan) else found
    orders = list(permutations(groups)) if len(groups) <= MOST_ORDERED else [groups]
    plans = []
    for order in orders:
        own = Prices(model, of_groups(cluster, order), job.model_copy(
            update={"software": target.software}))  # fmt: skip
        seen = _search(own, target, replace(options, budget_s=options.budget_s / len(orders)))
        if seen.best:
            plans.append(_plan(own, seen, target, options))
    return min(plans, key=lambda plan: plan.estimate.step_time_s, default=None)


def _plan(prices: Prices, found: Search, target: Target, options: Options) -> Plan:
    """Write the fastest step out; its memory is told for the rank that has the least to spare."""
    best = found.best[0]
    staged = [_staged(prices, step, target, options.keep_free) for step in found.best]
    plan = build_plan(prices, staged, found, _lost(prices, found))
    limits = capacities(prices, best.layout)
    used = [rank_memory(prices.model, prices.job, best.layout, rank, best.split).device
            for rank in range(best.layout.pp)]  # fmt: skip
    fullest = int(np.argmax(np.array(used) / limits))
    memory = {"memory_bytes": used[fullest], "capacity_bytes": float(limits[fullest])}
    return plan.model_copy(update={"estimate": plan.estimate.model_copy(update=memory)})


def _lost(prices: Prices, found: Search) -> list[CandidateRecord]:
    """Return the best of each family that was simulated, against the winner."""
    best = found.best[0]
    bests: dict[str, StepEstimate] = {}
    for step in sorted(found.steps.values(), key=lambda step: step.step_time_s):
        bests.setdefault(family(step.layout, prices.cluster), step)
    bests.pop(family(best.layout, prices.cluster))
    return [
        CandidateRecord(
            label=name,
            step_time_s=step.step_time_s,
            memory_bytes=step.memory.device,
            reason=f"{step.layout.label()}: "
            f"{100 * (step.step_time_s / best.step_time_s - 1):.0f}% slower, "
            f"{format_s(step.step_time_s - best.step_time_s)} more",
        )
        for name, step in bests.items()
    ]


def _search(prices: Prices, target: Target, options: Options) -> Search:
    """Return the fastest layouts with the best stages of each, in rising order of their bound."""
    started = time.monotonic()
    found = legal_layouts(prices.model, prices.cluster, prices.job, target.problems, options.limits)
    found = [one for one in found if one.vpp == 1]  # chunks would bind stages of several kinds
    bounds = np.array([bound_s(prices, layout) for layout in found])
    bounds_s = dict(zip(found, bounds.tolist(), strict=True))
    best: list[StepEstimate] = []
    steps: dict[Layout, StepEstimate] = {}
    for index in bounds.argsort(kind="stable"):
        if len(best) >= options.keep and bounds[index] > best[-1].step_time_s:
            break
        if best and time.monotonic() > started + options.budget_s:
            break
        step = stepped(prices, found[index], target, options.keep_free)
        if step is not None:
            steps[step.layout] = step
            best = sorted([*best, step], key=lambda one: one.step_time_s)[: options.keep]
    best = [polished(prices, step, target, options.keep_free) for step in best]
    best.sort(key=lambda one: one.step_time_s)
    gap = max(0.0, 1 - float(bounds.min()) / best[0].step_time_s) if best else 0.0
    return Search(
        tuple(best), steps, tuple(found), (), tuple(steps), bounds_s, None, 0.0, 0.0, len(steps),
        gap, time.monotonic() - started,
    )  # fmt: skip


def _on(prices: Prices, layout: Layout) -> list[Prices]:
    """Return the prices on the nodes of each pipeline rank."""
    size = layout.gpus // layout.pp
    return [prices.on(rank * size, size) for rank in range(layout.pp)]


def capacities(prices: Prices, layout: Layout) -> FloatArray:
    """Return the device memory of each pipeline rank, ``[pp]``."""
    return np.array([float(on.cluster.gpu.memory_bytes) for on in _on(prices, layout)])


def _seconds(cost: PassCost) -> float:
    return cost.forward.total + cost.backward.total


def _blocks_s(prices: Prices, layout: Layout) -> FloatArray:
    """Return seconds of all dense layers, all layers of experts, embedding and head, ``[4]``."""
    model = prices.model
    moe = model.moe_layers
    return np.array([
        (model.layers - moe) * _seconds(prices.layer(layout, False)) if moe < model.layers else 0.0,
        moe * _seconds(prices.layer(layout, True)) if moe else 0.0,
        _seconds(prices.embedding(layout)),
        _seconds(prices.head(layout)),
    ])  # fmt: skip


def _slowness(blocks: FloatArray, least: FloatArray) -> FloatArray:
    """Return for each rank the least ratio of any block, ``[pp]`` of ``[pp, 4]`` and ``[4]``."""
    present = least > 0
    return np.asarray((blocks[:, present] / least[present]).min(axis=1))


def bound_s(prices: Prices, layout: Layout) -> float:
    """Return seconds that no split of the layers over the stages goes below.

    As if layers were a fluid: work divides over the stages as they are fast, and every stage
    passes all micro-batches, ``m * work / sum(1 / slowness)``.
    """
    blocks = np.array([_blocks_s(on, layout) for on in _on(prices, layout)])
    least = blocks.min(axis=0)
    shares = float((1 / _slowness(blocks, least)).sum())
    return layout.micro_batches(prices.job.global_batch) * float(least.sum()) / shares


def stepped(
    prices: Prices, layout: Layout, target: Target, keep_free: float
) -> StepEstimate | None:
    """Return the step of ``layout`` with its best stages; None where it does not fit."""
    limits = (1 - keep_free) * capacities(prices, layout)
    split = best_split(prices, layout, target, limits)
    return None if split is None else _simulated(prices, layout, split, limits)


def _simulated(
    prices: Prices, layout: Layout, split: Split, limits: FloatArray
) -> StepEstimate | None:
    """Return the step; None where a stage exceeds the memory of its own GPUs."""
    for rank in range(layout.pp):
        if rank_memory(prices.model, prices.job, layout, rank, split).device > limits[rank]:
            return None
    return estimate_step(prices, layout, split)


def polished(prices: Prices, step: StepEstimate, target: Target, keep_free: float) -> StepEstimate:
    """Return ``step`` with single layers moved between stages while the simulator gains by it.

    The partition counts no hops: of stages that are as good to it, some pass on faster.
    """
    layout = step.layout
    limits = (1 - keep_free) * capacities(prices, layout)
    for _ in range(MOST_MOVED):
        splits = _one_layer_moved(step.split, target.uniform_recompute)
        tried = [_simulated(prices, layout, split, limits) for split in splits]
        better = min(filter(None, tried), key=lambda one: one.step_time_s, default=step)
        if better.step_time_s >= step.step_time_s:
            break
        step = better
    return step


def _one_layer_moved(split: Split, uniform: bool) -> list[Split]:
    """Return the splits with one layer moved from any stage of several to any other."""
    again = split.recomputed or (0,) * len(split.layers)
    moved = []
    for giver, taker in permutations(range(len(split.layers)), 2):
        layers = list(split.layers)
        layers[giver], layers[taker] = layers[giver] - 1, layers[taker] + 1
        if layers[giver]:
            if again == split.layers:  # all are recomputed, and stay so
                again_most: Sequence[int] = layers
            else:
                again_most = [max(again)] * len(layers) if uniform else again
            moved.append(Split(tuple(layers), tuple(map(min, again_most, layers))))
    return moved


def best_split(prices: Prices, layout: Layout, target: Target, limits: FloatArray) -> Split | None:
    """Return the layers of each stage, as each is fast, and what it recomputes to fit."""
    if layout.pp == 1:
        uniform = target.uniform_recompute
        least = least_recompute(prices.model, prices.job, layout, float(limits[0]), uniform)
        return least and target.settable(least)
    found = partition(mixed_problem(prices, layout, limits))
    return _split_of(found, target) if found.feasible else None


def _split_of(found: Partition, target: Target) -> Split:
    again = found.recompute_layers
    if target.uniform_recompute:
        again = tuple(min(max(again), count) for count in found.layers)
    return target.settable(Split(found.layers, again))


def mixed_problem(prices: Prices, layout: Layout, limits: FloatArray) -> PartitionProblem:
    """Return the prices of all layers on the fastest nodes, and how much slower each stage is."""
    on = _on(prices, layout)
    layers_s = [float(_blocks_s(own, layout)[:2].sum()) for own in on]
    base = on[int(np.argmin(layers_s))]
    ends = [StageLayers(0, 0, rank == 0, rank == layout.pp - 1) for rank in range(layout.pp)]
    software = prices.job.software
    return replace(
        partition_problem(base, layout, float(limits.max())),
        slowness=np.array(layers_s) / min(layers_s),
        stage_s=np.array([end_s(own, layout, end) for own, end in zip(on, ends, strict=True)]),
        limit_bytes=np.array([allocated_limit(limit, layout, software) for limit in limits]),
    )


def _staged(prices: Prices, step: StepEstimate, target: Target, keep_free: float) -> Staged:
    """Return ``step`` with what the partition proved, and the step of equal stages that fit."""
    layout, uniform = step.layout, target.uniform_recompute
    if layout.pp == 1:
        return Staged(step, step, None, EQUAL)
    limits = (1 - keep_free) * capacities(prices, layout)
    problem = mixed_problem(prices, layout, limits)
    found = partition(problem)
    solver = "dynamic programme" if step.split == _split_of(found, target) else CLIMBED
    layers = split_layers(prices.model.layers, layout.pp)
    again = least_recompute_of(problem, layers, uniform)
    equal = _simulated(prices, layout, Split(layers, again), limits) if again else None
    return Staged(step, equal or step, found, solver)
