"""How firm a plan is, in sentences: its stages, and whether another layout might win."""

from planner.plan import PartitionRecord, Plan, StabilityRecord, UpsetRecord
from planner.report.words import percent, seconds

CAUSES = {
    "recompute": "recompute",
    "tensor_parallel": "tensor-parallel communication",
    "context_parallel": "context-parallel communication",
    "expert_parallel": "expert-parallel communication",
    "data_parallel": "data-parallel communication",
    "pipeline": "the pipeline bubble",
    "host": "kernel launches",
}
MOST_UPSETS = 3
SAME = 1e-4  # of a step; less is no gain


def partition_line(plan: Plan) -> str:
    """Return how the layers came to their stages and what that gained; empty without stages."""
    record = plan.partition
    if record is None:
        return ""
    gained = record.equal_step_time_s / plan.estimate.step_time_s - 1
    if plan.placement is not None:  # the equal stages were timed on healthy links
        gained = 0.0
    words = "equal" if record.solver == "equal" else f"by {record.solver}"
    equal_s = seconds(record.equal_step_time_s)
    more = f"; equal stages take {equal_s} ({percent(gained)} more)" if gained > SAME else ""
    return f"Stages: {words}{_proof(record)}{more}."


def _proof(record: PartitionRecord) -> str:
    if not record.bound_s:
        return ""
    gap = 1 - record.bound_s / record.objective_s
    best = "no split has less" if gap <= SAME else f"within {percent(gap)} of the best split"
    stopped = ", stopped by the time limit" if record.status == "time limit" else ""
    return f" ({best} of what the solver minimises: {seconds(record.objective_s)}{stopped})"


def stability_lines(plan: Plan) -> list[str]:
    """Return whether an error in one cause would make another layout the fastest."""
    record = plan.stability
    if record is None:
        return []
    error = percent(record.error, 0)
    if record.holds:
        return [
            f"Firm: with any one cause of the step {error} longer or shorter than estimated, no "
            "other simulated layout wins."
        ]
    lines = [_upset(one) for one in record.upsets[:MOST_UPSETS]]
    return [f"Close: {'; '.join(lines)}.{_settled(record)}"]


def _upset(one: UpsetRecord) -> str:
    change = f"{percent(abs(one.factor - 1), 0)} {'longer' if one.factor > 1 else 'shorter'}"
    return (
        f"were {CAUSES.get(one.cause, one.cause)} {change} than estimated, {one.label} "
        f"({percent(one.slower)} slower as it is) would be {percent(one.gain)} faster"
    )


def _settled(record: StabilityRecord) -> str:
    what = record.settled_by
    return f" Measuring your {what} settles it (planner profile)." if what else ""
