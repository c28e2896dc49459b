"""Seconds of a layer: every part where it belongs, recompute, hiding, host time."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from planner.cost.layer import Prices, Seconds, kernels_of
from planner.cost.overlap import lost_beside_products
from planner.layout.layout import Layout, Recompute
from planner.model.operations import Gemm, Shape, mlp_operations
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP
from tests.properties.strategies import (
    cluster,
    degrees,
    gpt,
    job,
    layouts_of,
    model,
    prices,
    quick,
    small,
    small_moe,
    software,
)


def priced(
    spec: ModelSpec | None = None, stack: SoftwareSpec = MEGATRON_CORE, **changes: Any
) -> Prices:
    return Prices(spec or small(), cluster("dgx-h100", 4), job(software=stack, **changes))


def test_seconds_add_up() -> None:
    one, other = Seconds(1, 2, 3, 4, 5, 6), Seconds(compute=10, dp=1)

    assert one.total == 21
    assert one.plus(other, 2) == Seconds(21, 2, 3, 4, 5, 8)


@pytest.mark.parametrize(
    ("layout", "busy"),
    [
        (Layout(), set()),
        (Layout(tp=4, sequence_parallel=True), {"tp"}),
        (Layout(cp=2), {"cp"}),
        (Layout(tp=2, dp=4, ep=8, sequence_parallel=True), {"tp", "ep"}),
        (Layout(tp=2, etp=2, sequence_parallel=True), {"tp", "ep"}),
    ],
    ids=lambda it: it.label() if isinstance(it, Layout) else "",
)
def test_communication_is_charged_to_its_axis(layout: Layout, busy: set[str]) -> None:
    cost = priced(small_moe()).layer(layout, True)
    spent = cost.forward._asdict()

    assert {axis for axis in ("tp", "cp", "ep", "dp") if spent[axis] > 0} == busy


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_nothing_takes_negative_time(layout: Layout) -> None:
    table = prices("small-moe", "dgx-h100", 4)
    costs = [table.layer(layout, moe) for moe in (False, True)]
    costs += [table.embedding(layout), table.head(layout)]

    for cost in costs:
        assert min(*cost.forward, *cost.backward, cost.recompute.total) >= 0
        assert cost.forward.total > 0


@quick
@given(layouts_of("small", "dgx-h100", 4))
def test_backward_takes_longer_than_forward(layout: Layout) -> None:
    cost = prices("small", "dgx-h100", 4).layer(layout, False)

    assert 1.5 < cost.backward.compute / cost.forward.compute < 3.5


@quick
@given(layouts_of("small", "dgx-h100", 4))
def test_full_recompute_repeats_the_forward_pass(layout: Layout) -> None:
    table = prices("small", "dgx-h100", 4)
    none, full = (table.layer(layout, False, kind) for kind in (Recompute.NONE, Recompute.FULL))

    assert full.forward == none.forward
    assert full.recompute.total == pytest.approx(none.forward.total)
    assert full.backward.total == pytest.approx(none.backward.total + none.forward.total)


STACKS = [MEGATRON_CORE, MEGATRON_2022, TORCH_FSDP]


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
def test_more_recompute_never_takes_less_time(stack: SoftwareSpec) -> None:
    table = priced(gpt(24, 2048, 16), stack)
    costs = [table.layer(Layout(), False, kind) for kind in Recompute]
    times = [cost.backward.total for cost in costs]

    assert times == sorted(times)
    assert [cost.recompute.total for cost in costs] == sorted(
        cost.recompute.total for cost in costs
    )


def test_selective_recompute_of_a_fused_attention_repeats_nothing() -> None:
    fused, plain = priced(), priced(stack=MEGATRON_2022)

    assert fused.layer(Layout(), False, Recompute.SELECTIVE).recompute.total == 0
    assert plain.layer(Layout(), False, Recompute.SELECTIVE).recompute.total > 0


@quick
@given(degrees)
def test_tensor_parallelism_divides_the_compute(tp: int) -> None:
    table = priced()
    one = table.layer(Layout(), False).forward.compute
    part = table.layer(Layout(tp=tp, sequence_parallel=tp > 1), False).forward.compute

    assert one / tp <= part < 3 * one / tp


def test_sequence_parallelism_saves_what_was_repeated() -> None:
    """Korthikanti section 4.2.2: norms and dropout are no longer done by every rank."""
    table = priced(gpt(48, 6144, 64), MEGATRON_2022)
    layout = Layout(tp=8, micro_batch=4)

    plain, sp = (
        table.layer(layout, False),
        table.layer(replace(layout, sequence_parallel=True), False),
    )

    assert sp.forward.compute < plain.forward.compute


def test_crossing_a_node_makes_tensor_parallelism_slower() -> None:
    """Twice the ranks halve the compute, and the exchange takes longer."""
    table = priced(model("llama-3-70b"))
    layouts = [Layout(tp=tp, sequence_parallel=True) for tp in (8, 16, 32)]

    exchange = [table.layer(layout, False).forward.tp for layout in layouts]

    assert exchange[0] < exchange[1] < exchange[2]


def test_folding_keeps_the_exchange_inside_the_node() -> None:
    """MoE Parallel Folding, section 4: without it, ep ranks lie tp·cp apart."""
    table = priced(model("mixtral-8x7b"))
    layout = Layout(tp=4, dp=8, ep=8, sequence_parallel=True)

    folded = table.layer(layout, True).forward.ep
    split_experts = table.layer(replace(layout, etp=4), True).forward.ep

    assert folded < split_experts


def test_hidden_communication_costs_only_the_interference() -> None:
    hiding, waiting = priced(), priced(stack=software(overlap_tp_wgrad=False))
    layout = Layout(tp=2, micro_batch=4, sequence_parallel=True)

    hidden, waited = (table.layer(layout, False).backward.tp for table in (hiding, waiting))

    assert lost_beside_products(hiding.cluster.gpu) * waited < hidden < waited


def test_small_kernels_wait_for_the_host() -> None:
    spec = small(hidden=256, heads=2, kv_heads=2, ffn_hidden=512)
    quick_host, slow_host = (priced(spec, software(cpu_op_s=each)) for each in (6e-6, 1e-3))

    assert slow_host.layer(Layout(), False).forward.host > (
        quick_host.layer(Layout(), False).forward.host
    )


SLOW_HOST = {"cpu_op_s": 1e-3}


@pytest.mark.parametrize("moe_layer", [False, True])
def test_graphs_spare_the_host(moe_layer: bool) -> None:
    """All of a layer; or its attention and router, so that a dense layer has nothing left."""
    stacks = (software(cuda_graphs=kind, **SLOW_HOST) for kind in ("none", "attention", "all"))
    none, part, all_ = (
        priced(small_moe(), stack).layer(Layout(ep=1), moe_layer).forward.host for stack in stacks
    )

    assert none > part >= all_ == 0
    assert (part > 0) is moe_layer


def test_the_head_is_in_no_graph_of_layers() -> None:
    stacks = (software(cuda_graphs=kind, **SLOW_HOST) for kind in ("none", "attention"))
    none, part = (priced(stack=stack).head(Layout()).forward.host for stack in stacks)

    assert none == part > 0


def test_eight_bit_products_cost_the_host_a_quantisation_each() -> None:
    operations = mlp_operations(small(), Shape(1, 1024), MEGATRON_CORE)
    products = sum(isinstance(operation, Gemm) for operation in operations)

    assert kernels_of(operations, quantises=True) - kernels_of(operations) == products == 2


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_tensor_parallelism_gathers_what_the_product_takes(precision: str) -> None:
    """Transformer Engine quantises before it gathers; sums are sent in 16 bits."""
    layout = Layout(tp=8, micro_batch=8, sequence_parallel=True)
    wide, narrow = (
        priced(
            gpt(2, 12288, 96),
            software(quantised_inputs=quantised, overlap_tp_wgrad=False),
            precision=precision,
        ).layer(layout, False)
        for quantised in (False, True)
    )

    ratio = narrow.forward.tp / wide.forward.tp
    assert ratio == 1 if precision == "bf16" else 0.7 < ratio < 0.8


def test_experts_exchange_behind_another_micro_batch() -> None:
    layout = Layout(ep=8, dp=8, micro_batch=4)
    tables = [priced(small_moe(), software(overlaps_experts=hides)) for hides in (False, True)]
    open_, hidden = (table.layer(layout, True).forward for table in tables)

    covered = min(open_.ep, open_.compute)
    lost = lost_beside_products(tables[0].cluster.gpu) * covered
    assert hidden.compute == open_.compute
    assert hidden.ep == pytest.approx(open_.ep - covered + lost)


def test_a_router_of_groups_crosses_less_network() -> None:
    """DeepSeek-V3, arXiv 2412.19437, 2.1.2: a token's experts are on at most four nodes."""
    stack, layout = software(moe_sends_once=True), Layout(ep=32, dp=32)
    plain = small_moe().model_copy(update={"name": "plain"})
    assert plain.moe is not None
    grouped = plain.moe.model_copy(update={"groups": 4, "top_groups": 1})
    limited = plain.model_copy(update={"name": "grouped", "moe": grouped})
    free, bound = (priced(spec, stack).layer(layout, True).forward.ep for spec in (plain, limited))

    assert bound < free


