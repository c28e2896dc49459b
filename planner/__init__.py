"""Plan how to split a large-model training job over a GPU cluster.

The public names load on first use, so the command line starts without the heavy libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.errors import PlannerError
    from planner.layout.layout import Layout
    from planner.plan import Plan
    from planner.search.answer import recommend
    from planner.simulate.step import estimate_step
    from planner.spec.cluster import ClusterSpec, load_cluster
    from planner.spec.huggingface import load_model
    from planner.spec.job import JobSpec
    from planner.spec.model import ModelSpec

__version__ = "0.1.0"

_HOME = {
    "ClusterSpec": "planner.spec.cluster",
    "JobSpec": "planner.spec.job",
    "Layout": "planner.layout.layout",
    "ModelSpec": "planner.spec.model",
    "Plan": "planner.plan",
    "PlannerError": "planner.errors",
    "estimate_step": "planner.simulate.step",
    "load_cluster": "planner.spec.cluster",
    "load_model": "planner.spec.huggingface",
    "recommend": "planner.search.answer",
}
__all__ = [
    "ClusterSpec",
    "JobSpec",
    "Layout",
    "ModelSpec",
    "Plan",
    "PlannerError",
    "estimate_step",
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
