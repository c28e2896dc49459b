"""The exported ``job.sbatch`` under a real Slurm of this machine: it trains, or fails with words.

Skipped where Debian's ``slurm-wlm`` and ``munge`` (or their like) are not installed.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.formats.torch_launcher import write_bundle
from planner.plan import Plan
from tests.formats.plans import build_plan, cluster, llama
from tests.formats.slurm_cluster import Slurm, host, missing, slurm
from tests.launcher.reference import reference_losses

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
TOLERANCE = 5e-6
SGD = ("--backend", "gloo", "--steps", "3", "--optimizer", "sgd", "--lr", "0.5")
SMALL = llama(layers=2)
ONE_NODE = build_plan(SMALL, pp=2, dp=2, zero=1, cluster_spec=cluster(gpus_per_node=4))
PLACED = ONE_NODE.model_copy(update={"hosts": (host(),)})


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def environ(running: Slurm) -> Slurm:
    """Give the job this test's Python, and nothing else of its own."""
    kept = {name: running.environ[name] for name in ("PATH", "SLURM_CONF")}
    return Slurm(running.folder, kept | {"PYTHON": sys.executable, "HOME": os.environ["HOME"]})


def steps(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("plan", [ONE_NODE, PLACED], ids=["any host", "named host"])
def test_exported_job_trains_to_the_end(plan: Plan, one_node: Slurm, tmp_path: Path) -> None:
    bundle, log = tmp_path / "my bundle", tmp_path / "run.jsonl"
    write_bundle(plan, bundle)

    state, code, said = environ(one_node).submit(bundle / "job.sbatch", *SGD, "--log", str(log))

    assert (state, code) == ("COMPLETED", 0), said
    losses = [step["loss"] for step in steps(log)]
    assert losses == pytest.approx(reference_losses(plan), rel=0, abs=TOLERANCE)
    assert "estimated step time" in said


def test_plan_that_cannot_run_fails_the_job(one_node: Slurm, tmp_path: Path) -> None:
    write_bundle(ONE_NODE, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["layout"]["tp"] = 3
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    state, code, said = environ(one_node).submit(tmp_path / "job.sbatch", *SGD)

    assert (state, code) == ("FAILED", 2)
    assert "L11: tp=3 does not divide heads=8; try tp 2 or 4" in said
