"""Every layout trains to the losses of one process: real collectives, gloo, four processes.

Plain SGD with a large step: AdamW divides out a wrong gradient scale, SGD shows it
(``test_sensitivity``).
"""

from pathlib import Path
from typing import Any

import pytest

from planner.plan import Plan
from tests.formats.plans import build_plan, gpt, job, llama, mixtral, neox
from tests.launcher.launch import Case, launch
from tests.launcher.reference import reference_losses

pytestmark = pytest.mark.slow

TOLERANCE = 5e-6
ADAMW_TOLERANCE = 2e-4  # it lifts gradients of 1e-8, rounding noise, to full steps
BF16_TOLERANCE = 0.01  # 8 bits of mantissa, losses near 4
SIXTEEN = job(global_batch=16)  # four micro-batches on each of four data-parallel ranks


def sharded(weights: int, gradients: int, optimizer: int, secondary: int = 0) -> Plan:
    return build_plan(
        dp=4,
        shard_weights=weights,
        shard_gradients=gradients,
        shard_optimizer=optimizer,
        shard_secondary=secondary,
        job_spec=SIXTEEN,
    )


# DTensor dispatch is slow on a CPU: two layers and two micro-batches where tp > 1
SMALL, GPT, NEOX = llama(layers=2), gpt(layers=2), neox(layers=2)
TP4: dict[str, Any] = {"tp": 4, "micro_batch": 4}
TP2: dict[str, Any] = {"tp": 2, "dp": 2, "micro_batch": 2}
PP_TP: dict[str, Any] = {"pp": 2, "tp": 2, "micro_batch": 4}
SP: dict[str, Any] = {"sequence_parallel": True}
HOST: dict[str, Any] = {"offload_optimizer": 1.0}
HALF: dict[str, Any] = {"shard_weights": 2, "shard_gradients": 2, "shard_optimizer": 2}

