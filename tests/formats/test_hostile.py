"""Names that a person chose never reach a shell as code: every exported start, run by a real bash.

``srun``, ``torchrun``, ``accelerate`` and Python are recorders on PATH: srun goes on with what it
was given, as Slurm does on each node, the others write down their words.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from planner.formats.bundle import EXPORTS, export_plan
from planner.formats.torch_launcher import write_bundle
from planner.plan import Plan
from planner.spec.cluster import NodeGroup
from planner.spec.huggingface import load_model
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan, cluster, job, llama

NAMES = [
    "$(touch HIT)", "`touch HIT`", "'; touch HIT; '", '"; touch HIT; "', "x; touch HIT",
    "a && touch HIT", "a | touch HIT", "two\ntouch HIT\n", "\n#SBATCH --wrap=touch HIT\n",
    "EOF\ntouch HIT", "$((touch HIT))", "<(touch HIT)", "{touch,HIT}", "!touch", "\\", "--help",
    "'''\nimport os\n", '"""\nimport os; os.system("touch HIT")\n"""', "${x:-$(touch HIT)}", "~",
]  # fmt: skip
SCRIPTED = [name for name, export in EXPORTS.items() if export.script]
_EIGHT = job(global_batch=64, seq_len=4096)
_RECORD = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >> "$RECORD"\n'
_SRUN = _RECORD + 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
_SCONTROL = "#!/bin/bash\nprintf 'n0\\nn1\\n'\n"
PROGRAMS = {
    "srun": _SRUN, "scontrol": _SCONTROL, "torchrun": _RECORD, "accelerate": _RECORD,
    "recorded": _RECORD,
}  # fmt: skip
# the programs of a person are named by variables: any path, blanks and all
PATHS = {"MEGATRON_PATH": "/my $(touch HIT)", "NANOTRON_PATH": "/n", "TRAIN_SCRIPT": "/a b;c.py"}


def plan_of(target: str, name: str) -> Plan:
    """Return a plan on two nodes that the target takes, of a model with that name."""
    model: ModelSpec = llama(name=name)
    if target.startswith("torchtitan"):
        model = load_model("llama-3-8b").model_copy(update={"name": name})
        return build_plan(model, dp=16, zero=3, job_spec=_EIGHT, cluster_spec=cluster(nodes=2))
    work = job(global_batch=16)
    return build_plan(model, dp=16, job_spec=work, cluster_spec=cluster(nodes=2))


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def started(
    words: list[str], folder: Path, programs: Path, more: Mapping[str, str]
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Run a command where the recorders are; return the words of the last one."""
    record = programs.parent / "record"
    record.unlink(missing_ok=True)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record), "PYTHON": "recorded",
        "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_NODEID": "1",
        "SLURMD_NODENAME": "n1", **PATHS, **more,
    }  # fmt: skip
    result = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    recorded = record.read_text().split("\0")[:-1] if record.exists() else []
    return recorded, result


def bundle(target: str, name: str, folder: Path) -> str:
    """Export into ``folder``; return the script that the cluster files start."""
    plan = plan_of(target, name)
    if target == "torch":
        write_bundle(plan, folder)
        return "launch.sh"
    export_plan(plan, target, folder)
    return EXPORTS[target].script or ""


def clean(tmp_path: Path) -> bool:
    return not [found for found in tmp_path.rglob("*") if "HIT" in found.name]


@pytest.mark.parametrize("target", ["torch", *SCRIPTED])
def test_slurm_starts_the_program_and_nothing_else(
    target: str, tmp_path: Path, programs: Path
) -> None:
    for number, name in enumerate(NAMES):
        folder = tmp_path / f"out {number}"
        bundle(target, name, folder)

        words, result = started(["bash", "job.sbatch", "one more; touch HIT"], folder, programs, {})

        assert result.returncode == 0, (name, result.stderr)
        assert words[0] == "srun"
        assert words[-1] == "one more; touch HIT", name
        assert {"torchrun", "accelerate", "recorded"} & set(words), name
        assert clean(tmp_path), name


@pytest.mark.parametrize("target", ["torch", *SCRIPTED])
def test_kubernetes_and_skypilot_start_the_program_and_nothing_else(
    target: str, tmp_path: Path, programs: Path
) -> None:
    for number, name in enumerate(NAMES[::3]):
        folder = tmp_path / f"out{number}"
        bundle(target, name, folder)
        replicas = yaml.safe_load((folder / "pytorchjob.yaml").read_text())["spec"]
        pod = replicas["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
        trainer = yaml.safe_load((folder / "trainjob.yaml").read_text())["spec"]["trainer"]
        task = yaml.safe_load((folder / "skypilot.yaml").read_text())
        given = {"NNODES": "2", "NPROC_PER_NODE": "8"}
        here = {"RANK": "1", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"}
        pet = {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "n0"}
        sky = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "n0\nn1"}
        starts = [(pod["command"], given | here), (trainer["command"], given | pet),
                  (["bash", "-c", task["run"]], sky)]  # fmt: skip
        for command, more in starts:
            there = [word.replace("/bundle/", f"{folder}/") for word in command]
            words, result = started(there, folder, programs, more)

            assert result.returncode == 0, (name, command, result.stderr)
            assert {"torchrun", "accelerate", "recorded"} & set(words), name
            assert clean(tmp_path), name


@pytest.mark.parametrize("host", ["$(touch HIT)", "a b", "a;b", "a\nb", "ab\n", "-x", "a'b", "`x`"])
def test_a_host_is_a_name_or_refused(host: str) -> None:
    gpu = cluster().gpu
    assert NodeGroup(gpu=gpu, nodes=1, hosts=("node-1.x",)).hosts == ("node-1.x",)

    with pytest.raises(ValidationError, match="String should match pattern"):
        NodeGroup(gpu=gpu, nodes=1, hosts=(host,))
