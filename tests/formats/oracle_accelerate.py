"""Asks accelerate's own loader of configuration files.

Reads JSON on stdin: a list of YAML texts. Prints for each the error, or the kind of job it read.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file


def asked(text: str, folder: Path) -> dict[str, Any]:
    """Return what accelerate says of one file."""
    file = folder / "config.yaml"
    file.write_text(text)
    try:
        found = load_config_from_file(str(file))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"error": "", "kind": str(getattr(found.distributed_type, "value", "")),
            "processes": found.num_processes}  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        answers = [asked(text, Path(folder)) for text in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
