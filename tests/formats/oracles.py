"""Runs another framework's own parser, where it is installed.

``PLANNER_ORACLE_PYTHON`` names an interpreter that has it; without it this one is asked.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PYTHON = os.environ.get("PLANNER_ORACLE_PYTHON", sys.executable)


@cache
def present(module: str) -> bool:
    """Whether the interpreter has ``module``; asked once."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-c", code], check=False, capture_output=True).returncode == 0


def ask(script: str, module: str, question: Any) -> Any:
    """Return the answer of ``script`` to ``question``; skip where ``module`` is not installed."""
    if not present(module):
        pytest.skip(f"{module} is not installed (PLANNER_ORACLE_PYTHON names a Python that has it)")
    result = subprocess.run(
        [PYTHON, str(HERE / script)], input=json.dumps(question), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)
