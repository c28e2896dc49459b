"""Offload in every kind of layout: gloo, four processes, the losses of one process."""

from typing import Any

import pytest

from planner.plan import Plan
from tests.formats.plans import build_plan, job, llama, mixtral
from tests.launcher.launch import Case, launch
from tests.launcher.reference import reference_losses

pytestmark = pytest.mark.slow
TOLERANCE = 5e-6
AWAY: dict[str, Any] = {"offload_fraction": 1.0, "offload_target": "host"}
HALF: dict[str, Any] = {"offload_fraction": 0.5, "offload_target": "ssd"}
SMALL = llama(layers=2)
SIXTEEN = job(global_batch=16)

PLANS: dict[str, Plan] = {
    "zero1": build_plan(dp=4, zero=1, job_spec=SIXTEEN, **AWAY),
    "zero3 ssd": build_plan(dp=4, zero=3, job_spec=SIXTEEN, **HALF),
    "zero3 recompute": build_plan(dp=4, zero=3, recompute_layers=2, **AWAY),
    "tp2 dp2 sp": build_plan(SMALL, tp=2, dp=2, micro_batch=2, sequence_parallel=True, **AWAY),
    "cp2 dp2 ssd": build_plan(cp=2, dp=2, micro_batch=2, **HALF),
    "pp4": build_plan(pp=4, micro_batch=2, **AWAY),
    "pp2 vpp2 dp2 ssd": build_plan(pp=2, vpp=2, dp=2, micro_batch=1, **HALF),
    "moe ep4": build_plan(mixtral(), dp=4, ep=4, zero=3, **AWAY),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("offload")
    cases = {name: Case(plan, offload=directory / "drive") for name, plan in PLANS.items()}
    return launch(cases, 4, directory)


@pytest.mark.parametrize("name", PLANS)
def test_losses_are_those_of_one_process(name: str, results: dict[str, dict[str, Any]]) -> None:
    expected = reference_losses(PLANS[name], **Case(PLANS[name]).options)

    assert results[name]["losses"] == pytest.approx(expected, rel=TOLERANCE)
    assert results[name]["offloaded"] > 0


def test_drives_hold_nothing_afterwards(
    results: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    drive = next(tmp_path_factory.getbasetemp().glob("offload*")) / "drive"

    assert sorted(path.name for path in drive.iterdir()) == [f"activations-{r}" for r in range(4)]
    assert [file for folder in drive.iterdir() for file in folder.iterdir()] == []
