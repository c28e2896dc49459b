"""Asks accelerate's own launcher about configuration files, up to the start of the processes.

Reads JSON on stdin: a list of YAML texts. Prints for each the error, or what it read: the kind of
job, processes, and the sizes of its mesh. What the processes check first is asked too.
"""

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

logging.disable(logging.WARNING)
CLEAN = dict(os.environ)


def process(args: Any, kind: Any) -> list[int]:
    """Do what the launcher and each process do with their settings; return the mesh's sizes."""
    environment = prepare_multi_gpu_env(args)
    os.environ.update(environment)
    fsdp = FullyShardedDataParallelPlugin() if args.use_fsdp else None
    if not args.use_parallelism_config:
        return []
    mesh = ParallelismConfig()
    second = fsdp is not None and fsdp.fsdp_version == 2
    mesh._validate_accelerator(SimpleNamespace(
        multi_device=args.multi_gpu, num_processes=args.num_processes, is_fsdp2=second,
        distributed_type=kind, is_main_process=False,
    ))  # fmt: skip
    names = ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    return [getattr(mesh, f"{name}_size") for name in names]


def asked(text: str, folder: Path) -> dict[str, Any]:
    """Return what accelerate says of one file."""
    file = folder / "config.yaml"
    file.write_text(text)
    os.environ.clear()
    os.environ.update(CLEAN)
    try:
        found = load_config_from_file(str(file))
        words = ["--config_file", str(file), "train.py"]
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        args.main_process_port = 0
        mesh = process(args, found.distributed_type)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "") if args.use_fsdp else ""
    return {"error": "", "kind": str(getattr(found.distributed_type, "value", "")),
            "processes": args.num_processes, "mesh": mesh, "reshard": reshard,
            "zero": args.zero_stage if args.use_deepspeed else None}  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        answers = [asked(text, Path(folder)) for text in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
