"""The questions of the command line as functions, for notebooks and scripts.

Records in, frozen records out; what cannot be answered raises ``PlannerError``, whose text names
every problem and its remedy.
"""

from planner.cost.layer import Prices
from planner.errors import LayoutError, SpecError
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.plan import Plan
from planner.report.memory import Checked, checked
from planner.search.answer import NoFit
from planner.search.answer import recommend as search_answer
from planner.search.legal import broken_rules
from planner.search.recommend import Options
from planner.search.targets import Target, chosen_target
from planner.simulate.step import StepEstimate, estimate_step
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


def recommend(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: str = "auto",
    options: Options = Options(),
) -> Plan | NoFit:
    """Return the fastest plan that fits and starts, or what is missing (``planner recommend``).

    ``target`` is ``torch``, ``megatron`` or ``auto``: torch where it can run the job.

    >>> from planner import JobSpec, load_cluster, load_model
    >>> job = JobSpec(global_batch=16, seq_len=64)
    >>> plan = recommend(load_model("tiny-llama"), load_cluster("dgx-h100", nodes=1), job)
    >>> plan.to_layout().gpus, plan.estimate.step_time_s > 0
    (8, True)
    """
    job, runner = _run_by(model, cluster, job, target)
    return search_answer(model, cluster, job, runner, options)


def check(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    target: str = "auto",
    split: Split | None = None,
) -> Checked:
    """Return whether one layout starts and fits, and each rank's bytes (``planner check``).

    ``problems`` of the answer are the rules that it breaks; one that does not start has no ranks.
    ``split`` holds stages that are not equal (``plan.to_split()``).

    >>> from planner import JobSpec, Layout, load_cluster, load_model
    >>> model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100", nodes=1)
    >>> found = check(model, cluster, JobSpec(global_batch=64, seq_len=8192), Layout(dp=8))
    >>> found.verdict.value, found.fullest.device > found.capacity_bytes
    ('does not fit', True)
    """
    job, runner = _run_by(model, cluster, job, target)
    problems = _problems(model, cluster, job, runner, layout, split)
    return checked(model, cluster, job, layout, split, problems)


def estimate(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    layout: Layout,
    target: str = "auto",
    split: Split | None = None,
) -> StepEstimate:
    """Return seconds of a step by cause, MFU and memory of one layout (``planner explain speed``).

    It need not fit; LayoutError names the rules that one which does not start breaks.

    >>> from planner import JobSpec, Layout, load_cluster, load_model
    >>> model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100", nodes=1)
    >>> step = estimate(model, cluster, JobSpec(global_batch=64, seq_len=8192), Layout(dp=8))
    >>> abs(sum(step.parts_s.values()) - step.step_time_s) < 1e-9, 0.3 < step.mfu < 0.6
    (True, True)
    """
    job, runner = _run_by(model, cluster, job, target)
    problems = _problems(model, cluster, job, runner, layout, split)
    if problems:
        raise LayoutError(problems)
    return estimate_step(Prices(model, cluster, job), layout, split)


def _problems(
    model: ModelSpec,
    cluster: ClusterSpec,
    job: JobSpec,
    target: Target,
    layout: Layout,
    split: Split | None,
) -> list[str]:
    """Return every rule that a layout of the whole cluster breaks."""
    found = broken_rules(model, cluster, job, target, layout, split)
    if layout.gpus != cluster.gpus:
        found.insert(
            0,
            f"tp*cp*dp*pp={layout.gpus} is not the {cluster.gpus} GPUs of {cluster.name!r}; "
            "change dp, or the nodes of load_cluster",
        )
    return found


def _run_by(
    model: ModelSpec, cluster: ClusterSpec, job: JobSpec, target: str
) -> tuple[JobSpec, Target]:
    """Return the job as the software of the target runs it, and the target."""
    known = cluster.gpu.peak_flops
    if job.precision not in known:
        raise SpecError(
            f"precision={job.precision!r} does not run on {cluster.gpu.name}; "
            f"use one of {', '.join(known)}"
        )
    runner, _ = chosen_target(target, model, job)
    return job.model_copy(update={"software": runner.software}), runner
