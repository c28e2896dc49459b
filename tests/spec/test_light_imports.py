import subprocess
import sys

import pytest

MODULES = ["cluster", "files", "fit", "gpu", "huggingface", "job", "model", "problems", "profile"]
HEAVY = {"torch", "numpy", "networkx", "pulp", "yaml", "transformers"}


@pytest.mark.parametrize("module", MODULES)
def test_specs_are_light_to_import(module: str) -> None:
    code = f"import sys, planner.spec.{module}; print(*sys.modules)"

    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert not HEAVY & set(shown.stdout.split())
