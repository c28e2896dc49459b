"""Asks torchtitan 0.2's own TOML reader and its check of the degrees.

Reads JSON on stdin: a list of (TOML text, ranks). Prints for each the error, or the settings read.
"""

import contextlib
import dataclasses
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

# kernels that a machine without a GPU has no compiler for; neither reader nor check runs them
sys.modules.update({name: MagicMock() for name in ("triton", "triton.language")})

from torchtitan.config.manager import ConfigManager  # noqa: E402
from torchtitan.distributed.parallel_dims import ParallelDims  # noqa: E402


def asked(text: str, ranks: int, folder: Path) -> dict[str, Any]:
    """Return what torchtitan says of one file on so many ranks."""
    file = folder / "job.toml"
    file.write_text(text)
    try:
        config = ConfigManager().parse_args([f"--job.config_file={file}"])
        sizes = config.parallelism
        ParallelDims(
            dp_replicate=sizes.data_parallel_replicate_degree,
            dp_shard=sizes.data_parallel_shard_degree, cp=sizes.context_parallel_degree,
            tp=sizes.tensor_parallel_degree, pp=sizes.pipeline_parallel_degree,
            ep=sizes.expert_parallel_degree, etp=sizes.expert_tensor_parallel_degree,
            world_size=ranks,
        )  # fmt: skip
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"error": "", "parallelism": dataclasses.asdict(sizes),
            "training": dataclasses.asdict(config.training),
            "mode": config.activation_checkpoint.mode}  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        answers = [asked(text, ranks, Path(folder)) for text, ranks in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
