"""The program that every process of ``torchrun`` runs: measure, and write the profile on rank 0.

::

    torchrun --nproc-per-node 8 -m planner.profiler --model MODEL.json --output profile.json
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel

from planner.errors import PlannerError, SpecError
from planner.profiler.agenda import tasks_of, total_s
from planner.profiler.assemble import assembled
from planner.profiler.host import measure_host
from planner.profiler.journal import Journal
from planner.profiler.kernels import measure_attention, measure_product, measure_spread
from planner.profiler.links import (
    Groups,
    measure_curve,
    measure_overlap,
    measure_pairs,
    measure_sharing,
)
from planner.profiler.memory_bound import measure_kernel, measure_launch
from planner.profiler.options import degree_problems, effort_of, machine_of, parser, wish_of
from planner.profiler.progress import Progress
from planner.profiler.provenance import facts, free_bytes, host_name, identity
from planner.profiler.tasks import (
    AttentionTask,
    CurveTask,
    Effort,
    HostTask,
    KernelTask,
    LaunchTask,
    OverlapTask,
    PairsTask,
    ProductTask,
    SharingTask,
    SpreadTask,
    Task,
)
from planner.profiler.worker import DoubtfulError, Worker, joined
from planner.spec.files import write_whole
from planner.spec.model import ModelSpec
from planner.spec.profile import Profile

MEMORY_SHARE = 0.5  # of the free memory, for one measurement
GRACE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with all processes; exit with the code of the error if there is one."""
    try:
        options = parser().parse_args(arguments)
        with joined(options.timeout_s) as worker:
            _collect(worker, options)
    except PlannerError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Exception:
        # a peer that died shows here as a broken connection: let torchrun see the dead one first
        time.sleep(GRACE_S)
        raise


def _collect(worker: Worker, options: argparse.Namespace) -> None:
    wish = wish_of(options, worker.on_gpu)
    machine = machine_of(options, worker.world_size, worker.ranks_per_node, worker.on_gpu)
    if problems := degree_problems(wish, machine):
        raise SpecError(problems)
    effort = effort_of(options, worker.on_gpu)
    hosts = _hosts(worker)
    tasks = tasks_of(machine, wish)
    journal = _opened(worker, options, hosts)
    done = _done(worker, journal)
    left = [task for task in tasks if task.name not in done]
    progress = Progress(worker.rank == 0, len(tasks), total_s(left, machine, effort))
    progress.begin(len(tasks) - len(left))
    groups = Groups(worker)
    for task in left:
        guess_s = task.seconds(machine, effort)
        progress.on(task.name)
        with worker.watch.on(task.name):
            result = _measured(worker, task, groups, wish.model, effort)
        progress.done(guess_s)
        if journal is not None:
            journal.add(task.name, result)
    if journal is not None:
        head = identity(worker, hosts) | facts(worker) | {"domain_ranks": machine.domain_ranks}
        results = [journal.results[task.name] for task in tasks]
        profile = assembled(head, results, wish.model)
        _finish(journal, options.output, profile, progress)


def _finish(journal: Journal, output: Path, profile: Profile, progress: Progress) -> None:
    write_whole(output, profile.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    journal.close()
    for one in profile.rejected:
        progress.say(f"not believed: {one.what}: {one.reason}")
    progress.say(f"profile written to {output}")


def _hosts(worker: Worker) -> tuple[str, ...]:
    """Return the names of the nodes, in the order of ranks. Collective."""
    names: list[Any] = [None] * worker.world_size
    dist.all_gather_object(names, host_name())
    return tuple(names[:: worker.ranks_per_node])


def _opened(worker: Worker, options: argparse.Namespace, hosts: tuple[str, ...]) -> Journal | None:
    """Open the journal on rank 0, and refuse a bad place before minutes are spent on measuring."""
    if worker.rank:
        return None
    folder = options.output.resolve().parent
    if not folder.is_dir():
        raise SpecError(f"{options.output}: no such folder {folder}; make it first")
    return Journal(options.output, identity(worker, hosts), options.restart)


def _done(worker: Worker, journal: Journal | None) -> set[str]:
    """Return what an interrupted run has measured, the same on all ranks. Collective."""
    names: list[Any] = [sorted(journal.results) if journal is not None else None]
    with worker.watch.on("reading what is measured already"):
        dist.broadcast_object_list(names)
    return set(names[0])


def _measured(
    worker: Worker, task: Task, groups: Groups, model: ModelSpec | None, effort: Effort
) -> dict[str, Any]:
    """Return the records of a task by field of the profile; what is not believed is named."""
    free = -worker.most(-free_bytes(worker)) * MEMORY_SHARE
    if task.needed_bytes > free:
        reason = f"needs {task.needed_bytes:.3g} bytes, {free:.3g} may be used"
        return {"rejected": [{"what": task.name, "reason": reason}]}
    try:
        found = _run(worker, task, groups, model, effort)
    except DoubtfulError as error:
        return {"rejected": [{"what": task.name, "reason": str(error)}]}
    if worker.on_gpu:
        torch.cuda.empty_cache()
    return {field: _plain(value) for field, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    records: tuple[BaseModel, ...] = value if isinstance(value, tuple) else (value,)
    return [record.model_dump(mode="json", exclude_defaults=True) for record in records]


def _run(
    worker: Worker, task: Task, groups: Groups, model: ModelSpec | None, effort: Effort
) -> dict[str, Any]:
    if isinstance(task, CurveTask | PairsTask | SharingTask | OverlapTask):
        return _run_links(worker, task, groups, effort)
    match task:
        case ProductTask():
            return {"gemms": measure_product(worker, task, effort)}
        case AttentionTask():
            return {"attention": measure_attention(worker, task, effort)}
        case KernelTask():
            return {"kernels": measure_kernel(worker, task, model, effort)}
        case LaunchTask():
            assert model is not None
            return {"launch": measure_launch(worker, task, model, effort)}
        case SpreadTask():
            return {"spread": measure_spread(worker, task, effort)}
        case HostTask():
            return {"host": measure_host(worker, task, effort)}


def _run_links(
    worker: Worker,
    task: CurveTask | PairsTask | SharingTask | OverlapTask,
    groups: Groups,
    effort: Effort,
) -> dict[str, Any]:
    match task:
        case CurveTask():
            curve, rejected = measure_curve(worker, task, groups, effort)
            return {"links": curve, "rejected": rejected}
        case PairsTask():
            return {"pairs": measure_pairs(worker, task, effort)}
        case SharingTask():
            return {"sharing": measure_sharing(worker, task, groups, effort)}
        case OverlapTask():
            return {"overlaps": measure_overlap(worker, task, groups, effort)}
