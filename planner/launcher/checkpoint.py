"""Save and load the state of a job with torch's distributed checkpoints.

Every rank writes the parts it holds. Tensors are named and cut as in the whole model, so a
checkpoint of one layout is read by any other.
"""

from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from .optimizer import moments, start_moments
from .saved import job_facts, newest, saved_step, step_directory, write_job
from .train import Job


def _tensors(job: Job, *, loading: bool) -> dict[str, Tensor]:
    """Return this rank's weights and optimizer state by name.

    Where the head is a second copy of the embedding, on a stage of its own, it is saved once and
    loaded twice.
    """
    found = {}
    for name, weight in job.named_parameters.items():
        copied = job.tied is not None and name == "head.weight"
        if copied and not loading:
            continue
        source = "embedding.weight" if copied else name
        found[f"weights.{source}"] = weight.detach()
        found |= {f"{k}.{source}": v for k, v in moments(job.optimizer, weight).items()}
    return found


def save(job: Job, directory: Path, step: int) -> Path:
    """Write the state after ``step``; return its directory. Collective."""
    job.settle()
    target = step_directory(directory, step)
    if dist.get_rank() == 0:
        options = job.options
        facts = job_facts(job.plan, options.seed, options.optimizer, options.data)
        write_job(target, facts)
    dist.barrier()
    save_tensors(_tensors(job, loading=False), storage_writer=FileSystemWriter(target))
    return target


def load(job: Job, checkpoint: Path) -> None:
    """Fill the weights and the optimizer state of ``job``, whatever layout saved them. Collective.

    Raises torch's ``CheckpointException`` when the files are damaged.
    """
    start_moments(job.optimizer, saved_step(checkpoint))
    load_tensors(_tensors(job, loading=True), storage_reader=FileSystemReader(checkpoint))
    if job.masters is not None:
        job.masters.refresh()
    job.first_step = saved_step(checkpoint) + 1


def resume(job: Job, directory: Path) -> Path | None:
    """Continue from the newest complete checkpoint in ``directory``, if there is one."""
    checkpoint = newest(directory)
    if checkpoint is not None:
        load(job, checkpoint)
    return checkpoint
