"""The script that starts another framework's configuration with torchrun, once per node."""

import shlex
from collections.abc import Sequence
from string import Template

from planner.formats.work import Work

_SCRIPT = Template("""#!/usr/bin/env bash
# Starts $config on $ranks GPUs with $program; further arguments are passed on.
# Environment: NNODES NPROC_PER_NODE NODE_RANK MASTER_ADDR MASTER_PORT.
set -euo pipefail

here="$$(cd -- "$$(dirname -- "$${BASH_SOURCE[0]}")" && pwd)"
NNODES="$${NNODES:-$nodes}"
NPROC_PER_NODE="$${NPROC_PER_NODE:-$per_node}"
if [ "$$((NNODES * NPROC_PER_NODE))" -ne $ranks ]; then
  echo "error: NNODES=$$NNODES times NPROC_PER_NODE=$$NPROC_PER_NODE is not $ranks ranks" >&2
  exit 2
fi
printf '%s\\n' $title >&2
exec torchrun --nnodes "$$NNODES" --nproc-per-node "$$NPROC_PER_NODE" \\
  --node-rank "$${NODE_RANK:-0}" --master-addr "$${MASTER_ADDR:-127.0.0.1}" \\
  --master-port "$${MASTER_PORT:-29500}" \\
  $words "$$here/$config" "$$@"
""")


def write_start(work: Work, program: str, words: Sequence[str], config: str) -> str:
    """Return the script that runs ``words`` with ``config``, a file beside it, on every rank.

    ``words`` are ours and may hold shell variables; the job's own name is quoted.
    """
    return _SCRIPT.substitute(
        config=config, ranks=work.ranks, program=program, nodes=work.nodes,
        per_node=work.per_node, title=shlex.quote(work.title), words=" ".join(words),
    )  # fmt: skip
