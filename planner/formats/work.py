"""What a writer writes: model, job, layout, stages and machines, of a plan or of another file."""

from dataclasses import dataclass

from planner.errors import LayoutError, SpecError
from planner.formats.grid import node_grid
from planner.formats.settle import Settled
from planner.formats.setup import Setup
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import split_layers
from planner.plan import Plan
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Work:
    """One job to be started. ``layers`` and ``again`` (recomputed in full) are by stage."""

    model: ModelSpec
    job: JobSpec
    layout: Layout
    layers: tuple[int, ...]
    again: tuple[int, ...]
    rank_map: tuple[int, ...]
    nodes: int
    per_node: int
    gpu: str = ""
    hosts: tuple[str, ...] = ()  # in the order of their slots; none: any order will do

    @property
    def ranks(self) -> int:
        """Processes of the whole job."""
        return self.layout.gpus

    @property
    def title(self) -> str:
        """One line: the model, its GPUs and the layout."""
        return f"{self.model.name} on {self.ranks} GPUs: {self.layout.label()}"

    @property
    def recompute(self) -> Recompute:
        """What is recomputed where all layers are treated alike; full where all of them are."""
        if self.again == self.layers:
            return Recompute.FULL
        return Recompute.NONE if self.layout.recompute is Recompute.FULL else self.layout.recompute


def unplaced(work: Work, scheduler: str) -> str:
    """Return the remark for a file whose scheduler picks the nodes itself; empty for no hosts."""
    if not work.hosts:
        return ""
    return (
        f"# {scheduler} chooses and numbers the nodes: the plan's order of hosts is not kept,\n"
        f"# job.sbatch keeps it, or start node i on host i of: {' '.join(work.hosts)}\n"
    )


def work_of_plan(plan: Plan, schedules: tuple[str, ...] = ()) -> Work:
    """Return the job of a plan; LayoutError for a schedule that its target does not run.

    ``schedules``: what the target runs besides 1F1B and interleaved 1F1B.
    """
    if plan.to_layout().schedule not in ("", *schedules):
        known = ", ".join(("1f1b", "interleaved_1f1b", *schedules))
        raise LayoutError(
            f"schedule={plan.schedule} is not written for this target; export a plan with one of "
            f"{known}"
        )
    if plan.cluster.node_groups and not plan.hosts:
        raise LayoutError(
            "node_groups: the stages are for different kinds of nodes, and no node has a name; "
            "give each group its hosts in the cluster file and plan again"
        )
    nodes, per_node = node_grid(plan)
    layers = tuple(stage.layers for stage in plan.stages)
    again = tuple(stage.recompute_layers for stage in plan.stages)
    if plan.layout.recompute == Recompute.FULL:
        again = layers
    return Work(plan.model, plan.job, plan.to_layout(), layers, again, plan.rank_map, nodes,
                per_node, plan.cluster.gpu.name, plan.hosts)  # fmt: skip


def work_of_setup(setup: Setup, settled: Settled, per_node: int = 8) -> Work:
    """Return the job that a settled file describes; every thing it leaves open is complained of."""
    if settled.problems:
        raise LayoutError(settled.problems)
    needed = {
        "the model": settled.model,
        "the micro-batch": settled.layout,
        "the global batch": settled.global_batch,
        "the sequence length": setup.seq_len,
    }
    missing = [f"{setup.path}: {what} is not in the file; state it with an option"
               for what, value in needed.items() if value is None]  # fmt: skip
    model, layout, batch = settled.model, settled.layout, settled.global_batch
    if missing or model is None or layout is None or batch is None or setup.seq_len is None:
        raise SpecError(missing)
    job = JobSpec(global_batch=batch, seq_len=setup.seq_len, precision=setup.precision or "bf16",
                  software=setup.software)  # fmt: skip
    split = settled.split
    layers = split.layers if split else split_layers(model.layers, layout.pp * layout.vpp)
    again = split.recomputed if split else None
    if again is None:
        again = layers if layout.recompute is Recompute.FULL else (0,) * len(layers)
    each = min(per_node, layout.gpus)
    return Work(model, job, layout, layers, again, tuple(range(layout.gpus)), layout.gpus // each,
                each)  # fmt: skip