ZB_V: dict[str, Any] = {"vpp": 2, "schedule": "zb_v"}
PLANS: dict[str, Plan] = {
    "zero0": sharded(1, 1, 1),
    "zero1": sharded(1, 1, 4),
    "zero1 over half": sharded(1, 1, 2),
    "zero2": sharded(1, 4, 4),
    "zero2 over half": sharded(1, 2, 2),
    "zero3": sharded(4, 4, 4),
    "hsdp": sharded(2, 2, 2),
    "zero++ secondary shard": sharded(4, 4, 4, 2),
    "zero3 recompute": build_plan(dp=4, zero=3, recompute_layers=3),
    "tp4": build_plan(SMALL, **TP4),
    "tp4 sp": build_plan(SMALL, **TP4, **SP),
    "tp2 dp2 zero0": build_plan(SMALL, **TP2),
    "tp2 dp2 sp zero1": build_plan(SMALL, **TP2, **SP, zero=1),
    "tp2 dp2 sp zero3": build_plan(SMALL, **TP2, **SP, zero=3),
    "one rank a stage, optimizer on the host": build_plan(pp=4, micro_batch=2, **HOST),
    "zero1, optimizer on the host": build_plan(dp=4, zero=1, job_spec=SIXTEEN, **HOST),
    "zero2, optimizer on the host": build_plan(dp=4, zero=2, job_spec=SIXTEEN, **HOST),
    "zero3, weights on the host": build_plan(
        dp=4, zero=3, job_spec=SIXTEEN, offload_weights=True, **HOST
    ),
    "tp4, optimizer on the host": build_plan(SMALL, **TP4, **HOST),
    "tp4, weights on the host": build_plan(SMALL, **TP4, offload_weights=True, **HOST),
    "experts, optimizer on the host": build_plan(mixtral(layers=2), dp=4, ep=2, zero=1, **HOST),
    "pp4": build_plan(pp=4, micro_batch=2),
    "pp4 uneven": build_plan(pp=4, layers=(0, 2, 2, 0)),
    "pp2 tp2": build_plan(SMALL, **PP_TP),
    "pp2 tp2 sp recompute": build_plan(SMALL, **PP_TP, **SP, recompute_layers=1),
    "pp2 dp2 zero0": build_plan(pp=2, dp=2, layers=(3, 1)),
    "pp2 dp2 zero1": build_plan(pp=2, dp=2, zero=1),
    "pp4 vpp2": build_plan(llama(layers=8), pp=4, vpp=2),
    "pp2 vpp2 dp2": build_plan(pp=2, vpp=2, dp=2, zero=1),
    "pp2 vpp2 tp2 sp": build_plan(**PP_TP, **SP, vpp=2),
    "gpipe pp4": build_plan(pp=4, micro_batch=2, schedule="gpipe"),
    "gpipe pp2 dp2 uneven": build_plan(pp=2, dp=2, layers=(3, 1), zero=1, schedule="gpipe"),
    # two micro-batches on four stages, which 1F1B refuses
    "gpipe pp4, few micro-batches": build_plan(pp=4, micro_batch=4, schedule="gpipe"),
    "zb_v pp4": build_plan(llama(layers=8), pp=4, **ZB_V),
    "zb_v pp2 dp2 recompute": build_plan(pp=2, dp=2, zero=1, recompute_layers=1, **ZB_V),
    "zb_v pp2 tp2 sp": build_plan(**PP_TP, **SP, **ZB_V),
    "zb_v gpt pp2 dp2": build_plan(gpt(), pp=2, dp=2, zero=1, **ZB_V),
    "dualpipe_v pp2 dp2": build_plan(pp=2, vpp=2, dp=2, zero=1, schedule="dualpipe_v"),
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
CLIPPED = (
    "zero2, optimizer on the host",
    "tp2 dp2 zero0",
    "zb_v gpt pp2 dp2",
    "gpt tp2 dp2 sp",
    "gpt pp2 vpp2 dp2",
    "pp2 tp2 sp recompute",
)
WITH_ADAMW = ("zero1, optimizer on the host", "zero1", "tp2 dp2 zero0", "gpt pp2 tp2 sp")
IN_BF16 = ("zero3", "gpt tp2 dp2 sp", "pp2 tp2 sp recompute")

CASES = {name: Case(plan) for name, plan in PLANS.items()}
CASES |= {f"{name}, clipped": Case(PLANS[name], clip=0.5) for name in CLIPPED}
NEAR = {f"{name}, adamw": Case(PLANS[name], "adamw", lr=0.01) for name in WITH_ADAMW}
NEAR |= {f"{name}, bf16": Case(PLANS[name], dtype="bfloat16") for name in IN_BF16}
# three and four kinds of parallelism at once
EIGHT = {
    "hsdp tp2 sp": Case(build_plan(SMALL, tp=2, dp=4, **SP, **HALF)),
    "gpt pp2 dp2 tp2 sp, clipped": Case(build_plan(gpt(), pp=2, **TP2, **SP, zero=1), clip=0.5),
}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(CASES | NEAR, 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def results_of_eight(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(EIGHT, 8, tmp_path_factory.mktemp("eight"))


def assert_close(result: dict[str, Any], case: Case, tolerance: float = TOLERANCE) -> None:
    expected = reference_losses(case.plan, **case.options)

    assert result["losses"] == pytest.approx(expected, rel=0, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])


@pytest.mark.parametrize("name", EIGHT)
def test_combined_layout_trains_like_one_process(name: str, results_of_eight: Results) -> None:
    assert_close(results_of_eight[name], EIGHT[name])


@pytest.mark.parametrize("name", NEAR)
def test_adamw_and_bf16_stay_near_one_process(name: str, results: Results) -> None:
    tolerance = ADAMW_TOLERANCE if NEAR[name].optimizer == "adamw" else BF16_TOLERANCE

    assert_close(results[name], NEAR[name], tolerance)


# Equal losses do not show that anything was sharded; what was sent in one step does. The first
# seven layouts have seven groups of weights (four layers, embedding, head, norm) and four
# micro-batches; ZeRO-3 gathers five of the groups once and, the layers, twice in each.
SENT: dict[str, dict[str, int]] = {
    "zero0": {"allreduce": 7},
    "zero1": {"allgather_base": 7, "reduce_scatter_base": 7},
    "zero1 over half": {"allgather_base": 7, "reduce_scatter_base": 7, "allreduce": 7},
    "zero2": {"allgather_base": 7, "reduce_scatter_base": 28},
    "zero3": {"allgather_base": 44, "reduce_scatter_base": 28},
    "hsdp": {"allgather_base": 44, "reduce_scatter_base": 28, "allreduce": 7},
    "zero++ secondary shard": {"allgather_base": 44, "reduce_scatter_base": 28},
    # two micro-batches: twice a layer and once for table or head, forward and backward alike;
    # two of the loss in place; with SP the five norms' gradients are summed once
    "tp4": {"all_reduce": 20, "allreduce": 4},
    "tp4 sp": {
        "all_gather_into_tensor": 20,
        "reduce_scatter_tensor": 20,
        "all_reduce": 5,
        "allreduce": 4,
    },
    "zero2, optimizer on the host": {"allgather_base": 7, "reduce_scatter_base": 28},
    "zero3, weights on the host": {"allgather_base": 44, "reduce_scatter_base": 28},
    "pp4": {"send": 4, "recv": 4},
    "pp2 dp2 zero1": {"send": 4, "recv": 4, "allgather_base": 3, "reduce_scatter_base": 3},
}


@pytest.mark.parametrize("name", SENT)
def test_layout_sends_what_it_should(name: str, results: Results) -> None:
    seen = dict(results[name]["collectives"])
    seen["allreduce"] -= 2  # the report: slowest time, mean loss
    sent = {kind: count for kind, count in seen.items() if count and "tensor_autograd" not in kind}
    sent.pop("wait_tensor", None)

    assert sent == SENT[name]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("zero0", 1), ("zero1", 4), ("zero1 over half", 2), ("zero3", 4), ("hsdp", 2), ("tp4", 4)],
)
def test_rank_holds_its_part_of_the_parameters(name: str, parts: int, results: Results) -> None:
    part = results[name]["local_parameters"] / results[name]["parameters"]

    # norms stay whole under tensor parallelism, and 61 rows do not divide
    assert part == pytest.approx(1 / parts, rel=0.05)


def test_rank_map_moves_ranks_and_leaves_losses(tmp_path: Path) -> None:
    moved = Case(build_plan(pp=4, rank_map=(3, 1, 0, 2)))

    result = launch({"moved": moved}, 4, tmp_path)["moved"]

    assert result["rank"] == 3
    assert_close(result, moved)
