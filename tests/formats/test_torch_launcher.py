"""The written bundle: complete, refuses what cannot run, overwrites nothing, and really trains."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.errors import LayoutError, SpecError
from planner.formats.grid import node_grid
from planner.formats.torch_launcher import write_bundle
from planner.layout.layout import Layout, Shard
from planner.layout.rules_torch import torch_target_problems
from planner.plan import Plan
from planner.spec.model import MoESpec
from tests.formats.plans import build_plan, cluster, deepseek, job, llama
from tests.launcher.reference import reference_losses

SOURCE = Path(__file__).parents[2] / "planner" / "launcher"


def two_nodes() -> Plan:
    return build_plan(dp=16, zero=3, job_spec=job(global_batch=16), cluster_spec=cluster(nodes=2))


def script(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def start(bundle: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run launch.sh from elsewhere, with nothing of this process's Python settings."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", str(bundle / "launch.sh"), *arguments],
        cwd="/",
        env=clean | {"PYTHON": sys.executable} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def dry_run(bundle: Path, tools: Path, *arguments: str, **environ: str) -> str:
    """Run launch.sh with a python that only prints its arguments."""
    script(tools, "python", 'printf "<%s>" "$@"; echo " node $NODE_RANK"')
    done = start(
        bundle, *arguments, **({"PYTHON": str(tools / "python"), "NODE_RANK": ""} | environ)
    )
    return done.stdout + done.stderr


def test_bundle_is_complete_and_the_launcher_is_copied_whole(tmp_path: Path) -> None:
    files = write_bundle(build_plan(dp=4), tmp_path / "bundle")

    names = {str(path.relative_to(tmp_path / "bundle")) for path in files}
    launcher = {f"launcher/{path.name}" for path in SOURCE.glob("*.py")}
    assert names == launcher | {
        "plan.json", "train.py", "launch.sh", "job.sbatch", "README.txt", "pytorchjob.yaml",
        "trainjob.yaml", "skypilot.yaml",
    }  # fmt: skip
    assert all(path.is_file() for path in files)
    assert {path.name for path in files if os.access(path, os.X_OK)} == {"launch.sh", "job.sbatch"}


def test_plan_in_the_bundle_is_the_plan(tmp_path: Path) -> None:
    plan = build_plan(pp=2, dp=2, zero=1, rank_map=(3, 1, 2, 0))

    write_bundle(plan, tmp_path)

    assert Plan.model_validate_json((tmp_path / "plan.json").read_text()) == plan


def test_launcher_imports_only_itself_torch_and_the_standard_library() -> None:
    found = set()
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).split(".")[0])

    assert found - set(sys.stdlib_module_names) == {"torch"}


def test_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(SpecError, match="is not empty; name a new directory"):
        write_bundle(build_plan(), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwriting_must_be_allowed_and_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "plan.json").write_text("old")

    write_bundle(build_plan(), tmp_path, overwrite=True)

    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("")

    with pytest.raises(SpecError, match="is a file; name a directory"):
        write_bundle(build_plan(), tmp_path / "bundle")


def test_plan_that_cannot_run_is_refused_with_every_reason(tmp_path: Path) -> None:
    moe = MoESpec(experts=8, top_k=2, ffn_hidden=64)
    plan = build_plan(llama(moe=moe), tp=3, cp=3, job_spec=job(precision="fp8"))

    with pytest.raises(LayoutError) as caught:
        write_bundle(plan, tmp_path / "bundle")

    assert [text.split(":")[0] for text in caught.value.problems] == [
        "L1",
        "L5",
        "L7",
        "L11",
        "L12",
    ]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("layout", "first"),
    [
        (Layout(dp=4, shard=Shard.zero(3, 4)), None),
        (Layout(pp=2, dp=2, shard=Shard.zero(1, 2)), None),
        (Layout(pp=2, dp=2, shard=Shard.zero(3, 2)), "L24"),
        (Layout(tp=3), "L11"),
        (Layout(dp=3), "L16"),
        (Layout(dp=4, shard=Shard(1, 2, 4)), None),
        (Layout(dp=8, shard=Shard(1, 2, 4)), "L22"),
    ],
)
def test_search_asks_the_same_rules(layout: Layout, first: str | None) -> None:
    problems = torch_target_problems(llama(), job(), layout)

    assert [problem.split(":")[0] for problem in problems][:1] == ([first] if first else [])


@pytest.mark.parametrize(
    ("ranks", "per_node", "expected"), [(4, 8, (1, 4)), (8, 8, (1, 8)), (16, 8, (2, 8))]
)
def test_nodes_are_filled(ranks: int, per_node: int, expected: tuple[int, int]) -> None:
    plan = build_plan(dp=ranks, cluster_spec=cluster(nodes=2, gpus_per_node=per_node))

    assert node_grid(plan) == expected


def test_part_empty_last_node_is_refused() -> None:
    with pytest.raises(LayoutError, match="12 ranks leave the last node of 8 GPUs part empty"):
        node_grid(build_plan(dp=12, cluster_spec=cluster(nodes=2)))


@pytest.mark.parametrize("name", ["launch.sh", "job.sbatch"])
def test_scripts_are_valid_shell(name: str, tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path)

    done = subprocess.run(["bash", "-n", str(tmp_path / name)], check=False)

    assert done.returncode == 0


def test_gloo_puts_all_ranks_on_this_machine(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path / "bundle")

    text = dry_run(tmp_path / "bundle", tmp_path, "--backend", "gloo", "--log", "a b.jsonl")

    assert "<--nnodes><1><--nproc-per-node><16><--standalone><-->" in text
    assert "<--backend><gloo><--log><a b.jsonl>" in text


def test_environment_overrides_the_plans_machines(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path / "bundle")
    where = {"NNODES": "4", "NPROC_PER_NODE": "4", "NODE_RANK": "3", "MASTER_ADDR": "first"}

    text = dry_run(tmp_path / "bundle", tmp_path, "--backend=gloo", **where)

    assert "<--nnodes><4><--nproc-per-node><4><--node-rank><3><--master-addr><first>" in text


def test_one_node_with_a_port_needs_no_address(tmp_path: Path) -> None:
    write_bundle(build_plan(dp=4), tmp_path / "bundle")

    text = dry_run(tmp_path / "bundle", tmp_path, MASTER_PORT="1234")

    assert "<--node-rank><0><--master-addr><127.0.0.1><--master-port><1234>" in text


@pytest.mark.parametrize("name", ["it's", "a b", "$HOME", "-x"])
def test_scripts_survive_the_name_of_their_directory(name: str, tmp_path: Path) -> None:
    write_bundle(build_plan(dp=4), tmp_path / name)

    text = dry_run(tmp_path / name, tmp_path, "--steps", "1")

    assert f"<{tmp_path / name}/train.py><{tmp_path / name}/plan.json><--steps><1>" in text


def test_model_name_cannot_break_the_job_file(tmp_path: Path) -> None:
    write_bundle(build_plan(llama(name="org/my model; rm -rf *")), tmp_path)

    assert "#SBATCH --job-name=org-my-model-rm--rf-\n" in (tmp_path / "job.sbatch").read_text()


def test_readme_says_how_to_start_and_what_it_is(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path)

    text = (tmp_path / "README.txt").read_text()
    assert text.startswith("tiny-llama on 16 x TestGPU: dp=16 shard_weights=16")
    assert "train on 2 node(s) of 8 GPU(s)" in text
    assert "bash launch.sh --backend gloo" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bundle_trains_on_a_gpu_and_reports_memory(tmp_path: Path) -> None:
    write_bundle(build_plan(), tmp_path / "bundle")

    done = start(tmp_path / "bundle", "--log", str(tmp_path / "run.jsonl"))

    end = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert end["measured_peak_memory_bytes"][0] > 0
    assert "peak memory of rank 0: measured" in done.stdout


def test_several_nodes_need_their_addresses(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path / "bundle")

    text = dry_run(tmp_path / "bundle", tmp_path)

    assert "error: 2 nodes: set NODE_RANK (0 to 1) and MASTER_ADDR" in text


def test_several_nodes_meet_at_the_given_address(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path / "bundle")
    where = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}

    text = dry_run(tmp_path / "bundle", tmp_path, **where)

    assert "<--nnodes><2><--nproc-per-node><8><--node-rank><1><--master-addr><first>" in text
    assert "<--master-port><1234>" in text


def test_wrong_number_of_processes_is_refused(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path)

    done = start(tmp_path, NNODES="3")

    assert done.returncode == 2
    assert "NNODES=3 times NPROC_PER_NODE=8 is not the plan's 16 ranks" in done.stderr


def test_check_answers_without_starting_anything(tmp_path: Path) -> None:
    write_bundle(two_nodes(), tmp_path)

    done = start(tmp_path, "--check")

    assert (done.returncode, done.stderr) == (0, "")
    assert "can be executed on 16 ranks" in done.stdout


def test_damaged_plan_ends_with_2_before_torchrun(tmp_path: Path) -> None:
    write_bundle(build_plan(dp=4), tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text())
    document["layout"]["tp"] = 3
    (tmp_path / "plan.json").write_text(json.dumps(document))

    done = start(tmp_path, "--backend", "gloo")

    assert done.returncode == 2
    assert "error: L11: tp=3 does not divide heads=8; try tp 2 or 4" in done.stderr


def test_sbatch_starts_the_hosts_of_the_plan_in_its_order(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(two_nodes().model_copy(update={"hosts": ("node9", "node7")}), bundle)
    skip = "while [[ $1 == -* ]]; do shift; done; "
    each = 'for name in node7 node9 node8; do SLURMD_NODENAME=$name "$@" || echo "rc=$?"; done'
    script(tmp_path, "srun", skip + each)
    script(tmp_path, "python", 'printf "<%s>" "$@"; echo')
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}

    done = subprocess.run(
        ["bash", str(bundle / "job.sbatch"), "--steps", "5"],
        env=environ | {"SLURM_SUBMIT_DIR": str(bundle)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "#SBATCH --nodelist=node9,node7\n" in (bundle / "job.sbatch").read_text()
    ranks = re.findall(r"<--node-rank><(\d)><--master-addr><(\w+)>", done.stdout)
    assert ranks == [("1", "node9"), ("0", "node9")]
    assert "error: node8 is not a host of the plan: node9 node7" in done.stderr
    assert "rc=2" in done.stdout
    assert "NODE_RANK=1  node7" in (bundle / "README.txt").read_text()


def test_sbatch_asks_for_the_nodes_and_starts_one_launcher_on_each(tmp_path: Path) -> None:
    bundle = tmp_path / "my bundle"
    write_bundle(two_nodes(), bundle)
    script(tmp_path, "scontrol", "printf 'node7\\nnode9\\n'")
    skip = "while [[ $1 == -* ]]; do shift; done; "
    script(tmp_path, "srun", skip + 'for id in 0 1; do SLURM_NODEID=$id "$@"; done')
    script(tmp_path, "python", 'printf "<%s>" "$@"; echo')
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    environ |= {"SLURM_SUBMIT_DIR": str(bundle), "SLURM_JOB_NODELIST": "node[7,9]"}

    text = (bundle / "job.sbatch").read_text()
    done = subprocess.run(
        ["bash", str(bundle / "job.sbatch"), "--steps", "5"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=8" in text
    for node in (0, 1):
        assert f"<--node-rank><{node}><--master-addr><node7><--master-port><29500>" in done.stdout
    assert "my bundle/plan.json><--steps><5>" in done.stdout


TRAINED = {
    "dense": build_plan(llama(layers=2), pp=2, dp=2, zero=1, rank_map=(2, 3, 1, 0)),
    "latent attention and experts": build_plan(deepseek(layers=2), cp=2, dp=2, ep=4, micro_batch=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_bundle_trains_without_planner_installed(name: str, tmp_path: Path) -> None:
    plan = TRAINED[name]
    bundle, log = tmp_path / "my bundle", tmp_path / "run.jsonl"
    write_bundle(plan, bundle)
    trap = tmp_path / "trap" / "planner"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise ImportError('the bundle imports planner')")
    sgd = ["--steps", "3", "--optimizer", "sgd", "--lr", "0.5", "--log", str(log)]

    done = start(bundle, "--backend", "gloo", *sgd, PYTHONPATH=str(trap.parent))

    assert done.returncode == 0, done.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "step", "step", "end"]
    losses = [line["loss"] for line in lines[1:4]]
    assert losses == pytest.approx(reference_losses(plan), rel=0, abs=5e-6)
    assert all(line["step_time_s"] > 0 and line["tokens_per_s"] > 0 for line in lines[1:4])
    assert (lines[4]["estimate_step_time_s"], lines[4]["estimate_gpu"]) == (0.02, "TestGPU")
    assert "estimated step time 0.02 s (0.01 to 0.03) on the plan's GPUs, TestGPU" in done.stdout
