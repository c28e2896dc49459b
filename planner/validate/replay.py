"""Estimate every row of a measured-runs file and write the estimates as data."""

from dataclasses import asdict, dataclass
from functools import lru_cache

from planner.cost.layer import Prices
from planner.errors import PlannerError
from planner.memory.estimate import rank_memory
from planner.simulate.step import StepEstimate, estimate_step, step_interval
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import GIB
from planner.validate.cases import Case, Skip, read_case


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

    def as_json(self) -> dict[str, object]:
        """Return the row as plain data."""
        return asdict(self)


def printed_memory_bytes(case: Case, step: StepEstimate) -> float:
    """Return the counter that a source printed, allocated, reserved or device, of its rank."""
    memory = step.memory
    if case.memory_rank is not None:
        memory = rank_memory(case.model, case.job, case.layout, case.memory_rank, case.split)
    return {
        "allocated": memory.allocated,
        "reserved": memory.reserved,
        "device": memory.device,
    }[case.memory_kind]


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
    return RowEstimate(
        name,
        None,
        step.step_time_s,
        *step_interval(step, case.cluster),
        printed_memory_bytes(case, step) / GIB,
        step.memory.device <= case.cluster.gpu.memory_bytes,
        case.assumed,
    )
