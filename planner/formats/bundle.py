"""Exports to other frameworks: the configuration, a script, and what starts it on a cluster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.errors import SpecError
from planner.formats.accelerate import lost_by_accelerate, write_accelerate
from planner.formats.deepspeed import lost_by_deepspeed, write_deepspeed
from planner.formats.files import refuse_to_overwrite, write_whole
from planner.formats.kubernetes import write_pytorchjob, write_trainjob
from planner.formats.megatron_script import write_megatron
from planner.formats.nanotron import write_nanotron
from planner.formats.nemo_yaml import lost_by_nemo, write_nemo
from planner.formats.skypilot import write_skypilot
from planner.formats.slurm import write_slurm
from planner.formats.start import write_accelerate_start, write_start
from planner.formats.torchtitan_python import write_recipe
from planner.formats.torchtitan_toml import write_torchtitan
from planner.formats.work import Work, work_of_plan
from planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Export:
    """How one framework is written: its file, its script (if it has one), what is lost."""

    config: str
    write: Callable[[Work], str]
    script: str | None = None
    start: Callable[[Work], str] | None = None
    lost: Callable[[Work], list[str]] | None = None


def _beside(config: str) -> str:
    return f'"$here/{config}"'


def _start_torchtitan(work: Work) -> str:
    words = ["-m torchtitan.train --job.config_file", _beside("torchtitan.toml")]
    return write_start(work, "torchtitan 0.2", words, "torchtitan.toml")


def _start_recipe(work: Work) -> str:
    words = ["-m torchtitan.train --module torchtitan_plan --config plan"]
    found = 'PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"'
    return write_start(work, "torchtitan 0.3", words, "torchtitan_plan.py", found)


def _start_nanotron(work: Work) -> str:
    words = ['"${NANOTRON_PATH:?set NANOTRON_PATH to a checkout of nanotron}/run_train.py"',
             "--config-file", _beside("nanotron.yaml")]  # fmt: skip
    return write_start(work, "nanotron", words, "nanotron.yaml")


def _start_nemo(work: Work) -> str:
    words = ['"${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a program that trains a Bridge recipe}"',
             "--config-file"]  # fmt: skip
    return write_start(
        work, "Megatron-Bridge", words, "bridge.yaml", "CUDA_DEVICE_MAX_CONNECTIONS=1"
    )


def _start_accelerate(work: Work) -> str:
    return write_accelerate_start(work, "accelerate.yaml")


EXPORTS: Mapping[str, Export] = {
    "megatron": Export("megatron.sh", write_megatron, "megatron.sh"),
    "nemo": Export("bridge.yaml", write_nemo, "bridge.sh", _start_nemo, lost_by_nemo),
    "torchtitan": Export("torchtitan.toml", write_torchtitan, "torchtitan.sh", _start_torchtitan),
    "torchtitan-0.3": Export("torchtitan_plan.py", write_recipe, "torchtitan.sh", _start_recipe),
    "deepspeed": Export("deepspeed.json", write_deepspeed, lost=lost_by_deepspeed),
    "accelerate": Export("accelerate.yaml", write_accelerate, "accelerate.sh", _start_accelerate,
                         lost_by_accelerate),
    "nanotron": Export("nanotron.yaml", write_nanotron, "nanotron.sh", _start_nanotron),
}  # fmt: skip


def cluster_files(work: Work, script: str) -> dict[str, str]:
    """Return the files that start ``script`` under Slurm, Kubernetes and SkyPilot."""
    return {
        "job.sbatch": write_slurm(work.model.name, work.nodes, work.per_node, script, work.hosts),
        "pytorchjob.yaml": write_pytorchjob(work, script),
        "trainjob.yaml": write_trainjob(work, script),
        "skypilot.yaml": write_skypilot(work, script),
    }


def framework_files(work: Work, target: str) -> dict[str, str]:
    """Return path and text of every file of an export; the script last.

    Raises ``LayoutError`` with every reason why the framework cannot run the job.
    """
    export = EXPORTS[target]
    files = {export.config: export.write(work)}
    if export.script:
        files |= cluster_files(work, export.script)
        script = export.start(work) if export.start else files.pop(export.config)
        files[export.script] = script
    return files


def export_plan(
    plan: Plan, target: str, directory: Path, *, overwrite: bool = False
) -> tuple[list[Path], list[str]]:
    """Write a plan for another framework; return the files and what could not be carried over."""
    if target not in EXPORTS:
        raise SpecError(f"--target: {target!r} is not exported; use torch, {', '.join(EXPORTS)}")
    work = work_of_plan(plan)
    files = {"plan.json": plan.model_dump_json(indent=2) + "\n", **framework_files(work, target)}
    if not overwrite:
        refuse_to_overwrite(directory)
    export = EXPORTS[target]
    written = [write_whole(directory / name, text, name.endswith((".sh", ".sbatch")))
               for name, text in files.items()]  # fmt: skip
    return written, export.lost(work) if export.lost else []
