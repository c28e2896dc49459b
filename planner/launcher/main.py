"""Command line of the launcher: read the plan, check it, train.

Exit code 0: trained; 2: the plan cannot be executed or the arguments are wrong.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .learning_rate import CURVES, LearningRate
from .plan_file import PlanError, PlanFile, read_plan
from .preflight import plan_problems, world_problems
from .rules import OPTIMIZERS
from .saved import file_problems, job_facts, resume_problems

if TYPE_CHECKING:
    from .runtime import Process
    from .train import Options

_GRACE_S = 5.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train the model of a plan, in the plan's layout.",
    )
    parser.add_argument("plan", type=Path, help="plan.json")
    parser.add_argument("--backend", choices=("auto", "nccl", "gloo"), default="auto",
                        help="gloo runs on CPUs; auto takes nccl where CUDA is")  # fmt: skip
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--data", type=Path, metavar="FILE",
                        help="of token numbers; default: synthetic tokens")  # fmt: skip
    parser.add_argument("--token-bytes", type=int, choices=(2, 4), default=2,
                        help="of one token in --data")  # fmt: skip
    parser.add_argument("--lr", type=float, default=1e-3, help="after the warm-up")
    parser.add_argument("--lr-curve", choices=CURVES, default="constant", help="after the warm-up")
    parser.add_argument("--warmup", type=int, default=0, metavar="STEPS")
    parser.add_argument("--least-lr", type=float, default=0.0, help="at the end of the curve")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="default: the plan's")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto",
                        help="of the products; masters are fp32; auto: bf16 on CUDA")  # fmt: skip
    parser.add_argument("--clip", type=float, default=0.0, help="gradient norm limit; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--log", type=Path, help="append JSON lines to this file")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR",
                        help="save here at the end and on SIGTERM; go on from here")  # fmt: skip
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS",
                        help="save after every so many steps too")  # fmt: skip
    parser.add_argument("--offload-directory", type=Path, metavar="DIR",
                        help="on the drive where a plan's activations wait")  # fmt: skip
    parser.add_argument("--expert-slots", type=int, default=0, metavar="N",
                        help="copy loaded experts to so many slots of a rank (FSSDP)")  # fmt: skip
    parser.add_argument(
        "--gather-again",
        action="store_true",
        help="drop the copies after the forward pass and gather them again",
    )
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one collective")
    parser.add_argument("--check", action="store_true", help="check the plan, start nothing")
    return parser


def _rate(arguments: argparse.Namespace) -> LearningRate:
    return LearningRate(arguments.lr, arguments.lr_curve, arguments.warmup, arguments.least_lr,
                        arguments.steps)  # fmt: skip


def _copy_problems(plan: PlanFile, arguments: argparse.Namespace) -> list[str]:
    found = []
    if arguments.expert_slots < 0:
        found.append(f"--expert-slots {arguments.expert_slots} must be at least 0; 0: no copies")
    if arguments.expert_slots > 0 and (plan.layout.ep == 1 or plan.layout.etp > 1):
        found.append(f"--expert-slots needs experts on several ranks that are not split: ep above "
                     f"1, etp 1; the plan has {plan.layout.ep} and {plan.layout.etp}")  # fmt: skip
    if arguments.gather_again and not arguments.expert_slots:
        found.append("--gather-again needs --expert-slots N")
    return found


def _problems(plan: PlanFile, arguments: argparse.Namespace) -> list[str]:
    found = plan_problems(plan) + _rate(arguments).problems()
    if arguments.data is not None:
        found += file_problems(arguments.data, arguments.token_bytes, plan.seq_len)
    if arguments.steps < 1:
        found.append(f"--steps {arguments.steps} must be at least 1")
    if arguments.save_every < 0:
        found.append(f"--save-every {arguments.save_every} must be at least 0; 0: not")
    if arguments.save_every > 0 and arguments.checkpoint is None:
        found.append(f"--save-every {arguments.save_every} needs --checkpoint DIR")
    found += _copy_problems(plan, arguments)
    if arguments.checkpoint is not None:
        optimizer = arguments.optimizer or plan.optimizer
        facts = job_facts(plan, arguments.seed, optimizer, arguments.data)
        found += resume_problems(arguments.checkpoint, facts)
    if arguments.check:
        return found
    if plan.layout.offload_target == "ssd" and arguments.offload_directory is None:
        found.append("the plan offloads activations to a drive; add --offload-directory DIR on it")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return [*found, "RANK and WORLD_SIZE are not set; start with launch.sh or torchrun"]
    return found + world_problems(plan, int(os.environ["WORLD_SIZE"]))


def _refuse(problems: list[str]) -> int:
    """Say every problem once, not once per process; all processes leave with code 2."""
    if os.environ.get("RANK", "0") != "0":
        # torchrun ends all processes when the first one leaves: let the one that speaks be first
        time.sleep(_GRACE_S)
        return 2
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2


def _train(plan: PlanFile, arguments: argparse.Namespace) -> None:
    """Run the steps; torch is imported here, after all checks."""
    import torch

    from . import runtime
    from .train import Options

    nccl = arguments.backend == "nccl"
    if arguments.backend == "auto":
        nccl = torch.cuda.is_available()
    bf16 = nccl if arguments.dtype == "auto" else arguments.dtype == "bf16"
    options = Options(
        steps=arguments.steps,
        lr=_rate(arguments),
        optimizer=arguments.optimizer or plan.optimizer,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        seed=arguments.seed,
        clip=arguments.clip,
        data=arguments.data,
        token_bytes=arguments.token_bytes,
        offload_directory=arguments.offload_directory,
        expert_slots=arguments.expert_slots,
        gather_again=arguments.gather_again,
    )
    process = runtime.start(plan.rank_map, "nccl" if nccl else "gloo", arguments.timeout_s)
    with runtime.named(process):
        _run(plan, arguments, options, process)
    runtime.finish()


def _run(
    plan: PlanFile, arguments: argparse.Namespace, options: "Options", process: "Process"
) -> None:
    import torch

    from . import log, runtime, session
    from .train import Job

    report = log.Log(arguments.log, process.speaks)
    nccl = process.device.type == "cuda"
    device = torch.cuda.get_device_name(process.device) if nccl else "CPU (gloo)"
    if arguments.checkpoint is None:
        session.run(Job(plan, options, process.device), report, device)
    else:
        job = Job(plan, options, process.device, stop=runtime.watch_for_stop())
        saving = session.Saving(arguments.checkpoint, arguments.save_every)
        session.run(job, report, device, saving)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; after training the process ends inside ``runtime.finish``."""
    arguments = _parser().parse_args(argv)
    try:
        plan = read_plan(arguments.plan)
    except PlanError as error:
        return _refuse(error.problems)
    if problems := _problems(plan, arguments):
        return _refuse(problems)
    if arguments.check:
        print(f"{arguments.plan}: can be executed on {plan.layout.ranks} ranks")
    else:
        _train(plan, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
