"""A SkyPilot task beside a launch script."""

import re

from planner.formats.grid import dns_name
from planner.formats.work import Work, unplaced

# names of the planner's GPU files -> SkyPilot's accelerators, where the first part is not enough
_ACCELERATORS = {
    "A100-SXM-80GB": "A100-80GB",
    "A100-PCIe-80GB": "A100-80GB",
    "V100-SXM-32GB": "V100-32GB",
    "RTX-4090-24GB": "RTX4090",
    "RTX-PRO-6000-96GB": "RTXPRO6000",
}
_RUN = """\
export NNODES="$SKYPILOT_NUM_NODES" NPROC_PER_NODE="{per_node}"
export NODE_RANK="$SKYPILOT_NODE_RANK"
export MASTER_ADDR="$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"
exec bash {script}
"""


def accelerator(gpu: str) -> str:
    """Return SkyPilot's name of a GPU: the first part, but for those whose memory it names."""
    return _ACCELERATORS.get(gpu) or re.split(r"[-_ ]", gpu)[0] or "H100"


def write_skypilot(work: Work, script: str) -> str:
    """Return the YAML of a task that copies the folder and starts ``script`` on each node."""
    import yaml

    document = {
        "name": dns_name(work.model.name),
        "num_nodes": work.nodes,
        "workdir": ".",
        "resources": {"accelerators": f"{accelerator(work.gpu)}:{work.per_node}"},
        "run": _RUN.format(per_node=work.per_node, script=script),
    }
    head = "# sky launch skypilot.yaml, from this folder\n" + unplaced(work, "SkyPilot")
    return head + yaml.safe_dump(document, sort_keys=False)
