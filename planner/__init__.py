"""Plan how to split a large-model training job over a GPU cluster.

The public names load on first use, so the command line starts without the heavy libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.api import check, estimate, recommend
    from planner.errors import PlannerError
    from planner.layout.layout import Layout, Shard
    from planner.plan import Plan
    from planner.spec.cluster import load_cluster
    from planner.spec.huggingface import load_model
    from planner.spec.job import JobSpec

__version__ = "0.1.0"

_HOME = {
    "JobSpec": "planner.spec.job",
    "Layout": "planner.layout.layout",
    "Plan": "planner.plan",
    "PlannerError": "planner.errors",
    "Shard": "planner.layout.layout",
    "check": "planner.api",
    "estimate": "planner.api",
    "load_cluster": "planner.spec.cluster",
    "load_model": "planner.spec.huggingface",
    "recommend": "planner.api",
}
__all__ = [
    "JobSpec",
    "Layout",
    "Plan",
    "PlannerError",
    "Shard",
    "check",
    "estimate",
    "load_cluster",
    "load_model",
    "recommend",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
