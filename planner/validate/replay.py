"""Estimate every row of a measured-runs file and write the estimates as data."""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from planner.cost.layer import Prices
from planner.errors import PlannerError
from planner.layout.layout import Recompute, Shard
from planner.memory.estimate import RankMemory, rank_memory
from planner.memory.interval import Verdict, memory_interval, verdict
from planner.simulate.step import StepEstimate, estimate_step, step_interval
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import GIB
from planner.validate.cases import Case, read_case
from planner.validate.cells import Skip


@dataclass(frozen=True, slots=True)
class RowEstimate:
    """What ``planner validate --json`` writes for one row."""

    id: str
    skipped: str | None
    step_time_s: float | None = None
    step_time_low_s: float | None = None
    step_time_high_s: float | None = None
    mem_gib_peak: float | None = None
    fits: bool | None = None
    assumed: tuple[str, ...] = ()
    mem_gib_low: float | None = None
    mem_gib_high: float | None = None
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, object]:
        """Return the row as plain data."""
        return asdict(self)


def _printed_rank(case: Case, step: StepEstimate) -> RankMemory:
    if case.memory_rank is None:
        return step.memory
    return rank_memory(case.model, case.job, case.layout, case.memory_rank, case.split)


def printed_memory_bytes(case: Case, step: StepEstimate) -> float:
    """Return the counter that a source printed, allocated, reserved or device, of its rank."""
    memory = _printed_rank(case, step)
    return {
        "allocated": memory.allocated,
        "reserved": memory.reserved,
        "device": memory.device,
    }[case.memory_kind]


def printed_memory_interval(case: Case, step: StepEstimate) -> tuple[float, float]:
    """Return (low, high) bytes of the counter that a source printed."""
    memory = _printed_rank(case, step)
    if case.memory_kind == "device":
        return memory_interval(memory)
    low, high = memory.spread
    printed = printed_memory_bytes(case, step)
    return low * printed, high * printed


def case_verdict(case: Case, memory: RankMemory) -> Verdict:
    """Return whether a run fits; what does not must not with the leanest of what is not stated.

    A run that says nothing of recompute may have recomputed everything, and one that says nothing
    of ZeRO may have sharded all: a framework's default is the likely case, not the certain one.
    """
    capacity = case.cluster.gpu.memory_bytes
    found = verdict(memory, capacity)
    assumed = {text.split("=")[0] for text in case.assumed}
    if found is not Verdict.DOES_NOT_FIT or not assumed & {"recompute", "zero_stage"}:
        return found
    layout = case.layout
    if "recompute" in assumed:
        layout = replace(layout, recompute=Recompute.FULL)
    if "zero_stage" in assumed:
        layout = replace(layout, shard=Shard.zero(3, layout.dp * layout.cp))
    ranks = range(layout.pp)
    lean = (rank_memory(case.model, case.job, layout, rank, case.split) for rank in ranks)
    fullest = max(lean, key=lambda rank: rank.device)
    return found if verdict(fullest, capacity) is found else Verdict.TOO_CLOSE


@lru_cache(maxsize=512)
def _prices(model: ModelSpec, cluster: ClusterSpec, job: JobSpec) -> Prices:
    return Prices(model, cluster, job)


def estimate_case(case: Case) -> StepEstimate:
    """Estimate one run."""
    return estimate_step(_prices(case.model, case.cluster, case.job), case.layout, case.split)


def estimate_row(row: dict[str, str]) -> RowEstimate:
    """Estimate one row, or say why it cannot be."""
    try:
        return estimate_named(row["id"], read_case(row))
    except (Skip, PlannerError) as reason:
        return RowEstimate(row["id"], str(reason))


def estimate_named(name: str, case: Case) -> RowEstimate:
    """Estimate the run ``name``."""
    step = estimate_case(case)
    low, high = printed_memory_interval(case, step)
    return RowEstimate(
        name,
        None,
        step.step_time_s,
        *step_interval(step, case.cluster),
        printed_memory_bytes(case, step) / GIB,
        step.memory.device <= case.cluster.gpu.memory_bytes,
        case.assumed,
        low / GIB,
        high / GIB,
        case_verdict(case, step.memory),
    )
