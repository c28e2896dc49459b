"""What the profiler can be asked: one parser for torchrun and for the dry run. No torch here."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from planner.errors import SpecError
from planner.profiler.agenda import Wish, tasks_of, total_s
from planner.profiler.tasks import Effort, Machine
from planner.spec.huggingface import load_model
from planner.units import MIB, parse_bytes

LARGEST_BYTES = {True: 512 * MIB, False: 4 * MIB}  # on a GPU, on a CPU
QUICK = Effort(budget_s=0.02, warm_up=1, least_repetitions=4, most_repetitions=10)
THOROUGH = {True: Effort(), False: Effort(budget_s=0.15)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong as every other error is said."""
        raise SpecError(message.removeprefix("argument "))


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m planner.profiler``; SpecError where it cannot read."""
    made = _Parser(prog="torchrun … -m planner.profiler")
    made.add_argument("--output", type=Path, required=True, help="profile to write (JSON)")
    made.add_argument("--model", help="name or file of the model whose kernels are measured")
    for degree in ("tp", "cp", "ep", "etp"):
        made.add_argument(f"--{degree}", type=_counts, default=(),
                          help="degrees, like 1,2,4; default: all that fit")  # fmt: skip
    made.add_argument("--micro-batch", type=_counts, default=(1, 2, 4), help="sequences")
    made.add_argument("--seq-len", type=_positive, default=4096, help="tokens")
    made.add_argument("--largest", type=_size, help="largest message, like '512 MiB'")
    made.add_argument("--domain-ranks", type=_positive, help="GPUs of one scale-up fabric")
    made.add_argument("--ssd", default="", metavar="DIR", help="folder of a drive to measure")
    made.add_argument("--quick", action="store_true", help="few repetitions")
    made.add_argument("--restart", action="store_true", help="forget an interrupted run")
    made.add_argument("--timeout-s", type=_seconds, default=120.0, help="for one measurement")
    return made


def wish_of(options: argparse.Namespace, on_gpu: bool) -> Wish:
    """Return what is to be measured; SpecError where model or folder are wrong."""
    if options.ssd and not Path(options.ssd).is_dir():
        raise SpecError(f"--ssd: {options.ssd}: no such folder; name one on the drive to measure")
    return Wish(
        model=load_model(options.model) if options.model else None,
        seq_len=options.seq_len,
        micro_batches=options.micro_batch,
        tp=options.tp,
        cp=options.cp,
        ep=options.ep,
        etp=options.etp,
        largest_bytes=options.largest or LARGEST_BYTES[on_gpu],
        ssd_path=str(Path(options.ssd).resolve()) if options.ssd else "",
    )


def machine_of(
    options: argparse.Namespace, world_size: int, ranks_per_node: int, on_gpu: bool
) -> Machine:
    """Return the machine; by default a node is one scale-up domain."""
    return Machine(world_size, ranks_per_node, options.domain_ranks or ranks_per_node, on_gpu)


def degree_problems(wish: Wish, machine: Machine) -> list[str]:
    """Return which of the wished degrees these ranks, or this model, cannot have."""
    model = wish.model
    if model is None:
        return []
    limits = {"tp": (machine.domain_ranks, model.heads, "heads"),
              "cp": (machine.world_size, wish.seq_len, "tokens of a sequence"),
              "ep": (machine.world_size, model.moe.experts if model.moe else 1, "experts"),
              "etp": (machine.domain_ranks, model.heads, "heads")}  # fmt: skip
    problems = []
    for name, (most, size, what) in limits.items():
        for degree in getattr(wish, name):
            if degree > most:
                problems.append(
                    f"--{name}: {degree} ranks, but only {most} take part; leave it out"
                )
            elif size % degree:
                problems.append(f"--{name}: {degree} does not divide {size} {what}; leave it out")
    return problems


def effort_of(options: argparse.Namespace, on_gpu: bool) -> Effort:
    """Return how long each thing is measured."""
    return QUICK if options.quick else THOROUGH[on_gpu]


def agenda(arguments: Sequence[str], processes: int) -> tuple[list[str], float]:
    """Return the measurements that would be made, and a guess of their seconds; no torch."""
    options = parser().parse_args(arguments)
    on_gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    machine = machine_of(options, processes, processes, on_gpu)
    effort, wish = effort_of(options, on_gpu), wish_of(options, on_gpu)
    if problems := degree_problems(wish, machine):
        raise SpecError(problems)
    tasks = tasks_of(machine, wish)
    lines = [f"{task.seconds(machine, effort):7.1f} s  {task.name}" for task in tasks]
    return lines, total_s(tasks, machine, effort)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be more than 0 seconds")
    return value


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(_positive(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts, like 1,2,4") from None


def _size(text: str) -> int:
    try:
        return _positive(text) if text.isdigit() else parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
