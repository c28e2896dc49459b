"""What every launch file says of a plan: its name, its nodes, and a line that describes it."""

import re

from planner.errors import LayoutError
from planner.plan import Plan


def node_grid(plan: Plan) -> tuple[int, int]:
    """Return (nodes, ranks per node) the plan fills; raise ``LayoutError`` when nodes differ."""
    ranks, per_node = len(plan.rank_map), plan.cluster.gpus_per_node
    if ranks <= per_node:
        return 1, ranks
    if ranks % per_node:
        raise LayoutError(
            f"{ranks} ranks leave the last node of {per_node} GPUs part empty; "
            f"torchrun starts as many on each, try {ranks // per_node * per_node} ranks"
        )
    return ranks // per_node, per_node


def title(plan: Plan) -> str:
    """Return one line: the model, its GPUs and the degrees that are not the default."""
    layout = plan.layout.model_dump(exclude_defaults=True)
    degrees = " ".join(f"{name}={value}" for name, value in layout.items())
    gpus = plan.cluster.gpu_words(len(plan.rank_map))
    return f"{plan.model.name} on {gpus}: {degrees}".rstrip(": ")


def job_name(model_name: str) -> str:
    """Return the model's name in the letters that Slurm takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model_name)


def dns_name(model_name: str) -> str:
    """Return a name for Kubernetes: at most 40 lower-case letters, digits and inner dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"job-{name}".strip("-")
