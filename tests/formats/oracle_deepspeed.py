"""Asks DeepSpeed's own configuration class; run where that package is installed.

Reads JSON on stdin: a list of (configuration, ranks). Prints for each the error, or the batch sizes
and the ZeRO stage that DeepSpeed understood.
"""

import contextlib
import io
import json
import sys
from typing import Any

import deepspeed.runtime.config as module


def asked(config: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Return what DeepSpeed says of one configuration on so many ranks."""
    module.dist.get_world_size = lambda group=None: ranks
    module.dist.get_rank = lambda group=None: 0
    try:
        found = module.DeepSpeedConfig(config)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {
        "error": "",
        "batch": found.train_batch_size,
        "micro": found.train_micro_batch_size_per_gpu,
        "steps": found.gradient_accumulation_steps,
        "zero": int(found.zero_optimization_stage),
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [asked(config, ranks) for config, ranks in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
