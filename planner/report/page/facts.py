"""What the page shows beyond the plan's own fields, computed from the plan's inputs."""

from collections import Counter
from dataclasses import dataclass

from planner.cost.layer import Prices
from planner.errors import SpecError
from planner.memory.estimate import RankMemory, rank_memory
from planner.plan import Plan
from planner.simulate.step import StepCosts, step_costs
from planner.simulate.timeline import Timeline, step_timeline
from planner.spec.cluster import ClusterSpec
from planner.spec.parts import part_of

SAME = 1e-3  # relative; planners of other versions may differ by more


@dataclass(frozen=True, slots=True)
class Facts:
    """A plan, the memory of each of its pipeline ranks, its step by cost and pass by pass."""

    plan: Plan
    prices: Prices
    memory: tuple[RankMemory, ...]
    costs: StepCosts
    timeline: Timeline

    def capacity_bytes(self, rank: int) -> float:
        """Return the memory of the GPUs of a pipeline rank; nodes may be of several kinds."""
        return float(self.part(rank).gpu.memory_bytes)

    def part(self, rank: int) -> ClusterSpec:
        """Return the nodes under a pipeline rank."""
        each = len(self.plan.rank_map) // self.plan.layout.pp
        return part_of(self.plan.cluster, rank * each, each)

    @property
    def fullest(self) -> RankMemory:
        """Return the memory of the rank that needs most."""
        return max(self.memory, key=lambda rank: rank.device)

    def differences(self) -> list[str]:
        """Return the numbers of the plan that this version of planner computes otherwise."""
        estimate = self.plan.estimate
        pairs = (
            ("step time", estimate.step_time_s, self.timeline.step_time_s),
            ("memory", estimate.memory_bytes, self.fullest.device),
        )
        return [name for name, written, now in pairs if abs(now - written) > SAME * written]


def facts(plan: Plan) -> Facts:
    """Compute what the page shows; SpecError with everything that contradicts itself in a plan."""
    if problems := plan_problems(plan):
        raise SpecError(problems)
    layout, split = plan.to_layout(), plan.to_split()
    ranks = (rank_memory(plan.model, plan.job, layout, r, split) for r in range(layout.pp))
    prices = Prices(plan.model, plan.cluster, plan.job)
    costs = step_costs(prices, layout, split)
    return Facts(plan, prices, tuple(ranks), costs, step_timeline(prices, layout, split))


def plan_problems(plan: Plan) -> list[str]:
    """Return every way in which parts of the plan do not belong together."""
    layout, batch = plan.to_layout(), plan.job.global_batch
    chunks, layers = layout.pp * layout.vpp, sum(stage.layers for stage in plan.stages)
    again = "; write the plan again with planner recommend"
    found = []
    if Counter(plan.rank_map) != Counter(range(layout.gpus)):
        ranks = f"does not hold each of the {layout.gpus} ranks of the layout once"
        found.append(f"rank_map: {len(plan.rank_map)} entries: {ranks}{again}")
    if len(plan.stages) != chunks:
        found.append(f"stages: {len(plan.stages)} entries, but pp*vpp={chunks}{again}")
    if layers != plan.model.layers:
        found.append(f"stages: {layers} layers, but the model has {plan.model.layers}{again}")
    if layout.tp * layout.cp * layout.dp % (layout.ep * layout.etp):
        groups = f"ep*etp={layout.ep * layout.etp} does not divide tp*cp*dp"
        found.append(f"layout: {groups}={layout.tp * layout.cp * layout.dp}{again}")
    if batch % (layout.dp * layout.micro_batch):
        share = f"dp*micro_batch={layout.dp * layout.micro_batch}"
        found.append(f"layout: {share} does not divide global_batch={batch}{again}")
    return found
