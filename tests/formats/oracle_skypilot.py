"""Asks SkyPilot's own schema of tasks. Reads JSON on stdin: a list of tasks; prints the errors.

The schema is data beside SkyPilot's servers and clouds; what those import may be missing.
"""

import importlib
import json
import sys
from typing import Any
from unittest.mock import MagicMock

import jsonschema


def schemas() -> Any:
    """Return the module of schemas, with a stand-in for each package that is not installed."""
    for _ in range(100):
        try:
            return importlib.import_module("sky.utils.schemas")
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.startswith("sky"):
                raise
            sys.modules[missing.name] = MagicMock()
            for name in [name for name in sys.modules if name.split(".")[0] == "sky"]:
                del sys.modules[name]  # half imported
    raise ImportError("sky.utils.schemas needs more than stand-ins")


if __name__ == "__main__":
    tasks = json.load(sys.stdin)
    checker = jsonschema.Draft7Validator(schemas().get_task_schema())
    json.dump([[error.message for error in checker.iter_errors(task)] for task in tasks],
              sys.stdout)  # fmt: skip
