"""Why no layout of a job is legal at all, and what number would make one so."""

from collections.abc import Iterator

from planner.errors import LayoutError
from planner.layout.layout import Layout
from planner.layout.limits import Limits
from planner.layout.rules import divisors
from planner.layout.space import layouts
from planner.search.targets import Target
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

MOST_TRIED = 12  # batches; each try lists all layouts of one


def no_layout_error(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    limits: Limits = Limits(),
) -> LayoutError:
    """Return the complaint about a job without a legal layout: what is wrong and what is right."""
    job = job.model_copy(update={"software": target.software})
    kind = target.problems(model, job, Layout()) if target.problems else []
    if kind:  # wrong on one GPU already, so with the kind of job and not with its layout
        said = f"--target: {target.name} cannot run this job"
        return LayoutError(f"{said}: {why}; or leave the target to auto" for why in kind)
    if limits != Limits() and layouts(model, cluster, job, target.problems):
        return LayoutError(f"{limits.said()}: no legal layout of {cluster.gpus} GPUs obeys them; "
                           "leave one out")  # fmt: skip
    asked = f"{job.global_batch} sequences divide over no layout of {cluster.gpus} GPUs"
    for batch in _near_batches(job.global_batch, cluster.gpus):
        other = job.model_copy(update={"global_batch": batch})
        if layouts(model, cluster, other, target.problems):
            return LayoutError(f"--global-batch: {asked} that {model.name} allows; try {batch}")
    heads = f"{model.layers} layers, {model.heads} heads and ffn_hidden {model.ffn_hidden}"
    return LayoutError(
        f"--nodes: {model.name} ({heads}) has no legal layout on {cluster.gpus} GPUs; "
        "try another number of nodes"
    )


def _near_batches(batch: int, gpus: int) -> Iterator[int]:
    """Yield batches that some data-parallel degree divides, nearest first."""
    near = {
        multiple for dp in divisors(gpus) for multiple in (batch // dp * dp, -(-batch // dp) * dp)
    }
    ordered = sorted(near - {0, batch}, key=lambda other: (abs(other - batch), other))
    yield from ordered[:MOST_TRIED]
