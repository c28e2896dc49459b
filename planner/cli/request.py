"""From the words of a command to checked records; every complaint names the option."""

from dataclasses import dataclass, replace
from pathlib import Path

from planner.cli.output import note
from planner.errors import SpecError
from planner.layout.layout import Layout
from planner.search.targets import TARGETS, Target
from planner.search.targets import target as target_named
from planner.spec.calibration import apply_calibration, calibrated_software, load_calibration
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.gpu import GpuSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.spec.optimizer import OPTIMIZERS
from planner.spec.profile import apply_profile, load_profile


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


def chosen_cluster(name: str, nodes: int | None, profile: Path | None) -> ClusterSpec:
    """Return the cluster with the nodes asked for and the curves that a profile measured."""
    cluster = load_cluster(name)
    if nodes is not None:
        if nodes > 1 and cluster.scale_out is None:
            raise SpecError(
                f"--nodes: {nodes} nodes of {cluster.name!r} have no network between them; "
                "describe scale_out in its file, or use --nodes 1"
            )
        cluster = cluster.model_copy(update={"nodes": nodes})
    if profile is None:
        return cluster
    measured = load_profile(profile)
    note(f"profile {profile}: {measured.origin}; it replaces the curves of {cluster.gpu.name}")
    return apply_profile(cluster, measured)


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


def chosen_target(name: str, model: ModelSpec, job: JobSpec) -> tuple[Target, str]:
    """Return what runs the plan and why it was chosen; ``auto`` prefers torch."""
    if name != "auto":
        return target_named(name), "as asked"
    torch = TARGETS["torch"]
    assert torch.problems is not None
    single = Layout()  # what is wrong on one GPU is wrong with the kind of job, not its layout
    problems = torch.problems(model, job.model_copy(update={"software": torch.software}), single)
    if not problems:
        return torch, "the plan can be exported and run (choose another with --target)"
    return TARGETS["megatron"], f"the torch program cannot run this job ({problems[0]})"
