"""Asks torchtitan 0.3's own loader about Python recipes, and its check of the degrees.

Reads JSON on stdin: a list of (module text, ranks). Prints for each the error, or what was read.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchtitan.components.quantization import float8
from torchtitan.config.manager import ConfigManager
from torchtitan.distributed.parallel_dims import ParallelDims

float8.has_cuda_capability = lambda *_: True  # there is no GPU here, and none is used


def asked(text: str, ranks: int, folder: Path, at: int) -> dict[str, Any]:
    """Return what torchtitan says of one module on so many ranks."""
    name = f"torchtitan_plan_{at}"
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    try:
        config = ConfigManager().parse_args(["--module", name, "--config", "plan"])
        ParallelDims.from_config(config.parallelism, ranks)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    policy = config.activation_checkpoint
    return {"error": "", "parallelism": dataclasses.asdict(config.parallelism),
            "training": dataclasses.asdict(config.training), "compile": config.compile.enable,
            "policy": policy and type(policy).__qualname__.split(".")[0],
            "flavor": config.model_spec.flavor, "model": config.model_spec.name}  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        answers = [asked(text, ranks, Path(folder), at)
                   for at, (text, ranks) in enumerate(json.load(sys.stdin))]  # fmt: skip
    json.dump(answers, sys.stdout)
