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
    """Whether the interpreter has ``package.part.name``; asked once, without importing it."""
    package, _, rest = module.partition(".")
    code = (
        "import importlib.util, pathlib, sys\n"
        f"found = importlib.util.find_spec({package!r})\n"
        "places = list(found.submodule_search_locations) if found else []\n"
        f"name = {rest.replace('.', '/')!r}\n"
        "sys.exit(not any((pathlib.Path(one) / name).exists()\n"
        "                 or (pathlib.Path(one) / f'{name}.py').exists() for one in places))"
    )
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
    return json.loads(result.stdout.splitlines()[-1])  # some greet on stdout before
