"""The script that starts another framework's configuration, once per node."""

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
exec $launcher \\
  $words "$$@"
""")
_TORCHRUN = """torchrun --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" \\
  --node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}" \\
  --master-port "${MASTER_PORT:-29500}\""""
_ACCELERATE = """accelerate launch --config_file "$here/{config}" --num_machines "$NNODES" \\
  --num_processes "$((NNODES * NPROC_PER_NODE))" --machine_rank "${{NODE_RANK:-0}}" \\
  --main_process_ip "${{MASTER_ADDR:-127.0.0.1}}" --main_process_port "${{MASTER_PORT:-29500}}\""""


def write_start(
    work: Work, program: str, words: Sequence[str], config: str, environment: str = ""
) -> str:
    """Return the script that runs ``words``, which name ``config`` beside it, on every rank.

    ``words`` and ``environment`` (``NAME=VALUE``) are ours; the job's own name is quoted.
    """
    launcher = f"env {environment} {_TORCHRUN}" if environment else _TORCHRUN
    return _script(work, program, config, launcher=launcher, words=" ".join(words))


def write_accelerate_start(work: Work, config: str) -> str:
    """Return the script that starts TRAIN_SCRIPT with accelerate's launcher and ``config``."""
    words = '"${TRAIN_SCRIPT:?set TRAIN_SCRIPT to your training program}"'
    launcher = _ACCELERATE.format(config=config)
    return _script(work, "accelerate", config, launcher=launcher, words=words)


def _script(work: Work, program: str, config: str, *, launcher: str, words: str) -> str:
    return _SCRIPT.substitute(
        config=config, ranks=work.ranks, program=program, nodes=work.nodes,
        per_node=work.per_node, title=shlex.quote(work.title), launcher=launcher, words=words,
    )  # fmt: skip
