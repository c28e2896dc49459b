"""Asks nanotron's own reader of configurations. Reads JSON on stdin: a list of YAML texts.

Prints for each the error, or the degrees and batch that it read. Its kernels may be missing.
"""

import contextlib
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock


def reader() -> Any:
    """Return the module of configurations, with a stand-in for each package not installed."""
    for _ in range(100):
        try:
            return importlib.import_module("nanotron.config")
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.startswith(("nanotron", "dacite", "yaml")):
                raise
            sys.modules[missing.name] = MagicMock(__version__="99")
            for name in [name for name in sys.modules if name.split(".")[0] == "nanotron"]:
                del sys.modules[name]  # half imported
    raise ImportError("nanotron.config needs more than stand-ins")


def asked(module: Any, text: str, folder: Path) -> dict[str, Any]:
    """Return what nanotron says of one file."""
    file = folder / "config.yaml"
    file.write_text(text)
    try:
        found = module.get_config_from_file(str(file), model_config_class=None)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    sizes, tokens = found.parallelism, found.tokens
    return {
        "error": "",
        "degrees": [sizes.dp, sizes.tp, sizes.pp, sizes.context_parallel_size],
        "batch": [tokens.micro_batch_size, tokens.batch_accumulation_per_replica],
        "layers": found.model.model_config.num_hidden_layers,
        "zero": found.optimizer.zero_stage,
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        module = reader()
        answers = [asked(module, text, Path(folder)) for text in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
