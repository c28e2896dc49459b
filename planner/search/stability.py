"""How far the answer can be trusted: would another layout win if a cost were wrong, and the front.

A model error that slows all layouts alike changes no ranking. What changes one is an error in one
cause: links slower than thought, kernels of small shapes faster. So each cause in turn is made a
tenth longer and a tenth shorter in every simulated layout, and the layouts are ranked again.
"""

from collections.abc import Iterable

from planner.plan import SimulatedRecord, StabilityRecord, UpsetRecord
from planner.simulate.step import StepEstimate

MODEL_ERROR = 0.1
# causes to one of the things that can be measured
_MEASURED_BY = {
    "tensor_parallel": "links",
    "context_parallel": "links",
    "expert_parallel": "links",
    "data_parallel": "links",
    "pipeline": "links",
    "offload": "links",
    "compute": "kernels",
    "recompute": "kernels",
    "optimizer": "kernels",
    "host": "kernels",
}


def _with_error(step: StepEstimate, cause: str, factor: float) -> float:
    return step.step_time_s + (factor - 1) * step.parts_s.get(cause, 0.0)


def stability(winner: StepEstimate, others: Iterable[StepEstimate]) -> StabilityRecord:
    """Return who would win if one cause took a tenth more or less, and what would settle it."""
    steps = [winner, *(step for step in others if step.layout != winner.layout)]
    upsets = []
    for cause in winner.parts_s:
        for factor in (1 - MODEL_ERROR, 1 + MODEL_ERROR):
            best = min(steps, key=lambda step: _with_error(step, cause, factor))
            if best is not winner:
                now_s = _with_error(winner, cause, factor)
                gained_s = now_s - _with_error(best, cause, factor)
                upsets.append(
                    UpsetRecord(
                        cause=cause,
                        factor=factor,
                        label=best.layout.label(),
                        slower=best.step_time_s / winner.step_time_s - 1,
                        gain=gained_s / now_s,
                    )
                )
    upsets.sort(key=lambda one: -one.gain)
    settled_by = _MEASURED_BY[upsets[0].cause] if upsets else ""
    return StabilityRecord(
        error=MODEL_ERROR, holds=not upsets, upsets=tuple(upsets), settled_by=settled_by
    )


def pareto_front(steps: Iterable[StepEstimate], capacity_bytes: float) -> list[SimulatedRecord]:
    """Return the layouts that no other beats in both step time and free memory, fastest first."""
    front: list[SimulatedRecord] = []
    least_bytes = float("inf")
    for step in sorted(steps, key=lambda one: (one.step_time_s, one.memory.device)):
        if step.memory.device < min(least_bytes, capacity_bytes):
            least_bytes = step.memory.device
            front.append(
                SimulatedRecord(
                    label=step.layout.label(),
                    step_time_s=step.step_time_s,
                    memory_bytes=step.memory.device,
                )
            )
    return front
