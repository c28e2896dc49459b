"""Write a plan as a directory that trains it with torch alone: launcher, scripts, plan."""

from importlib import resources
from pathlib import Path
from string import Template

from planner.errors import LayoutError
from planner.formats.bundle import cluster_files
from planner.formats.files import refuse_to_overwrite, write_whole
from planner.formats.grid import node_grid, title
from planner.formats.work import work_of_plan
from planner.launcher.plan_file import PlanError, parse_plan
from planner.launcher.preflight import plan_problems
from planner.launcher.rules import ALL_AT_ONCE, V_SHAPED
from planner.plan import Plan

_PROGRAM = '''"""Start the launcher beside this file; launch.sh runs it once per GPU."""

import sys

from launcher.main import main

if __name__ == "__main__":
    sys.exit(main())
'''

_LAUNCH = Template("""#!/usr/bin/env bash
# Trains plan.json on $ranks ranks; all arguments go to train.py (--help lists them).
# Environment: NNODES NPROC_PER_NODE NODE_RANK MASTER_ADDR MASTER_PORT PYTHON OMP_NUM_THREADS
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT.
# Without a GPU: bash launch.sh --backend gloo   (all $ranks ranks on this machine)
set -euo pipefail

here="$$(cd -- "$$(dirname -- "$${BASH_SOURCE[0]}")" && pwd)"
python="$${PYTHON:-python3}"
ranks=$ranks

case " $$* " in
  *" --check "* | *" --help "* | *" -h "*)
    exec "$$python" "$$here/train.py" "$$here/plan.json" "$$@" ;;
esac
case " $$* " in
  *" --backend gloo "* | *" --backend=gloo "*)
    if [ -z "$${NNODES:-}" ]; then NNODES=1 NPROC_PER_NODE="$${NPROC_PER_NODE:-$$ranks}"; fi ;;
esac
NNODES="$${NNODES:-$nodes}"
NPROC_PER_NODE="$${NPROC_PER_NODE:-$per_node}"
export OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"
# how long after SIGTERM torchrun waits for a checkpoint to be written, seconds
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"

if [ "$$((NNODES * NPROC_PER_NODE))" -ne "$$ranks" ]; then
  echo "error: NNODES=$$NNODES times NPROC_PER_NODE=$$NPROC_PER_NODE is not the plan's" \\
    "$$ranks ranks; set NNODES=$nodes NPROC_PER_NODE=$per_node" >&2
  exit 2
fi
"$$python" "$$here/train.py" "$$here/plan.json" --check "$$@" >/dev/null

if [ "$$NNODES" -eq 1 ] && [ -z "$${MASTER_PORT:-}" ]; then
  meet=(--standalone)
elif [ "$$NNODES" -gt 1 ] && { [ -z "$${NODE_RANK:-}" ] || [ -z "$${MASTER_ADDR:-}" ]; }; then
  echo "error: $$NNODES nodes: set NODE_RANK (0 to $$((NNODES - 1))) and MASTER_ADDR (host of" \\
    "node 0) on each, or submit job.sbatch" >&2
  exit 2
else
  # static rendezvous: node ranks, and with them the plan's rank map, hold as given
  meet=(--node-rank "$${NODE_RANK:-0}" --master-addr "$${MASTER_ADDR:-127.0.0.1}"
    --master-port "$${MASTER_PORT:-29500}")
fi
exec "$$python" -m torch.distributed.run --nnodes "$$NNODES" --nproc-per-node "$$NPROC_PER_NODE" \\
  "$${meet[@]}" -- "$$here/train.py" "$$here/plan.json" "$$@"
""")

_README = Template("""$title

One planned training job. It needs Python 3.11 and torch (tested with 2.13), nothing else.

  bash launch.sh                   train on $nodes node(s) of $per_node GPU(s)
  bash launch.sh --backend gloo    the same layout on the CPUs of this machine, $ranks processes
  bash launch.sh --check           check the plan, start nothing
  sbatch job.sbatch --steps 50     the same under Slurm
  bash launch.sh --log run.jsonl   step times, losses and memory as JSON lines
  bash launch.sh --checkpoint DIR --save-every 100
                                   save to DIR, at the end and on SIGTERM too; go on from there

With several nodes and no Slurm, set NODE_RANK and MASTER_ADDR on each node.$order

  plan.json    layout, stages, rank map, and the estimate that is printed beside the measurement
  launcher/    the program; it reads plan.json and imports torch only
  train.py     its start

Tokens are synthetic and weights random: the run measures the layout, it trains nothing useful.
""")


def _order(hosts: tuple[str, ...]) -> str:
    """Return which host takes which NODE_RANK, where that matters."""
    if not hosts:
        return ""
    ranks = "".join(f"\n  NODE_RANK={rank}  {host}" for rank, host in enumerate(hosts))
    return f"\nThe plan places its ranks on these hosts; job.sbatch asks for them:{ranks}"


def _contents(plan: Plan) -> dict[str, str]:
    """Return path and text of every file; launch.sh last, so a bundle that has it is complete."""
    nodes, per_node = node_grid(plan)
    values = {
        "ranks": len(plan.rank_map),
        "nodes": nodes,
        "per_node": per_node,
        "title": title(plan),
        "order": _order(plan.hosts),
    }
    files = {"plan.json": plan.model_dump_json(indent=2) + "\n", "train.py": _PROGRAM}
    for source in resources.files("planner.launcher").iterdir():
        if source.name.endswith(".py"):
            files[f"launcher/{source.name}"] = source.read_text(encoding="utf-8")
    files["README.txt"] = _README.substitute(values)
    files |= cluster_files(work_of_plan(plan, (*V_SHAPED, ALL_AT_ONCE)), "launch.sh")
    files["launch.sh"] = _LAUNCH.substitute(values)
    return files


def write_bundle(plan: Plan, directory: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the program, scripts and plan into ``directory``; return the files.

    Raises ``LayoutError`` with every reason why the launcher cannot run the plan, and
    ``SpecError`` rather than write into a directory that holds something, unless ``overwrite``.
    """
    try:
        problems = plan_problems(parse_plan(plan.model_dump(mode="json")))
    except PlanError as error:
        problems = error.problems
    if problems:
        raise LayoutError(problems)
    files = _contents(plan)
    if not overwrite:
        refuse_to_overwrite(directory)
    scripts = ("launch.sh", "job.sbatch")
    return [write_whole(directory / name, text, name in scripts) for name, text in files.items()]
