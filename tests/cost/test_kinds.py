"""Compute by kind: the seconds of the prices, only sorted, and FLOPs as the model counts them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.kinds import block_kinds, stage_kinds
from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.model.flops import attention_flops_per_token, model_flops_per_token, operation_flops
from planner.model.operations import Attention, Elementwise, Gemm, is_attention
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP
from tests.properties.strategies import (
    cluster,
    gpt,
    job,
    layout_with,
    layouts_of,
    prices,
    quick,
    recomputes,
    small,
)

SOFTWARE = {"megatron-2022": MEGATRON_2022, "core": MEGATRON_CORE, "torch": TORCH_FSDP}


@quick
@given(layouts_of("small-moe", "dgx-h100", 4), recomputes, st.booleans())
def test_kinds_add_up_to_the_compute_of_a_layer(
    layout: Layout, recompute: Recompute, moe_layer: bool
) -> None:
    table = prices("small-moe", "dgx-h100", 4)
    cost = table.layer(layout, moe_layer, recompute)

    kinds = block_kinds(table, "moe" if moe_layer else "dense", layout, recompute)

    once = cost.forward.compute + cost.backward.compute - cost.recompute.compute
    assert kinds.compute_s == pytest.approx(once, rel=1e-12)
    assert min(kinds) >= 0


@pytest.mark.parametrize("name", SOFTWARE)
def test_a_stage_is_its_layers_and_ends(name: str) -> None:
    table = Prices(small(), cluster("dgx-h100"), job(software=SOFTWARE[name]))
    layout = layout_with(tp=2, dp=4)
    stage = StageLayers(3, 0, embedding=True, head=True, dense_recomputed=2)

    kinds = stage_kinds(table, layout, stage)

    blocks = [(3, "dense", Recompute.NONE), (2, "dense", Recompute.FULL)]
    blocks += [(1, "embedding", Recompute.NONE), (1, "head", Recompute.NONE)]
    for field in ("products_s", "attention_s", "memory_bound_s", "repeated_flops"):
        expected = sum(
            count * getattr(block_kinds(table, block, layout, recompute), field)
            for count, block, recompute in blocks
        )
        assert getattr(kinds, field) == pytest.approx(expected)


@pytest.mark.parametrize("name", SOFTWARE)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_full_recompute_repeats_a_third_of_the_model_flops(name: str, tp: int) -> None:
    """Of the layers: the output matrix is not recomputed. Vectors are counted by the model only."""
    model = gpt(4, 2048, 16)
    table = Prices(model, cluster("dgx-h100"), job(seq_len=2048, software=SOFTWARE[name]))
    layout = layout_with(tp=tp, micro_batch=2, recompute=Recompute.FULL)

    kinds = block_kinds(table, "dense", layout, Recompute.FULL)

    tokens, vectors = 2 * 2048, 6 * (4 * 13 * 2048 + 2 * 2048)
    layers = model_flops_per_token(model, 2048) - vectors - 6 * 51200 * 2048
    assert 4 * tp * kinds.repeated_flops == pytest.approx(tokens * layers / 3)


def test_selective_recompute_repeats_the_core_of_unfused_attention() -> None:
    model = gpt(4, 2048, 16)
    table = Prices(model, cluster("dgx-h100"), job(seq_len=2048, software=MEGATRON_2022))

    kinds = block_kinds(table, "dense", layout_with(), Recompute.SELECTIVE)

    assert 4 * kinds.repeated_flops == 2048 * attention_flops_per_token(model, 2048)
    fused = Prices(model, cluster("dgx-h100"), job(seq_len=2048, software=MEGATRON_CORE))
    assert block_kinds(fused, "dense", layout_with(), Recompute.SELECTIVE).repeated_flops == 0


OPERATIONS: list[tuple[Any, bool, float]] = [
    (Gemm("qkv", 2, 3, 5), False, 60),
    (Gemm("experts up", 2, 3, 5, 7, grouped=True), False, 420),
    (Gemm("scores", 2, 3, 5, 7, weight=False), True, 210),
    (Gemm("context dgrad", 2, 3, 5, 7, weight=False), True, 210),
    (Attention("attention", 2, 3, 5, 7, 11), True, 2 * 2 * 3 * 5 * 7 * 11),
    (Elementwise("softmax", 100), False, 0),
]


@pytest.mark.parametrize(("operation", "attention", "flops"), OPERATIONS)
def test_flops_of_one_operation(operation: Any, attention: bool, flops: float) -> None:
    assert is_attention(operation) is attention
    assert operation_flops(operation) == flops
