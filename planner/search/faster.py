"""Single changes to a layout that make its step shorter, and what each takes in memory."""

from dataclasses import replace

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.layout.rules import layout_problems
from planner.layout.stages import Split
from planner.memory.estimate import peak_memory
from planner.memory.fit import least_recompute
from planner.search.changes import SingleChange
from planner.search.mixed import stepped
from planner.search.targets import Target
from planner.simulate.step import estimate_step

LEAST_GAIN = 0.005  # of the step; a smaller gain is not worth a change


def _paid_by_dp(layout: Layout, name: str, size: int) -> tuple[str, Layout] | None:
    """Return ``layout`` with another degree on as many GPUs: dp takes the rest."""
    old = getattr(layout, name)
    if size < 1 or layout.dp * old % size:
        return None
    dp = layout.dp * old // size
    ranks = dp * (size if name == "cp" else layout.cp)
    whole = layout.dp * layout.cp
    sizes = (layout.shard.weights, layout.shard.gradients, layout.shard.optimizer)
    shard = Shard(*(ranks if one == whole > 1 else min(one, ranks) for one in sizes))
    if layout.shard.secondary < shard.weights:
        shard = replace(shard, secondary=layout.shard.secondary)
    changed = replace(layout, dp=dp, shard=shard, **{name: size})  # type: ignore[arg-type]
    split = changed.tp > 1 and (layout.tp == 1 or layout.sequence_parallel)
    vpp = layout.vpp if changed.pp > 1 else 1
    changed = replace(changed, sequence_parallel=split, vpp=vpp)
    return f"{name} {old} -> {size}, dp {layout.dp} -> {dp}", changed


def _candidates(layout: Layout) -> list[tuple[str, Layout]]:
    """Return every single change worth trying."""
    degrees = [
        _paid_by_dp(layout, name, size)
        for name in ("tp", "pp", "cp")
        for size in (getattr(layout, name) // 2, getattr(layout, name) * 2)
    ]
    changes = [change for change in degrees if change is not None]
    for name, words in (("ep", "ep"), ("micro_batch", "micro-batch"), ("vpp", "chunks per rank")):
        old = getattr(layout, name)
        for size in (old // 2, 2 * old):
            if size >= 1:
                other = replace(layout, **{name: size})
                changes.append((f"{words} {old} -> {size}", other))
    ranks, stage = layout.dp * layout.cp, layout.shard.zero_stage()
    changes += [
        (f"ZeRO-{stage} -> ZeRO-{other}", replace(layout, shard=Shard.zero(other, ranks)))
        for other in range(4)
        if other != stage and ranks > 1
    ]
    if layout.recompute is not Recompute.NONE:
        changes.append(("no recompute", replace(layout, recompute=Recompute.NONE)))
    if layout.recompute is Recompute.FULL:
        changes.append(("selective recompute", replace(layout, recompute=Recompute.SELECTIVE)))
    if layout.offload_optimizer:
        back = replace(layout, offload_optimizer=0.0, offload_weights=False, delayed_update=False)
        changes.append(("optimizer on the GPU", back))
        changes.append(("delayed update", replace(layout, delayed_update=True)))
    if layout.offload.fraction:
        changes.append(("no offload", replace(layout, offload=Offload())))
    if layout.tp > 1 and not layout.sequence_parallel:
        changes.append(("sequence parallelism", replace(layout, sequence_parallel=True)))
    return changes


def _fitting(prices: Prices, layout: Layout, target: Target) -> tuple[bool, Split | None]:
    """Return whether a layout fits, and the stages and recompute by layer that it takes for that.

    Nodes of several kinds need uneven stages; like nodes keep equal ones, nothing recomputed, where
    that fits.
    """
    if prices.cluster.node_groups:
        step = stepped(prices, layout, target, 0.0) if layout.vpp == 1 else None
        return step is not None, step.split if step else None
    model, job, capacity = prices.model, prices.job, prices.cluster.gpu.memory_bytes
    if peak_memory(model, job, layout).device <= capacity:
        return True, None
    split = least_recompute(model, job, layout, capacity, target.uniform_recompute)
    return split is not None, split and target.settable(split)


def _outcome(change: SingleChange) -> tuple[float, float]:
    """Return what tells changes apart: selective recompute may be none under another name."""
    return change.step_time_s, change.device_bytes


def faster_changes(
    prices: Prices, layout: Layout, target: Target, split: Split | None = None, count: int = 3
) -> list[SingleChange]:
    """Return the ``count`` legal changes that fit and shorten the step most, fastest first.

    Where a change alone does not fit, it is tried with the fewest recomputed layers that make it
    fit. Other stages than equal ones (``split``) are given up by a change.
    """
    model, job = prices.model, prices.job
    now = estimate_step(prices, layout, split)
    found: list[SingleChange] = []
    for text, other in _candidates(layout):
        if layout_problems(model, prices.cluster, job, other):
            continue
        if target.problems and target.problems(model, job, other):
            continue
        fits, recomputed = _fitting(prices, other, target)
        if not fits:
            continue
        step = estimate_step(prices, other, recomputed)
        slower_s = step.step_time_s - now.step_time_s
        if slower_s > -LEAST_GAIN * now.step_time_s:
            continue
        again = sum((recomputed and recomputed.recomputed) or ())
        if again:
            text += f", {again} of {model.layers} layers recomputed"
        size = step.memory.device
        saved = now.memory.device - size
        change = SingleChange(text, other, size, saved, step.step_time_s, slower_s)
        if all(_outcome(change) != _outcome(one) for one in found):
            found.append(change)
    return sorted(found, key=lambda change: change.step_time_s)[:count]
