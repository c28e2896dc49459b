"""Latent attention under every kind of parallelism: the losses of one process (gloo)."""

from typing import Any

import pytest

from planner.plan import Plan
from tests.formats.plans import build_plan, deepseek
from tests.launcher.launch import Case, launch
from tests.launcher.test_equivalence import assert_close

pytestmark = pytest.mark.slow

DENSE = deepseek(layers=2, moe=None)
DIRECT = deepseek({"q_lora_rank": 0}, layers=2, moe=None)
BIASED = deepseek(layers=2, moe=None, qkv_bias=True, attention_out_bias=True)
WHOLE = deepseek(layers=2)  # with experts in the second layer
SP: dict[str, Any] = {"sequence_parallel": True}
TP4: dict[str, Any] = {"tp": 4, "micro_batch": 4}
TP2: dict[str, Any] = {"tp": 2, "dp": 2, "micro_batch": 2}

PLANS: dict[str, Plan] = {
    "dp4 zero3 recompute": build_plan(DENSE, dp=4, zero=3, recompute_layers=2),
    "tp4": build_plan(DENSE, **TP4),
    "tp4 sp": build_plan(DENSE, **TP4, **SP),
    "tp2 dp2 zero1": build_plan(DENSE, **TP2, zero=1),
    "tp2 dp2 sp zero3": build_plan(DENSE, **TP2, **SP, zero=3),
    "tp2 dp2 sp zero3 recompute": build_plan(DENSE, **TP2, **SP, zero=3, recompute_layers=1),
    "pp2 tp2 sp": build_plan(DENSE, pp=2, tp=2, micro_batch=4, **SP),
    "direct queries tp4": build_plan(DIRECT, **TP4),
    "direct queries tp2 dp2 sp": build_plan(DIRECT, **TP2, **SP),
    "biases tp4": build_plan(BIASED, **TP4),
    "biases tp2 dp2 sp zero3": build_plan(BIASED, **TP2, **SP, zero=3),
    "experts tp2 dp2 sp ep4 zero3": build_plan(WHOLE, **TP2, **SP, ep=4, zero=3),
    "experts pp2 dp2 ep2 zero1": build_plan(WHOLE, pp=2, dp=2, ep=2, zero=1),
}
CASES = {name: Case(plan) for name, plan in PLANS.items()}
CASES["tp2 dp2 sp zero3, clipped"] = Case(PLANS["tp2 dp2 sp zero3"], clip=0.5)
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(CASES, 4, tmp_path_factory.mktemp("latent"))


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])
