"""A whole training run of a plan: how long, how many GPU-hours, what money, energy and carbon."""

from dataclasses import dataclass
from math import ceil

from planner.goodput.energy import PUE, facility_w_per_gpu, training_use
from planner.goodput.failures import Wall, wall_time
from planner.goodput.operations import Operations, Stated, operations
from planner.plan import Plan

DAY_S, HOUR_S = 86400.0, 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Prices:
    """What a user pays: ``None`` where not stated, then nothing is said of it."""

    per_gpu_hour: float | None = None
    grid_gco2_per_kwh: float | None = None
    gpu_power_w: float | None = None
    pue: float = PUE


@dataclass(frozen=True, slots=True)
class RunCost:
    """A run of ``steps`` steps. ``undisturbed_s`` knows neither failures nor slow nodes.

    ``low_s`` and ``high_s`` follow the interval of the step time. ``energy_kwh`` is ``None`` where
    the power of the GPU is not known.
    """

    gpus: int
    steps: int
    undisturbed_s: float
    straggling_s: float
    wall: Wall
    low_s: float
    high_s: float
    operations: Operations
    energy_kwh: float | None
    money: float | None
    co2_kg: float | None

    @property
    def days(self) -> float:
        """Days from start to end."""
        return self.wall.total_s / DAY_S

    @property
    def gpu_hours(self) -> float:
        """GPU-hours that are paid for."""
        return self.gpus * self.wall.total_s / HOUR_S

    @property
    def effective(self) -> float:
        """Share of the time that goes to new steps at full speed (MegaScale's effective rate)."""
        return self.undisturbed_s / self.wall.total_s


def steps_of(plan: Plan, tokens: float) -> int:
    """Return the optimizer steps that see ``tokens`` tokens."""
    return ceil(tokens / (plan.job.global_batch * plan.job.seq_len))


def run_cost(plan: Plan, tokens: float, stated: Stated, prices: Prices) -> RunCost:
    """Return what ``tokens`` tokens take with this plan on its cluster."""
    gpus, steps = plan.to_layout().gpus, steps_of(plan, tokens)
    how = operations(plan.model, plan.job.software, plan.cluster, gpus, stated)
    estimate = plan.estimate

    def wall_of(step_time_s: float) -> Wall:
        return wall_time(
            steps * step_time_s * (1 + how.straggling),
            how.interval_s, how.stall_s, how.detect_s, how.restart_s, how.mtbf_s,
        )  # fmt: skip

    wall, undisturbed_s = wall_of(estimate.step_time_s), steps * estimate.step_time_s
    energy_kwh = _energy_kwh(plan, gpus, wall, prices)
    carbon = prices.grid_gco2_per_kwh
    return RunCost(
        gpus,
        steps,
        undisturbed_s,
        undisturbed_s * how.straggling,
        wall,
        wall_of(estimate.step_time_low_s).total_s,
        wall_of(estimate.step_time_high_s).total_s,
        how,
        energy_kwh,
        None if prices.per_gpu_hour is None else gpus * wall.total_s / HOUR_S * prices.per_gpu_hour,
        None if carbon is None or energy_kwh is None else energy_kwh * carbon / 1000,
    )


def _energy_kwh(plan: Plan, gpus: int, wall: Wall, prices: Prices) -> float | None:
    """GPUs idle while a failure is found and the job restarts; they train in all other time."""
    power_w = prices.gpu_power_w or plan.cluster.gpu.power_w
    if not power_w:
        return None
    idle_s = wall.detection_s + wall.restart_s
    use = training_use(plan.estimate.parts_s)
    joules = (wall.total_s - idle_s) * facility_w_per_gpu(power_w, use, prices.pue)
    joules += idle_s * facility_w_per_gpu(power_w, 0.0, prices.pue)
    return gpus * joules / JOULES_PER_KWH
