"""The best layouts of a plan's own question, each as a plan that can be run."""

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.memory.fit import least_recompute
from planner.plan import Plan
from planner.search.answer import build_plan
from planner.search.recommend import Options, Search, search
from planner.search.stages import EQUAL, Staged
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def best_plans(plan: Plan, count: int) -> list[Plan]:
    """Return up to ``count`` plans of the inputs that ``plan`` repeats, fastest estimate first."""
    model, cluster, job = plan.model, plan.cluster, plan.job
    found = search(model, cluster, job, TARGETS["torch"], Options(keep=count))
    return [one_plan(model, cluster, job, step, found) for step in found.best]


def one_plan(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, step: StepEstimate, found: Search
) -> Plan:
    """Return one simulated layout as a plan."""
    return build_plan(Prices(model, cluster, job), [Staged(step, step, None, EQUAL)], found, [])


def priced(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, layout: Layout
) -> StepEstimate | None:
    """Return the estimate of a layout with as little recompute as fits; None where none fits."""
    limit = cluster.gpu.memory_bytes
    split = least_recompute(model, job, layout, limit, TARGETS["torch"].uniform_recompute)
    return None if split is None else estimate_step(Prices(model, cluster, job), layout, split)
