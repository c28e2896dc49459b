"""Every rule that one layout of a job breaks, of any program and of the one that runs it."""

from planner.layout.layout import Layout
from planner.layout.rules import layout_problems
from planner.layout.stages import Split
from planner.memory.host import host_problems
from planner.memory.room import offload_refusals
from planner.search.targets import Target
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def broken_rules(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    layout: Layout,
    split: Split | None = None,
) -> list[str]:
    """Return each rule that ``layout`` breaks, once; offload is asked of a legal one only."""
    found = layout_problems(model, cluster, job, layout)
    if target.problems:
        found += target.problems(model, job, layout)
    if not found:
        asked = (model, cluster, job, layout, split)
        found = offload_refusals(*asked) or host_problems(*asked)
    return list(dict.fromkeys(found))
