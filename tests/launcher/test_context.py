"""Context parallelism: sequences cut in zig-zag order train to the losses of one process (gloo)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from planner.launcher.context import Context, attend, lower_right
from planner.launcher.ring import _plain, _plain_gradients, block, block_gradients, merge
from planner.plan import Plan
from planner.spec.software import MEGATRON_CORE
from tests.formats.plans import build_plan as any_plan
from tests.formats.plans import deepseek, gpt, job, llama, mixtral, neox
from tests.launcher.launch import Case, launch
from tests.launcher.test_equivalence import BF16_TOLERANCE, assert_close

SMALL, GPT, NEOX = llama(layers=2), gpt(layers=2), neox(layers=2)
CP4: dict[str, Any] = {"cp": 4, "micro_batch": 4}
CP2: dict[str, Any] = {"cp": 2, "dp": 2, "micro_batch": 2}
TP2: dict[str, Any] = {"cp": 2, "tp": 2, "micro_batch": 4}
SP: dict[str, Any] = {"sequence_parallel": True}
ALL: dict[str, Any] = {"shard_weights": 4, "shard_gradients": 4, "shard_optimizer": 4}
HALF: dict[str, Any] = {"shard_weights": 2, "shard_gradients": 2, "shard_optimizer": 2}
EXPERTS = mixtral(layers=2)
LATENT = deepseek(layers=2)


def build_plan(*model: Any, exchange: str = "all_gather", **layout: Any) -> Plan:
    changed = {"name": exchange, "context_exchange": exchange}
    return any_plan(
        *model, job_spec=job(software=MEGATRON_CORE.model_copy(update=changed)), **layout
    )


RING: dict[str, Any] = {"exchange": "ring"}
ULYSSES: dict[str, Any] = {"exchange": "all_to_all"}
PLANS: dict[str, Plan] = {
    "cp4 zero0": build_plan(SMALL, **CP4),
    "cp4 zero1": build_plan(SMALL, **CP4, shard_optimizer=4),
    "cp4 zero3 recompute": build_plan(SMALL, **CP4, **ALL, recompute_layers=2),
    "cp2 dp2 zero3": build_plan(SMALL, **CP2, **ALL),
    "cp2 dp2 hsdp": build_plan(SMALL, **CP2, **HALF),
    "cp2 tp2": build_plan(SMALL, **TP2),
    "cp2 tp2 sp": build_plan(SMALL, **TP2, **SP),
    "cp2 tp2 sp zero3": build_plan(SMALL, **TP2, **SP, **HALF),
    "pp2 cp2": build_plan(SMALL, pp=2, cp=2, micro_batch=2, shard_optimizer=2),
    "pp2 vpp2 cp2": build_plan(pp=2, vpp=2, cp=2, micro_batch=2),
    "gpt cp4": build_plan(GPT, **CP4),
    "gpt cp2 tp2 sp": build_plan(GPT, **TP2, **SP),
    "gpt pp2 cp2": build_plan(GPT, pp=2, cp=2, micro_batch=2),
    "neox cp2 tp2 sp": build_plan(NEOX, **TP2, **SP),
    "experts cp2 dp2 ep4 zero3": build_plan(EXPERTS, **CP2, ep=4, **ALL),
    "experts cp2 tp2 sp ep2": build_plan(EXPERTS, **TP2, **SP, ep=2),
    "experts cp2 tp2 sp ep2 etp2 zero3": build_plan(EXPERTS, **TP2, **SP, ep=2, etp=2, **HALF),
    "latent cp2 tp2 sp ep4": build_plan(LATENT, **TP2, **SP, ep=4),
    "ring cp4": build_plan(SMALL, **CP4, **RING),
    "ring cp4 zero3 recompute": build_plan(SMALL, **CP4, **ALL, **RING, recompute_layers=2),
    "ring cp2 tp2 sp zero3": build_plan(SMALL, **TP2, **SP, **HALF, **RING),
    "ring pp2 vpp2 cp2": build_plan(pp=2, vpp=2, cp=2, micro_batch=2, **RING),
    "ring gpt cp2 dp2 hsdp": build_plan(GPT, **CP2, **HALF, **RING),
    "ring latent cp2 tp2 sp ep4": build_plan(LATENT, **TP2, **SP, ep=4, **RING),
    "ulysses cp4": build_plan(SMALL, **CP4, **ULYSSES),
    "ulysses cp4 zero3 recompute": build_plan(SMALL, **CP4, **ALL, **ULYSSES, recompute_layers=2),
    "ulysses cp2 tp2 sp zero3": build_plan(SMALL, **TP2, **SP, **HALF, **ULYSSES),
    "ulysses pp2 cp2": build_plan(SMALL, pp=2, cp=2, micro_batch=2, **ULYSSES),
    "ulysses gpt cp2 dp2 zero3": build_plan(GPT, **CP2, **ALL, **ULYSSES),
    "ulysses experts cp2 dp2 ep4": build_plan(EXPERTS, **CP2, ep=4, **ALL, **ULYSSES),
    "ulysses latent cp2 tp2 sp ep4": build_plan(LATENT, **TP2, **SP, ep=4, **ULYSSES),
}
CLIPPED = ("cp2 tp2 sp zero3", "experts cp2 dp2 ep4 zero3")
CASES = {name: Case(plan) for name, plan in PLANS.items()}
CASES |= {f"{name}, clipped": Case(PLANS[name], clip=0.5) for name in CLIPPED}
IN_BF16 = ("cp2 tp2 sp zero3", "ring cp2 tp2 sp zero3", "ulysses cp2 tp2 sp zero3")
NEAR = {f"{name}, bf16": Case(PLANS[name], dtype="bfloat16") for name in IN_BF16}
# every kind of parallelism at once
EIGHT = {
    "pp2 cp2 tp2 sp ep4": Case(build_plan(EXPERTS, pp=2, **TP2, **SP, ep=4)),
    "pp2 cp2 tp2 sp ep2 zero1": Case(
        build_plan(LATENT, pp=2, **TP2, **SP, ep=2, shard_optimizer=2)
    ),
    "cp2 dp2 tp2 sp ep2 etp2 zero3, clipped": Case(
        build_plan(EXPERTS, **CP2, tp=2, **SP, ep=2, etp=2, **HALF), clip=0.5
    ),
}
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(CASES | NEAR, 4, tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def results_of_eight(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(EIGHT, 8, tmp_path_factory.mktemp("eight"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_layout_trains_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR)
def test_bf16_stays_near_one_process(name: str, results: Results) -> None:
    assert_close(results[name], NEAR[name], BF16_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
def test_all_kinds_at_once_train_like_one_process(name: str, results_of_eight: Results) -> None:
    assert_close(results_of_eight[name], EIGHT[name])


@pytest.mark.slow
def test_keys_and_values_are_gathered_in_both_passes(results: Results) -> None:
    """Two layers and two micro-batches: keys and values twice, their gradients once."""
    seen = results["cp4 zero0"]["collectives"]

    assert (seen["allgather_base"], seen["reduce_scatter_base"]) == (2 * 2 * 4, 2 * 2 * 2)


@pytest.mark.slow
def test_each_exchange_sends_what_it_should(results: Results) -> None:
    """Two layers and two micro-batches of four ranks, forward and backward."""
    ring, ulysses = (results[f"{name} cp4"]["collectives"] for name in ("ring", "ulysses"))

    # keys and values three hops on in both passes, their gradients four hops home
    assert (ring["send"], ring["recv"]) == (2 * 2 * 2 * (3 + 3 + 4),) * 2
    assert ulysses["alltoall_base"] == 2 * 2 * 2 * 4  # query, key, value and output
    for seen in (ring, ulysses):
        assert seen.get("reduce_scatter_base", 0) == 0


def blocks(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, 4, 32, 16)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(4)]


def test_blocks_merge_to_the_whole() -> None:
    query, key, value, _ = blocks()
    halves = [(key[:, :, part], value[:, :, part]) for part in (slice(12), slice(12, 32))]

    out, sums = merge(*(block(query, k, v, False) for k, v in halves))

    whole, whole_sums = block(query, key, value, False)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(sums, whole_sums)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param(
            "cuda",
            torch.bfloat16,
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_kernels_and_formulas_of_a_block_agree(
    causal: bool, device: str, dtype: torch.dtype
) -> None:
    *inputs, gradient = blocks(device, dtype)
    own = [tensor.float().requires_grad_() for tensor in inputs]
    expected = F.scaled_dot_product_attention(*own, is_causal=causal)
    expected.backward(gradient.float())  # type: ignore[no-untyped-call]
    near = {"rtol": 0.05, "atol": 0.05} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}

    for forward, backward in ((block, block_gradients), (_plain, _plain_gradients)):
        whole = forward(*inputs, causal)
        found = backward(gradient, (inputs[0], inputs[1], inputs[2]), whole, causal)
        torch.testing.assert_close(whole[0].float(), expected, **near)
        for one, tensor in zip(found, own, strict=True):
            torch.testing.assert_close(one.float(), tensor.grad, **near)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_sequence_and_the_work(ranks: int) -> None:
    count = 24 // ranks
    held = [Context(ranks, rank).positions(count) for rank in range(ranks)]

    assert sorted(torch.cat(held).tolist()) == list(range(24))
    # a query at position p reads p + 1 keys
    assert len({int((positions + 1).sum()) for positions in held}) == 1


def test_local_attention_is_that_of_the_whole_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a group: the whole keys are given, each rank's queries are its own."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 16, h, 4, generator=generator) for h in (4, 2, 2))
    monkeypatch.setattr(Context, "whole", lambda self, part: part)
    expected = F.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (query, key, value)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)

    for rank in range(4):
        context = Context(4, rank)
        positions = context.positions(4)
        out = attend(query[:, positions], key, value, context)
        torch.testing.assert_close(out, expected[:, positions])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sizes", [(8, 2, 64, 64), (8, 8, 96, 64), (4, 4, 192, 128)])
def test_flash_attention_is_that_of_the_mask(sizes: tuple[int, int, int, int]) -> None:
    """Grouped heads, and the wider keys of latent attention; forward and backward."""
    heads, kv_heads, key_dim, value_dim = sizes
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, heads, 128, key_dim), (2, kv_heads, 384, key_dim), (2, kv_heads, 384, value_dim)]
    tensors = [torch.randn(s, generator=generator, device="cuda") for s in shapes]
    results = []
    for dtype in (torch.bfloat16, torch.float32):  # flash attention, then the mask
        own = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        out = lower_right(*own)
        out.float().square().sum().backward()
        results.append([out, *(tensor.grad for tensor in own)])

    for flash, masked in zip(*results, strict=True):
        torch.testing.assert_close(flash.float(), masked, rtol=0.05, atol=0.05)
