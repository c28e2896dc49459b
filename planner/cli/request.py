"""From the words of a command to checked records; every complaint names the option."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.cli.output import note
from planner.errors import SpecError
from planner.layout.layout import OFFLOAD_TARGETS, Offload
from planner.search.targets import Target
from planner.spec.calibration import apply_calibration, calibrated_software, load_calibration
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.gpu import GpuSpec
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.machine import apply_profile, cluster_of
from planner.spec.model import ModelSpec
from planner.spec.optimizer import OPTIMIZERS
from planner.spec.profile import load_profile


@dataclass(frozen=True, slots=True)
class Method:
    """How weights are trained: the optimizer, and the rank of adapters beside frozen weights."""

    optimizer: str = "adamw"
    lora_rank: int = 0


NOT_FOR_TRAINING = {"fp32", "tf32", "fp64"}


def share(text: str) -> float:
    """Return a share of one, written as ``5%`` or ``0.05``."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{text!r} is not a share; write '5%' or '0.05'") from None
    if not 0 <= number < 1:
        raise ValueError(f"{text!r} is not between 0 % and 100 %; write '5%' or '0.05'")
    return number


def offload_named(text: str) -> Offload:
    """Return the activation offload written as ``none``, ``host``, ``host:50%`` or ``ssd:0.5``."""
    if text == "none":
        return Offload()
    target, _, amount = text.partition(":")
    remedy = "write none, host, ssd, or a target and a share like host:50%"
    if target not in OFFLOAD_TARGETS:
        raise SpecError(f"--offload: {text!r} is not known; {remedy}")
    if amount in ("", "1", "100%"):
        return Offload(1.0, target)
    try:
        fraction = share(amount)
    except ValueError:
        raise SpecError(f"--offload: {amount!r} in {text!r} is not a share; {remedy}") from None
    return Offload(fraction, target) if fraction else Offload()


def read_both(
    model: str, machines: Callable[[], ClusterSpec], missing: Sequence[str] = ()
) -> tuple[ModelSpec, ClusterSpec]:
    """Return the model of a name and what ``machines`` reads.

    All complaints are made at once, those of ``missing`` options too.
    """
    problems, cluster = [*missing], None
    said = {one.partition(":")[0] for one in missing}
    try:
        cluster = machines()
    except SpecError as error:
        problems += [one for one in error.problems if one.partition(":")[0] not in said]
    try:
        spec = load_model(model)
    except SpecError as error:
        problems = [*error.problems, *problems]
    if problems or cluster is None:
        raise SpecError(problems)
    return spec, cluster


def chosen_cluster(
    name: str | None,
    nodes: int | None,
    profile: Path | None,
    links: Path | None = None,
    mixed: bool = False,
) -> ClusterSpec:
    """Return the cluster with the nodes asked for, and the curves and links that were measured.

    Without a name it is the machine that was profiled. ``mixed``: the command knows clusters of
    several kinds of nodes; others refuse them.
    """
    if name is None:
        return _profiled(profile, nodes, links)
    cluster = load_cluster(name)
    if cluster.node_groups and (not mixed or profile is not None):
        what = "--profile" if mixed else "--cluster"
        raise SpecError(
            f"{what}: {cluster.name!r} has nodes of several kinds (node_groups), which this "
            "command does not know, nor any with a profile or calibration; describe one kind as a "
            "cluster of its own"
        )
    if links is not None:
        cluster, nodes = _with_links(cluster, nodes, links), None
    if nodes is not None:
        cluster = _with_nodes(cluster, nodes)
    if profile is None:
        return cluster
    measured = load_profile(profile)
    note(f"profile {profile}: {measured.origin}; it replaces the curves of {cluster.gpu.name}")
    return apply_profile(cluster, measured)


def _profiled(profile: Path | None, nodes: int | None, links: Path | None) -> ClusterSpec:
    """Return the machine that a profile describes by itself."""
    if profile is None:
        raise SpecError("--cluster: is needed, unless --profile says what the machine does")
    measured = load_profile(profile)
    note(f"profile {profile}: {measured.origin}")
    cluster = cluster_of(measured, nodes)
    return cluster if links is None else _with_links(cluster, nodes, links)


def _with_nodes(cluster: ClusterSpec, nodes: int) -> ClusterSpec:
    if nodes > 1 and cluster.scale_out is None:
        raise SpecError(
            f"--nodes: {nodes} nodes of {cluster.name!r} have no network between them; "
            "describe scale_out in its file, or use --nodes 1"
        )
    if cluster.node_groups and nodes != cluster.nodes:
        raise SpecError(
            f"--nodes: {cluster.name!r} lists its {cluster.nodes} nodes by kind; change "
            "node_groups in its file"
        )
    measured = len(cluster.node_links.hosts) if cluster.node_links else nodes
    if nodes > measured:
        raise SpecError(f"--nodes: links of {measured} nodes were measured; use at most {measured}")
    return cluster.model_copy(update={"nodes": nodes})


def _with_links(cluster: ClusterSpec, nodes: int | None, file: Path) -> ClusterSpec:
    """Return the cluster with measured links; without ``nodes``, all that were measured."""
    from planner.formats.mpigraph import read_node_links

    if cluster.node_groups or cluster.domain_gpus > cluster.gpus_per_node:
        reason = "is of several kinds of nodes" if cluster.node_groups else "has domains of nodes"
        raise SpecError(f"--links: {cluster.name!r} {reason}; links are placed on like nodes only")
    links = read_node_links(file)
    cluster = cluster.model_copy(update={"node_links": links})
    return _with_nodes(cluster, len(links.hosts) if nodes is None else nodes)


def with_calibration(
    cluster: ClusterSpec, target: Target, file: Path | None
) -> tuple[ClusterSpec, Target]:
    """Return cluster and target with the factors of a calibration file, if one is given."""
    if file is None:
        return cluster, target
    found = load_calibration(file)
    calibrated = apply_calibration(cluster, found)
    note(f"calibration {file}: {found.origin}")
    software = calibrated_software(target.software, found.factors)
    return calibrated, replace(target, software=software)


def chosen_job(
    global_batch: int,
    seq_len: int,
    precision: str,
    model: ModelSpec,
    gpu: GpuSpec,
    method: Method = Method(),
) -> JobSpec:
    """Return the job; the GPU must have units for its precision, the model positions for it."""
    problems = []
    known = [name for name in gpu.peak_flops if name not in NOT_FOR_TRAINING]
    if precision not in known:
        problems.append(
            f"--precision: {precision!r} does not run on {gpu.name}; use one of {', '.join(known)}"
        )
    if 0 < model.positions < seq_len:
        problems.append(
            f"--seq-len: {seq_len} exceeds the {model.positions} learned positions of "
            f"{model.name}; use at most {model.positions}"
        )
    if method.optimizer not in OPTIMIZERS:
        problems.append(
            f"--optimizer: {method.optimizer!r} is not known; use one of {', '.join(OPTIMIZERS)}"
        )
    if problems:
        raise SpecError(problems)
    return JobSpec(
        global_batch=global_batch,
        seq_len=seq_len,
        precision=precision,
        optimizer=method.optimizer,
        lora_rank=method.lora_rank,
    )
