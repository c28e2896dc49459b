"""Single changes to a layout that lower the peak of its fullest GPU, and what each costs."""

from dataclasses import dataclass, replace

from planner.cost.layer import Prices
from planner.layout.layout import OFFLOAD_TARGETS, Layout, Offload, Recompute, Shard
from planner.layout.rules import layout_problems
from planner.layout.stages import Split
from planner.memory.estimate import peak_memory
from planner.memory.fit import least_recompute
from planner.memory.host import host_problems
from planner.memory.room import offload_refusals
from planner.search.targets import Target
from planner.simulate.step import StepEstimate, estimate_step

LEAST_SAVING = 0.05  # of the peak; smaller savings are not worth a change


@dataclass(frozen=True, slots=True)
class SingleChange:
    """One change: the layout it gives, its peak in device bytes, what it saves and costs."""

    text: str
    layout: Layout
    device_bytes: float
    saved_bytes: float
    step_time_s: float
    slower_s: float


def _halved_dp(layout: Layout, **degrees: int) -> Layout | None:
    """Return ``layout`` with other degrees paid for by half the data parallelism."""
    if layout.dp % 2:
        return None
    dp, cp = layout.dp // 2, degrees.get("cp", layout.cp)
    ranks = dp * cp
    old = layout.shard
    shard = Shard(*(min(size, ranks) for size in (old.weights, old.gradients, old.optimizer)))
    if old.secondary < shard.weights:
        shard = replace(shard, secondary=old.secondary)
    return replace(layout, dp=dp, shard=shard, **degrees)  # type: ignore[arg-type]


def _candidates(layout: Layout) -> list[tuple[str, Layout | None]]:
    """Return every single change worth trying; None where the degrees do not allow it."""
    stage, ranks = layout.shard.zero_stage(), layout.dp * layout.cp
    tp = _halved_dp(layout, tp=2 * layout.tp)
    changes: list[tuple[str, Layout | None]] = [
        (f"tp {layout.tp} -> {2 * layout.tp}, dp halved",
         tp and replace(tp, sequence_parallel=True)),
        (f"pp {layout.pp} -> {2 * layout.pp}, dp halved", _halved_dp(layout, pp=2 * layout.pp)),
        (f"cp {layout.cp} -> {2 * layout.cp}, dp halved", _halved_dp(layout, cp=2 * layout.cp)),
    ]  # fmt: skip
    if layout.micro_batch % 2 == 0:
        half = layout.micro_batch // 2
        changes.append((f"micro-batch {2 * half} -> {half}", replace(layout, micro_batch=half)))
    for kind in (Recompute.SELECTIVE, Recompute.FULL):
        if layout.recompute is not kind and layout.recompute is not Recompute.FULL:
            changes.append((f"{kind} recompute", replace(layout, recompute=kind)))
    if ranks > 1:
        changes += [
            (f"ZeRO-{higher}", replace(layout, shard=Shard.zero(higher, ranks)))
            for higher in range(stage + 1, 4)
        ]
    if layout.tp > 1 and not layout.sequence_parallel:
        changes.append(("sequence parallelism", replace(layout, sequence_parallel=True)))
    if layout.offload_optimizer < 1:
        hosted = replace(layout, offload_optimizer=1.0)
        changes.append(("optimizer on the host", hosted))
    if not layout.offload_weights:
        hosted = replace(layout, offload_optimizer=1.0, offload_weights=True)
        changes.append(("optimizer and weights on the host", hosted))
    return changes


def single_changes(
    prices: Prices, layout: Layout, target: Target, split: Split | None = None
) -> list[SingleChange]:
    """Return the legal changes that save at least 5 % of the peak, least slow-down first.

    Other stages than equal ones (``split``) are given up by a change.
    """
    model, job = prices.model, prices.job
    now = estimate_step(prices, layout, split)
    found = []
    for text, other in _candidates(layout):
        if other is None or layout_problems(model, prices.cluster, job, other):
            continue
        if target.problems and target.problems(model, job, other):
            continue
        if host_problems(model, prices.cluster, job, other):
            continue
        size = peak_memory(model, job, other).device
        if now.memory.device - size < LEAST_SAVING * now.memory.device:
            continue
        step_s = estimate_step(prices, other).step_time_s
        saved, slower = now.memory.device - size, step_s - now.step_time_s
        found.append(SingleChange(text, other, size, saved, step_s, slower))
    found += _fewest_recomputed(prices, layout, target, now)
    if target.offloads:
        found += _offloaded(prices, layout, now)
    return sorted(found, key=lambda change: change.step_time_s)


def _offloaded(prices: Prices, layout: Layout, now: StepEstimate) -> list[SingleChange]:
    """Return all movable activations to host memory and to drives, where there is room."""
    found = []
    for place in OFFLOAD_TARGETS:
        away = replace(layout, offload=Offload(1.0, place))
        if layout.offload.fraction or offload_refusals(
            prices.model, prices.cluster, prices.job, away, now.split
        ):
            continue
        step = estimate_step(prices, away, now.split)
        saved, slower = now.memory.device - step.memory.device, step.step_time_s - now.step_time_s
        if saved >= LEAST_SAVING * now.memory.device:
            text = f"activations to {'drives' if place == 'ssd' else 'host memory'}"
            found.append(
                SingleChange(text, away, step.memory.device, saved, step.step_time_s, slower)
            )
    return found


def _fewest_recomputed(
    prices: Prices, layout: Layout, target: Target, now: StepEstimate
) -> list[SingleChange]:
    """Return recompute of just as many layers as make a layout fit that does not."""
    model, job, capacity = prices.model, prices.job, prices.cluster.gpu.memory_bytes
    if now.memory.device <= capacity or layout.recompute is Recompute.FULL:
        return []
    split = least_recompute(model, job, layout, capacity, target.uniform_recompute)
    if split is None or split.recomputed is None:
        return []
    split = target.settable(split)
    assert split.recomputed is not None
    step = estimate_step(prices, layout, split)
    text = f"recompute {sum(split.recomputed)} of {model.layers} layers"
    size = step.memory.device
    saved, slower = now.memory.device - size, step.step_time_s - now.step_time_s
    return [SingleChange(text, layout, size, saved, step.step_time_s, slower)]


def cheapest(
    changes: list[SingleChange], capacity_bytes: float, now_bytes: float, count: int = 3
) -> list[SingleChange]:
    """Return the least slow changes; of a layout that does not fit, those that make it fit.

    If no single change makes it fit, those that come nearest.
    """
    if now_bytes <= capacity_bytes:
        return changes[:count]
    enough = [change for change in changes if change.device_bytes <= capacity_bytes]
    return (enough or sorted(changes, key=lambda change: change.device_bytes))[:count]
