"""One step as slices of time on each pipeline rank, each second attributed once, and its path.

The slices are the passes, transfers and tails that ``estimate_step`` adds up, so both give the same
step time. One rank stands for all GPUs of its stage: they do the same at the same time.
"""

from dataclasses import dataclass

import numpy as np

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.schedule.passes import FloatArray, Order
from planner.simulate.critical_path import critical_path, topology
from planner.simulate.detail import Parts, details, pass_parts
from planner.simulate.memory import MemoryTrack, memory_tracks
from planner.simulate.pipeline import PassTimes, pipeline_trace
from planner.simulate.slices import COMPUTE, PIPELINE, TAIL, Slice
from planner.simulate.step import StepCosts, pipeline_arguments, step_costs

EXPOSED = {
    "host": "host",
    "tensor_parallel": "tp",
    "context_parallel": "cp",
    "expert_parallel": "ep",
    "data_parallel": "dp",
    "offload": "offload",
}
# where the seconds of a step can go; every rank's add up to the step time
CAUSES = (
    "forward", "backward", "weight_gradient", "recompute", "host", "tensor_parallel",
    "context_parallel", "expert_parallel", "pipeline", "data_parallel", "offload", "optimizer",
    "bubble",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """All slices of a step; ``path`` holds the slices of its critical path, first to last.

    ``causes_s`` says for each rank where its step went, by ``CAUSES``, ``memory`` what it held.
    ``details`` run inside or beside the slices and ``parts_s`` are the seconds of each pass by
    cause: an explanation, no part of the path.
    """

    layout: Layout
    step_time_s: float
    critical_rank: int
    slices: tuple[Slice, ...]
    path: tuple[int, ...]
    causes_s: tuple[dict[str, float], ...]
    memory: tuple[MemoryTrack, ...]
    details: tuple[Slice, ...]
    parts_s: Parts


def step_timeline(
    prices: Prices, layout: Layout, split: Split | None = None, custom: Order | None = None
) -> Timeline:
    """Return the timeline of one step of ``layout``; ``custom`` replaces its schedule's order."""
    step = step_costs(prices, layout, split, custom)
    times = pipeline_trace(**pipeline_arguments(prices, layout, step))
    # ranks that wait for nobody count their step from their own first pass
    first_s = times.start_s[:, 0] if step.kind.own_pace else np.zeros(layout.pp)
    ends_s = times.end_s[:, -1] + step.stall_s + [tail.total for tail in step.tails]
    critical = int(np.argmax(ends_s - first_s))
    total = float(ends_s[critical] - first_s[critical])
    slices = (*_passes(times), *_tails(step, times), *_sends(prices, times))
    transfer_s = _transfer_s(times, first_s)
    causes = tuple(_causes(step, rank, float(transfer_s[rank]), total) for rank in range(layout.pp))
    path = _path(step, times, critical)
    memory = memory_tracks(prices, layout, split, step, times)
    beside = details(prices, layout, step, slices)
    return Timeline(layout, total, critical, slices, path, causes, memory, beside, pass_parts(step))


def _passes(times: PassTimes) -> list[Slice]:
    """Return the passes of all ranks, rank by rank in order, without what is spent sending."""
    order = times.order
    kinds = np.where(order.weight, "W", np.where(order.backward, "B", "F"))
    columns = (kinds, order.micro_batch, order.chunk, times.start_s, times.end_s - times.held_s)
    found = []
    for rank in range(order.stages):
        rows = (column[rank].tolist() for column in columns)
        for kind, batch, chunk, start, end in zip(*rows, strict=True):
            name = f"{kind} {batch}" + (f".{chunk}" if order.chunks > 1 else "")
            found.append(Slice(rank, COMPUTE, name, kind, start, end, batch, chunk))
    return found


def _tails(step: StepCosts, times: PassTimes) -> list[Slice]:
    """Return what follows the passes of all ranks, one slice for each of ``TAIL``."""
    found = []
    for rank, tail in enumerate(step.tails):
        now = float(times.end_s[rank, -1]) + step.stall_s
        for (kind, stream), seconds in zip(TAIL.items(), tail, strict=True):
            found.append(Slice(rank, stream, kind, kind, now, now + seconds))
            now += seconds
    return found


def _sends(prices: Prices, times: PassTimes) -> list[Slice]:
    """Return the transfers between ranks, on the rank that sends."""
    order, overlap = times.order, prices.job.software.overlap_pipeline
    start_s, end_s, held_s = (
        array.ravel().tolist() for array in (times.start_s, times.end_s, times.held_s)
    )
    batches, chunks = order.micro_batch.ravel().tolist(), order.chunk.ravel().tolist()
    found = []
    for sender, receiver, boundary in zip(*map(np.ndarray.tolist, order.transfers()), strict=True):
        lag = float(times.send_s[boundary])
        if not lag:
            continue
        rank, to = sender // order.length, receiver // order.length
        start = end_s[sender] - held_s[sender]
        if not overlap and not held_s[sender] and receiver % order.length:
            start = max(start, end_s[receiver - 1])  # a rendezvous waits for the receiver
        start = min(start, max(start_s[receiver] - lag, end_s[sender] - held_s[sender]))
        name = f"send {batches[sender]} to rank {to}"
        found.append(
            Slice(rank, PIPELINE, name, "send", start, start + lag, batches[sender], chunks[sender])
        )
    return found


def _transfer_s(times: PassTimes, first_s: FloatArray) -> FloatArray:
    """Return the seconds that each rank spends sending or waiting for a transfer, ``[stages]``.

    Of a gap before a pass that is the transfer on the edge that was waited for, at most.
    """
    graph = times.tasks.graph
    by_arrival = np.argsort(times.task_end_s[graph.tails] + times.lag_s, kind="stable")
    waited_s = np.zeros(graph.tasks)
    waited_s[graph.heads[by_arrival]] = times.lag_s[by_arrival]
    before_s = np.concatenate([first_s[:, None], times.end_s[:, :-1]], axis=1)
    gap_s = np.maximum(times.start_s - before_s, 0.0)
    own_s = np.minimum(gap_s, waited_s[times.tasks.task]) + times.held_s
    return np.asarray(own_s.sum(axis=1))


def _causes(step: StepCosts, rank: int, transfer_s: float, total_s: float) -> dict[str, float]:
    """Return where the seconds of ``rank`` go; the bubble is what is left of the step."""
    parts = dict.fromkeys(CAUSES, 0.0)
    for cost in step.of_rank(rank):
        again_s = cost.recompute.compute
        parts["forward"] += cost.forward.compute
        parts["backward"] += cost.backward.compute - again_s
        parts["weight_gradient"] += cost.weight.compute
        parts["recompute"] += again_s
        for passes in (cost.forward, cost.backward, cost.weight):
            for cause, field in EXPOSED.items():
                parts[cause] += getattr(passes, field)
    parts = {cause: step.micro_batches * seconds for cause, seconds in parts.items()}
    tail = step.tails[rank]
    parts["data_parallel"] += tail.gradients_s + tail.weights_s
    parts["offload"] += tail.offload_s
    parts["optimizer"] = tail.update_s
    parts["pipeline"] = transfer_s + step.stall_s
    parts["bubble"] = total_s - sum(parts.values())
    return parts


def _path(step: StepCosts, times: PassTimes, rank: int) -> tuple[int, ...]:
    """Return the slices on the longest path to the end of ``rank``, as places in the slices."""
    made, (stages, length) = times.tasks, times.start_s.shape
    count = made.graph.tasks
    tail = np.arange(count, count + len(TAIL) + 1)
    tails = np.concatenate([made.graph.tails, [made.task[rank, -1]], tail[:-1]])
    heads = np.concatenate([made.graph.heads, tail])
    lag_s = np.concatenate([times.lag_s, [step.stall_s], np.zeros(len(TAIL))])
    task_s = np.bincount(made.task.ravel(), (times.end_s - times.start_s).ravel(), count)
    # a last task longer than all others together makes this path the longest of the graph
    task_s = np.concatenate([task_s, step.tails[rank], [task_s.sum() + 1.0]])
    chains = np.append(made.task[:, 0], count)
    graph = topology(count + len(tail), tails, heads, chains)
    found = critical_path(graph, task_s, lag_s).path[:-1]
    of_task: dict[int, list[int]] = {}
    for place, task in enumerate(made.task.ravel().tolist()):
        of_task.setdefault(task, []).append(place)
    for place in range(len(TAIL)):
        of_task[count + place] = [stages * length + len(TAIL) * rank + place]
    return tuple(place for task in found for place in of_task[task])
