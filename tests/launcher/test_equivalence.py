"""Every layout trains to the losses of one process: real collectives, gloo, four processes.

Plain SGD with a large step: AdamW divides out a wrong gradient scale, SGD shows it
(``test_sensitivity``).
"""

from pathlib import Path
from typing import Any

import pytest

from planner.plan import Plan
from tests.formats.plans import build_plan, gpt, job, llama, neox
from tests.launcher.launch import Case, launch
from tests.launcher.reference import reference_losses

pytestmark = pytest.mark.slow

TOLERANCE = 5e-6
ADAMW_TOLERANCE = 2e-4  # it lifts gradients of 1e-8, rounding noise, to full steps
BF16_TOLERANCE = 0.03  # 8 bits of mantissa, logits near 1
SGD: dict[str, Any] = {"steps": 3, "lr": 0.5, "optimizer": "sgd"}
ADAMW: dict[str, Any] = {"steps": 3, "lr": 0.01, "optimizer": "adamw"}
SIXTEEN = job(global_batch=16)  # four micro-batches on each of four data-parallel ranks


def sharded(weights: int, gradients: int, optimizer: int) -> Plan:
    return build_plan(
        dp=4,
        shard_weights=weights,
        shard_gradients=gradients,
        shard_optimizer=optimizer,
        job_spec=SIXTEEN,
    )


# DTensor dispatch is slow on a CPU: two layers and two micro-batches where tp > 1
SMALL, GPT, NEOX = llama(layers=2), gpt(layers=2), neox(layers=2)
TP4: dict[str, Any] = {"tp": 4, "micro_batch": 4}
TP2: dict[str, Any] = {"tp": 2, "dp": 2, "micro_batch": 2}
PP_TP: dict[str, Any] = {"pp": 2, "tp": 2, "micro_batch": 4}
SP: dict[str, Any] = {"sequence_parallel": True}

PLANS: dict[str, Plan] = {
    "zero0": sharded(1, 1, 1),
    "zero1": sharded(1, 1, 4),
    "zero1 over half": sharded(1, 1, 2),
    "zero2": sharded(1, 4, 4),
    "zero2 over half": sharded(1, 2, 2),
    "zero3": sharded(4, 4, 4),
    "hsdp": sharded(2, 2, 2),
    "zero++ secondary shard": sharded(2, 4, 4),
    "zero3 recompute": build_plan(dp=4, zero=3, recompute_layers=3),
    "tp4": build_plan(SMALL, **TP4),
    "tp4 sp": build_plan(SMALL, **TP4, **SP),
    "tp2 dp2 zero0": build_plan(SMALL, **TP2),
    "tp2 dp2 sp zero1": build_plan(SMALL, **TP2, **SP, zero=1),
    "tp2 dp2 sp zero3": build_plan(SMALL, **TP2, **SP, zero=3),
    "pp4": build_plan(pp=4, micro_batch=2),
    "pp4 uneven": build_plan(pp=4, layers=(0, 2, 2, 0)),
    "pp2 tp2": build_plan(SMALL, **PP_TP),
    "pp2 tp2 sp recompute": build_plan(SMALL, **PP_TP, **SP, recompute_layers=1),
    "pp2 dp2 zero0": build_plan(pp=2, dp=2, layers=(3, 1)),
    "pp2 dp2 zero1": build_plan(pp=2, dp=2, zero=1),
    "pp4 vpp2": build_plan(llama(layers=8), pp=4, vpp=2),
    "pp2 vpp2 dp2": build_plan(pp=2, vpp=2, dp=2, zero=1),
    "pp2 vpp2 tp2 sp": build_plan(**PP_TP, **SP, vpp=2),
    "gpt zero3": build_plan(gpt(), dp=4, zero=3),
    "gpt tp4": build_plan(GPT, **TP4),
    "gpt tp2 dp2 sp": build_plan(GPT, **TP2, **SP, zero=3),
    "gpt pp2 tp2 sp": build_plan(GPT, **PP_TP, **SP),
    "gpt pp2 vpp2 dp2": build_plan(gpt(), pp=2, vpp=2, dp=2, zero=1),
    "neox tp4": build_plan(NEOX, **TP4),
    "neox tp2 dp2 sp": build_plan(NEOX, **TP2, **SP, zero=2),
    "neox pp2 tp2 sp": build_plan(NEOX, **PP_TP, **SP),
}
# clipping needs the norm over all meshes and stages, each weight counted once
CLIPPED = ("tp2 dp2 zero0", "gpt tp2 dp2 sp", "gpt pp2 vpp2 dp2", "pp2 tp2 sp recompute")
WITH_ADAMW = ("zero1", "tp2 dp2 zero0", "gpt pp2 tp2 sp")
IN_BF16 = ("zero3", "gpt tp2 dp2 sp", "pp2 tp2 sp recompute")

CASES: dict[str, Case] = {name: (plan, SGD) for name, plan in PLANS.items()}
CASES |= {f"{name}, clipped": (PLANS[name], SGD | {"clip": 0.5}) for name in CLIPPED}
OTHER: dict[str, tuple[Case, float]] = {
    f"{name}, adamw": ((PLANS[name], ADAMW), ADAMW_TOLERANCE) for name in WITH_ADAMW
} | {
    f"{name}, bf16": ((PLANS[name], SGD | {"dtype": "bfloat16"}), BF16_TOLERANCE)
    for name in IN_BF16
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    cases = CASES | {name: case for name, (case, _) in OTHER.items()}
    return launch(cases, 4, tmp_path_factory.mktemp("equivalence"))["losses"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, losses: dict[str, list[float]]) -> None:
    plan, options = CASES[name]

    assert losses[name] == pytest.approx(reference_losses(plan, **options), rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("name", OTHER)
def test_adamw_and_bf16_stay_near_one_process(name: str, losses: dict[str, list[float]]) -> None:
    (plan, options), tolerance = OTHER[name]
    expected = reference_losses(plan, **{k: v for k, v in options.items() if k != "dtype"})

    assert losses[name] == pytest.approx(expected, rel=0, abs=tolerance)


def test_rank_map_moves_ranks_and_leaves_losses(tmp_path: Path) -> None:
    moved = build_plan(SMALL, **PP_TP, **SP, rank_map=(3, 1, 0, 2))

    results = launch({"moved": (moved, SGD)}, 4, tmp_path)

    assert results["rank_of_slot_0"] == 3
    expected = reference_losses(moved, **SGD)
    assert results["losses"]["moved"] == pytest.approx(expected, rel=0, abs=TOLERANCE)
