"""The Slurm script beside a launch script: one launcher per node.

Nodes are numbered in Slurm's order, or in the plan's where the plan places them on named hosts.
"""

from collections.abc import Sequence
from string import Template

from planner.formats.grid import job_name

_SBATCH = Template("""#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$per_node
#SBATCH --exclusive
$asked# Submit from this directory: sbatch job.sbatch [arguments]
# Slurm runs a copy of this file, so the bundle is where the job was submitted, or in BUNDLE.
set -euo pipefail

export BUNDLE="$${BUNDLE:-$$SLURM_SUBMIT_DIR}"
$master
export MASTER_PORT="$${MASTER_PORT:-29500}"
export NNODES=$nodes NPROC_PER_NODE=$per_node
# one launcher per node, free to use all its cores; slots are numbered in $order order
srun --kill-on-bad-exit=1 --cpu-bind=none bash -c \\
  '$rank exec bash "$$BUNDLE/$script" "$$@"' launch "$$@"
""")
_ANY_ORDER = {
    "asked": "",
    "master": 'nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"\n'
    "export MASTER_ADDR=\"${nodes%%$'\\n'*}\"",
    "order": "Slurm's node",
    "rank": 'NODE_RANK="$SLURM_NODEID"',
}
# Slurm sorts the nodes of a job, so each launcher looks its own number up
_OWN_RANK = """\
rank=0
  for host in $PLAN_HOSTS; do
    if [ "$host" = "$SLURMD_NODENAME" ]; then break; fi
    rank=$((rank + 1))
  done
  if [ "$rank" -eq "$NNODES" ]; then
    echo "error: $SLURMD_NODENAME is not a host of the plan: $PLAN_HOSTS" >&2
    exit 2
  fi
  NODE_RANK="$rank\""""


def write_slurm(
    name: str, nodes: int, per_node: int, script: str, hosts: Sequence[str] = ()
) -> str:
    """Return the text of ``job.sbatch``, which starts ``script`` (a name of ours) on each node.

    ``hosts`` are the nodes that the plan asks for, in its order.
    """
    words = _ANY_ORDER
    if hosts:
        words = {
            "asked": f"#SBATCH --nodelist={','.join(hosts)}\n",
            "master": f'export PLAN_HOSTS="{" ".join(hosts)}"\nexport MASTER_ADDR={hosts[0]}',
            "order": "the plan's host",
            "rank": _OWN_RANK,
        }
    return _SBATCH.substitute(
        words, name=job_name(name), nodes=nodes, per_node=per_node, script=script
    )