def test_host_time_is_what_the_gpu_does_not_cover() -> None:
    stack = software(cpu_op_s=1e-3)
    times = [priced(stack=stack).layer(Layout(micro_batch=mb), False).forward for mb in (1, 2)]

    # as many kernels, so the same host time: longer kernels hide more of it
    assert times[0].total == pytest.approx(times[1].total)
    assert times[0].host > times[1].host


def test_a_stalled_ring_step_counts_only_where_the_pipeline_crosses_nodes() -> None:
    table = priced(stack=software(stalled_step_s=1e-3))
    layout = Layout(tp=4, dp=2, pp=4, sequence_parallel=True)

    crossing, inside = table.layer(layout, False), table.layer(replace(layout, pp=1), False)

    # two gathers and two scatters of three steps each
    assert crossing.forward.tp - inside.forward.tp == pytest.approx(4 * 3 * 1e-3)


def test_fused_stacks_are_faster() -> None:
    """PTD-P section 5.8: fused operators gain 11 to 19 %."""
    spec, layout = gpt(96, 12288, 96), Layout(tp=8)
    times = [
        priced(spec, software(MEGATRON_2022, fused_kernels=fused, fused_activation=fused))
        .layer(layout, False)
        .forward.total
        for fused in (True, False)
    ]

    assert 1.05 < times[1] / times[0] < 1.5


def test_eight_bit_products_are_faster() -> None:
    bf16, fp8 = (
        priced(model("llama-3-70b"), precision=precision).layer(Layout(), False).forward.compute
        for precision in ("bf16", "fp8")
    )

    assert 0.5 < fp8 / bf16 < 0.85


def test_each_case_is_priced_once() -> None:
    table = priced()
    layout = Layout(tp=2, pp=2, sequence_parallel=True)

    first = table.layer(layout, False)

    assert table.layer(replace(layout, dp=4, vpp=2), False) is first
    assert table.layer(replace(layout, micro_batch=2), False) is not first


def test_the_loss_is_priced_with_the_head() -> None:
    kinds = ("fused", "kernel", "eager")
    tables = [priced(stack=software(loss=loss)) for loss in kinds]
    times = [table.head(Layout()).forward.total for table in tables]

    assert times == sorted(times)
    assert times[0] < times[2]
    assert tables[0].embedding(Layout()).forward.total < times[0]
