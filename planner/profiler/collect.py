"""The program that every process of ``torchrun`` runs: measure, and write the profile on rank 0.

::

    torchrun --nproc-per-node 8 -m planner.profiler --model MODEL.json --tp 8 --output profile.json
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from planner.errors import PlannerError, SpecError
from planner.model.operations import Shape
from planner.profiler.groups import group_kinds
from planner.profiler.kernels import measure_products, products
from planner.profiler.links import ladder, measure_links
from planner.profiler.worker import Effort, Worker, joined
from planner.spec.files import write_whole
from planner.spec.huggingface import load_model
from planner.spec.profile import Profile
from planner.units import MIB, parse_bytes

LARGEST_BYTES = {"cuda": 512 * MIB, "cpu": 4 * MIB}
QUICK = Effort(warm_up=1, repetitions=3, inner=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with all processes; exit with the code of the error if there is one."""
    options = _parser().parse_args(arguments)
    try:
        with joined(options.timeout_s) as worker:
            if worker.rank == 0:
                _check_output(options.output)
            profile = collect(worker, options)
            if worker.rank == 0:
                write_whole(options.output, profile.model_dump_json(indent=1) + "\n")
                worker.say(f"profile written to {options.output}")
    except PlannerError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def collect(worker: Worker, options: argparse.Namespace) -> Profile:
    """Measure what ``options`` ask for; every rank returns the same profile."""
    effort = QUICK if options.quick else Effort()
    # what can be wrong in the model shows before anything is measured
    wanted = products(load_model(options.model), _shape(options)) if options.model else ()
    domain = options.domain_ranks or worker.ranks_per_node
    kinds = group_kinds(
        worker.world_size, worker.ranks_per_node, domain, (options.tp, options.ep, options.etp)
    )
    sizes = ladder(options.largest or LARGEST_BYTES[worker.device.type])
    links = measure_links(worker, kinds, sizes, effort)
    gemms = measure_products(worker, wanted, effort)
    return Profile(
        device=worker.device_name,
        world_size=worker.world_size,
        backend=worker.backend,
        date=date.today().isoformat(),
        torch_version=torch.__version__,
        memory_bytes=worker.memory_bytes,
        links=links,
        gemms=gemms,
    )


def _check_output(output: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent on measuring."""
    if not output.resolve().parent.is_dir():
        raise SpecError(f"{output}: no such folder {output.resolve().parent}; make it first")


def _shape(options: argparse.Namespace) -> Shape:
    return Shape(
        options.micro_batch,
        options.seq_len,
        tp=options.tp,
        cp=options.cp,
        ep=options.ep,
        etp=options.etp,
        sequence_parallel=options.tp > 1,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun … -m planner.profiler", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="profile to write (JSON)")
    parser.add_argument("--model", help="name or file of the model whose products are measured")
    for degree in ("tp", "cp", "ep", "etp"):
        parser.add_argument(f"--{degree}", type=_positive, default=1)
    parser.add_argument("--micro-batch", type=_positive, default=1, help="sequences")
    parser.add_argument("--seq-len", type=_positive, default=4096, help="tokens")
    parser.add_argument("--largest", type=_size, help="largest message, like '512 MiB'")
    parser.add_argument("--domain-ranks", type=_positive, help="GPUs of one scale-up fabric")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for one collective")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _size(text: str) -> int:
    try:
        return int(text) if text.isdigit() else parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
