"""A simulated rank against the same rank of a real run: four processes, gloo, the same tracker."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.plan import Plan
from planner.spec.job import JobSpec
from tests.formats.plans import build_plan, llama
from tests.oracle.traces import ROOT, trace_all
from tests.oracle.worker import summary

pytestmark = pytest.mark.slow

MODEL = llama(layers=4, hidden=256, heads=8, kv_heads=4, head_dim=32, ffn_hidden=512, vocab=1024)
# A message under way keeps its tensor; a simulated one arrives at once.
UNDER_WAY = 0.02


def plan(global_batch: int, zero: int, **layout: Any) -> Plan:
    job = JobSpec(global_batch=global_batch, seq_len=128)
    return build_plan(MODEL, job_spec=job, zero=zero, **layout)


PLANS = {
    "zero3 recompute": plan(32, 3, dp=4, micro_batch=4, recompute_layers=2),
    "pp2 tp2 sp": plan(16, 0, pp=2, tp=2, micro_batch=4, sequence_parallel=True),
}
RANKS = [("zero3 recompute", 0), ("pp2 tp2 sp", 0), ("pp2 tp2 sp", 3)]
Pair = tuple[dict[str, int], dict[str, int]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Pair]:
    """Return what was simulated and what really ran, for each layout and rank."""
    folder = tmp_path_factory.mktemp("real")
    source = folder / "plans.json"
    source.write_text(json.dumps({n: p.model_dump(mode="json") for n, p in PLANS.items()}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*launch, str(Path(__file__).with_name("worker.py")), str(source), f"{folder}/rank"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    simulated = trace_all([(PLANS[name], rank) for name, rank in RANKS], kernels="cpu")
    found = {}
    for (name, rank), traced in zip(RANKS, simulated, strict=True):
        ran = json.loads(Path(f"{folder}/rank{rank}.json").read_text())
        found[name, rank] = (summary(traced), ran[name])
    return found


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_states_and_flops_are_equal(
    name: str, rank: int, pairs: dict[tuple[str, int], Pair]
) -> None:
    simulated, ran = pairs[name, rank]

    for part in ("parameters", "gradients", "optimizer", "flops", "peak of load"):
        assert simulated[part] == ran[part]


@pytest.mark.parametrize(("name", "rank"), RANKS)
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_phase_is_as_full(
    name: str, rank: int, phase: str, pairs: dict[tuple[str, int], Pair]
) -> None:
    simulated, ran = (side[f"peak of {phase}"] for side in pairs[name, rank])

    assert (1 - UNDER_WAY) * ran <= simulated <= ran


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_the_optimizer_step_allocates_nothing(
    name: str, rank: int, pairs: dict[tuple[str, int], Pair]
) -> None:
    """AdamW is one kernel; a phase in which nothing is allocated has no moment of its own."""
    for side in pairs[name, rank]:
        assert "peak of optimizer" not in side


def test_sharding_alone_is_equal_to_the_byte(pairs: dict[tuple[str, int], Pair]) -> None:
    simulated, ran = pairs["zero3 recompute", 0]

    assert simulated == ran
