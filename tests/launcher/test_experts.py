"""Mixtures of experts: every expert layout trains to the losses of one process (gloo)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from planner.launcher.dispatch import Dispatch, inverse, reorder
from planner.plan import Plan
from tests.formats.plans import build_plan, deepseek, mixtral
from tests.launcher.launch import Case, launch
from tests.launcher.test_equivalence import assert_close

BF16_TOLERANCE = 0.03  # a score that rounds the other way sends its token to another expert

SMALL = mixtral(layers=2)
# five experts a token, one shared with a gate, one dense layer, experts as wide as 2 x 8 columns
SHARED = {"ffn_hidden": 16, "shared_ffn_hidden": 16, "shared_gate": True, "dense_layers": (1,)}
MANY = mixtral(SHARED | {"experts": 12, "top_k": 5, "router_bias": True}, layers=3)
TP2: dict[str, Any] = {"tp": 2, "dp": 2, "micro_batch": 2, "sequence_parallel": True}
TP4: dict[str, Any] = {"tp": 4, "micro_batch": 4, "sequence_parallel": True}
PP2: dict[str, Any] = {"pp": 2, "dp": 2, "zero": 1}
HALF: dict[str, Any] = {"shard_weights": 2, "shard_gradients": 2, "shard_optimizer": 2}

PLANS: dict[str, Plan] = {
    "dp4 zero0": build_plan(SMALL, dp=4),
    "dp4 zero3": build_plan(SMALL, dp=4, zero=3),
    "dp4 ep4 zero3": build_plan(SMALL, dp=4, ep=4, zero=3),
    "dp4 ep4 zero1": build_plan(SMALL, dp=4, ep=4, zero=1),
    "dp4 ep2 zero2": build_plan(SMALL, dp=4, ep=2, zero=2),
    "dp4 ep2 zero3 recompute": build_plan(SMALL, dp=4, ep=2, zero=3, recompute_layers=2),
    "dp4 ep2 hsdp": build_plan(SMALL, dp=4, ep=2, **HALF),
    "dp4 hsdp": build_plan(SMALL, dp=4, **HALF),
    "dp4 ep2 etp2 zero3": build_plan(SMALL, dp=4, ep=2, etp=2, zero=3),
    "dp4 etp4": build_plan(SMALL, dp=4, etp=4),
    "tp4 sp": build_plan(SMALL, **TP4),
    "tp4 sp ep4": build_plan(SMALL, **TP4, ep=4),
    "tp2 dp2 sp ep2 zero3": build_plan(SMALL, **TP2, ep=2, zero=3),
    "tp2 dp2 sp ep4 zero3": build_plan(SMALL, **TP2, ep=4, zero=3),
    "tp2 dp2 sp ep2 etp2 zero1": build_plan(SMALL, **TP2, ep=2, etp=2, zero=1),
    "tp2 dp2 sp etp2 recompute": build_plan(SMALL, **TP2, etp=2, zero=3, recompute_layers=1),
    "pp2 dp2 ep2": build_plan(SMALL, **PP2, ep=2),
    "pp2 dp2": build_plan(SMALL, **PP2),
    "pp2 vpp2 dp2 ep2": build_plan(mixtral(), **PP2, vpp=2, ep=2),
    "pp2 tp2 sp ep2": build_plan(SMALL, pp=2, tp=2, micro_batch=2, sequence_parallel=True, ep=2),
    "shared dp4 ep4 zero3": build_plan(MANY, dp=4, ep=4, zero=3),
    "shared dp4 ep2 zero3": build_plan(MANY, dp=4, ep=2, zero=3),
    "shared tp2 dp2 sp ep2 etp2": build_plan(MANY, **TP2, ep=2, etp=2, zero=3),
    "shared pp2 dp2 ep2": build_plan(MANY, **PP2, ep=2),
}
CLIPPED = ("tp2 dp2 sp ep2 etp2 zero1", "pp2 dp2 ep2", "shared dp4 ep2 zero3")
IN_BF16 = ("dp4 ep2 zero3 recompute", "tp2 dp2 sp ep2 zero3")

CASES = {name: Case(plan) for name, plan in PLANS.items()}
CASES |= {f"{name}, clipped": Case(PLANS[name], clip=0.5) for name in CLIPPED}
NEAR = {f"{name}, bf16": Case(PLANS[name], dtype="bfloat16") for name in IN_BF16}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(CASES | NEAR, 4, tmp_path_factory.mktemp("experts"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_bf16_stays_near_one_process(name: str, results: Results) -> None:
    assert_close(results[name], NEAR[name], BF16_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [("dp4 zero0", 1), ("dp4 ep4 zero1", 4), ("dp4 ep2 hsdp", 4), ("dp4 etp4", 4)],
)
def test_rank_holds_its_part_of_the_experts(name: str, parts: int, results: Results) -> None:
    experts = 2 * 8 * 3 * 32 * 32

    assert results[name]["local_expert_parameters"] * parts == experts


@pytest.mark.slow
def test_rows_go_there_and_back_once_per_pass(results: Results) -> None:
    """Two layers and two micro-batches, forward and backward; the counts go forward only."""
    sent = results["dp4 ep4 zero3"]["collectives"]["alltoall_base"]

    assert sent == 2 * 2 * (2 + 2 + 1)


ORDER = torch.tensor([4, 0, 5, 2, 1, 3])


def test_reordered_rows_get_the_gradients_of_their_copies() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.arange(6.0)[:, None]

    out = reorder(rows, ORDER, copies=2)
    (out * weight).sum().backward()  # type: ignore[no-untyped-call]

    assert torch.equal(out, rows[ORDER // 2])
    sums = torch.zeros(3).index_add_(0, ORDER // 2, weight[:, 0])
    assert rows.grad is not None
    assert torch.equal(rows.grad, sums[:, None].expand(3, 5))


def test_inverse_undoes_an_order() -> None:
    assert torch.equal(ORDER[inverse(ORDER)], torch.arange(6))


@pytest.mark.parametrize("experts", [2, 5, 8])
def test_dispatch_is_the_weighted_sum_of_the_chosen_experts(experts: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    tokens = torch.randn(7, 3, generator=generator)
    share, choice = torch.rand(7, experts, generator=generator).topk(2)
    scale = torch.arange(1.0, experts + 1)

    def run(rows: Tensor, counts: Tensor) -> Tensor:
        return rows * scale.repeat_interleave(counts)[:, None]

    out = Dispatch(experts)(tokens, choice, share, run)

    expected = tokens * (scale[choice] * share).sum(1, keepdim=True)
    torch.testing.assert_close(out, expected)


def test_slots_are_sorted_by_rank_and_by_expert() -> None:
    choice = torch.tensor([[0, 3], [2, 1]])

    slots = Dispatch(experts=4, ep=2, etp=2)._slots(choice)

    # rank = 2 * (expert // 2) + part, then the expert's place on it
    assert slots.view(2, 2, 2).tolist() == [[[0, 2], [5, 7]], [[4, 6], [1, 3]]]


def test_deepseek_has_dense_layers_first() -> None:
    assert [deepseek().is_moe_layer(i) for i in range(4)] == [False, True, True, True]
