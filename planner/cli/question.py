"""The question that ``check`` and ``explain`` answer: one layout of a job on a cluster."""

from dataclasses import dataclass, replace
from pathlib import Path

from planner.cli.request import (
    Method,
    chosen_cluster,
    chosen_job,
    offload_named,
    read_both,
    with_calibration,
)
from planner.errors import LayoutError, SpecError
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.rules import divisors
from planner.layout.stages import Split
from planner.plan import Plan
from planner.search.legal import broken_rules
from planner.search.targets import PRICED, TARGETS, Target, chosen_target
from planner.spec.cluster import ClusterSpec
from planner.spec.files import is_path, load
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Degrees:
    """What the user states of a layout; data parallelism is what is left of the GPUs."""

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    micro_batch: int = 1
    zero: int = 1
    recompute: str = "none"
    sequence_parallel: bool = True
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    delayed_update: bool = False
    offload: str = "none"
    shard: str | None = None

    def layout(self, gpus: int) -> Layout:
        """Return the layout on ``gpus`` GPUs; LayoutError where they do not divide."""
        if self.recompute not in set(Recompute):
            kinds = ", ".join(Recompute)
            raise SpecError(f"--recompute: {self.recompute!r} is not known; use one of {kinds}")
        block = self.tp * self.cp * self.pp
        if gpus % block:
            near = sorted(divisors(gpus), key=lambda size: abs(size - block))[:2]
            raise LayoutError(
                f"tp*cp*pp={block} does not divide the {gpus} GPUs, {' and '.join(map(str, near))} "
                "do; change a degree or --nodes"
            )
        dp = gpus // block
        return Layout(
            self.tp, self.cp, self.pp, self.vpp, dp, self.ep, self.etp, self.micro_batch,
            self.sequence_parallel and self.tp > 1, self._shard(dp * self.cp),
            Recompute(self.recompute), "", self.offload_optimizer, self.offload_weights,
            self.delayed_update, offload_named(self.offload),
        )  # fmt: skip

    def _shard(self, ranks: int) -> Shard:
        """Return the groups that share weights, gradients and optimizer state."""
        if self.shard is None:
            return Shard.zero(self.zero, ranks)
        sizes = self.shard.split(",")
        if len(sizes) not in (3, 4) or not all(size.strip().isdecimal() for size in sizes):
            raise SpecError(
                f"--shard: {self.shard!r} is no list of group sizes; write those of weights, "
                f"gradients, optimizer and perhaps a second copy of the weights, like 2,8,{ranks}"
            )
        if "0" in [size.strip() for size in sizes[:3]]:
            raise SpecError(f"--shard: {self.shard!r} has a group of 0 ranks; write 1 for whole")
        return Shard(*map(int, sizes))


@dataclass(frozen=True, slots=True)
class Question:
    """One layout of a job on a cluster; ``split`` where its stages are written out."""

    model: ModelSpec
    cluster: ClusterSpec
    job: JobSpec
    target: Target
    layout: Layout
    split: Split | None

    def problems(self) -> list[str]:
        """Return every rule that the layout breaks, of any program and of the target."""
        return broken_rules(
            self.model, self.cluster, self.job, self.target, self.layout, self.split
        )


def of_plan(plan: Plan, calibration: Path | None = None, mixed: bool = False) -> Question:
    """Return the question whether a written plan fits.

    ``mixed``: the command knows nodes of several kinds; others refuse them.
    """
    if plan.cluster.node_groups and (not mixed or calibration is not None):
        what = "--calibration: " if mixed else ""
        raise SpecError(
            f"{what}{plan.cluster.name!r} has nodes of several kinds (node_groups); recommend, "
            "check, explain memory, explain speed, simulate and report know them, uncalibrated"
        )
    software = plan.job.software
    named = (one for one in TARGETS.values() if one.software.name == software.name)
    target = replace(next(named, TARGETS["megatron"]), software=software)
    cluster, target = with_calibration(plan.cluster, target, calibration)
    job = plan.job.model_copy(update={"software": target.software})
    return Question(plan.model, cluster, job, target, plan.to_layout(), plan.to_split())


def asked(
    model: str,
    cluster: str | None,
    nodes: int | None,
    global_batch: int | None,
    seq_len: int | None,
    precision: str,
    target: str,
    degrees: Degrees,
    calibration: Path | None = None,
    method: Method = Method(),
    profile: Path | None = None,
    mixed: bool = False,
) -> Question:
    """Return the question of a model and options, or of a plan file.

    ``mixed``: the command knows nodes of several kinds.
    """
    path = Path(model)
    if path.suffix == ".json" and path.is_file() and '"rank_map"' in path.read_text("utf-8"):
        if profile is not None:
            raise SpecError("--profile: a plan has its machine already; give the model instead")
        return of_plan(load(Plan, path), calibration, mixed)
    if is_path(path) and not path.exists():
        load_model(model)  # refuses: a plan that is not there misses no option
    needed = {"--cluster": cluster or profile, "--global-batch": global_batch, "--seq-len": seq_len}
    missing = [
        f"{name}: is needed, unless a plan file is given"
        for name, value in needed.items()
        if value is None
    ]
    kinds = mixed and calibration is None
    spec, machines = read_both(
        model, lambda: chosen_cluster(cluster, nodes, profile, mixed=kinds), missing
    )
    assert global_batch is not None  # or it was missing
    assert seq_len is not None
    for group in machines.node_groups:
        chosen_job(global_batch, seq_len, precision, spec, group.gpu, method)  # or it refuses
    job = chosen_job(global_batch, seq_len, precision, spec, machines.gpu, method)
    runner = PRICED.get(target) or chosen_target(target, spec, job)[0]
    machines, runner = with_calibration(machines, runner, calibration)
    job = job.model_copy(update={"software": runner.software})
    return Question(spec, machines, job, runner, degrees.layout(machines.gpus), None)
