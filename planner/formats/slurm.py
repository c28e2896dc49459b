"""The Slurm script beside a launch script: one launcher per node, in Slurm's node order."""

from string import Template

from planner.formats.grid import job_name

_SBATCH = Template("""#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$per_node
#SBATCH --exclusive
# Submit from this directory: sbatch job.sbatch [arguments]
# Slurm runs a copy of this file, so the bundle is where the job was submitted, or in BUNDLE.
set -euo pipefail

export BUNDLE="$${BUNDLE:-$$SLURM_SUBMIT_DIR}"
nodes="$$(scontrol show hostnames "$$SLURM_JOB_NODELIST")"
export MASTER_ADDR="$${nodes%%$$'\\n'*}"
export MASTER_PORT="$${MASTER_PORT:-29500}"
export NNODES=$nodes NPROC_PER_NODE=$per_node
# one launcher per node, free to use all its cores; slots are numbered in Slurm's node order
srun --kill-on-bad-exit=1 --cpu-bind=none bash -c \\
  'NODE_RANK="$$SLURM_NODEID" exec bash "$$BUNDLE/$script" "$$@"' launch "$$@"
""")


def write_slurm(name: str, nodes: int, per_node: int, script: str) -> str:
    """Return the text of ``job.sbatch``, which starts ``script`` (a name of ours) on each node."""
    return _SBATCH.substitute(name=job_name(name), nodes=nodes, per_node=per_node, script=script)
