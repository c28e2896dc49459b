"""The waterfall of a step: it adds up, no cause is negative, and each cause is what it says."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.compute import half_precision_peak
from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import Split
from planner.model.flops import model_flops_per_token
from planner.simulate.step import estimate_step
from planner.simulate.waterfall import IDEAL, PRECISION, Waterfall, waterfall
from planner.spec.software import MEGATRON_2022, TORCH_LAUNCHER
from tests.properties.strategies import (
    cluster,
    gpt,
    job,
    layout_with,
    layouts_of,
    prices,
    quick,
    small,
    software,
    splits,
)

ROUNDING = 1e-12  # of the step: what adding floats may leave


def falls(table: Prices, layout: Layout, split: Split | None = None) -> Waterfall:
    return waterfall(table, estimate_step(table, layout, split))


def made(layout: Layout, nodes: int = 1, batch: int = 32, **changes: Any) -> Waterfall:
    return falls(Prices(small(), cluster("dgx-h100", nodes), job(batch, **changes)), layout)


def check(table: Prices, layout: Layout, split: Split | None = None) -> Waterfall:
    """Check the laws that hold for any layout."""
    step = estimate_step(table, layout, split)
    found = waterfall(table, step)
    assert sum(found.parts_s.values()) == pytest.approx(step.step_time_s, rel=ROUNDING)
    assert min(found.parts_s.values()) >= -ROUNDING * step.step_time_s
    assert found.parts_s[IDEAL] / step.step_time_s == pytest.approx(step.mfu)
    assert found.mfu <= found.hfu < 1
    return found


@quick
@given(layouts_of("small", "dgx-h100", 2))
def test_it_adds_up_for_dense_layouts(layout: Layout) -> None:
    check(prices("small", "dgx-h100", 2), layout)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_it_adds_up_for_experts(layout: Layout) -> None:
    check(prices("small-moe", "dgx-h100", 4), layout)


@quick
@given(splits(16, 4), st.sampled_from([1, 2]), st.sampled_from([4, 32]))
def test_it_adds_up_for_any_stages(split: Split, tp: int, batch: int) -> None:
    layout = layout_with(tp=tp, pp=4, dp=2 // tp, zero_stage=1)

    found = check(prices("small", "dgx-h100", 1, batch), layout, split)

    assert (found.hfu > found.mfu) == any(split.recomputed or ())


SLOW_HOST = software(TORCH_LAUNCHER, cpu_op_s=1e-3)
NAMED = [
    ("zb_h1", {"pp": 4, "dp": 2}),
    ("zb_h2", {"pp": 4, "tp": 2}),
    ("zb_v", {"pp": 4, "vpp": 2, "dp": 2}),
    ("dualpipe", {"pp": 4, "dp": 2}),
]


@pytest.mark.parametrize(("schedule", "degrees"), NAMED)
@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_it_adds_up_for_named_schedules(
    schedule: str, degrees: dict[str, Any], recompute: Recompute
) -> None:
    layout = replace(layout_with(**degrees, recompute=recompute), schedule=schedule)
    plain = replace(layout, schedule="", vpp=1)

    found, usual = (check(prices("small", "dgx-h100", 1, 64), one) for one in (layout, plain))

    for name in ("ideal", "products", "attention", "memory_bound", "recompute"):
        assert found.parts_s[name] == pytest.approx(usual.parts_s[name], rel=1e-9)
    assert found.hfu / found.mfu == pytest.approx(usual.hfu / usual.mfu)


# software, layout, the causes that must be there and those that must not
CAUSES: list[tuple[Any, dict[str, Any], set[str], set[str]]] = [
    (TORCH_LAUNCHER, {"dp": 8}, {"data_parallel", "optimizer"}, {"tensor_parallel", "bubble"}),
    (TORCH_LAUNCHER, {"tp": 8}, {"tensor_parallel"}, {"data_parallel", "context_parallel"}),
    (TORCH_LAUNCHER, {"cp": 8}, {"context_parallel"}, {"tensor_parallel", "recompute"}),
    (TORCH_LAUNCHER, {"pp": 8}, {"bubble", "pipeline_parallel", "imbalance"}, {"slow_nodes"}),
    (MEGATRON_2022, {"pp": 8, "recompute": Recompute.FULL}, {"recompute"}, {"data_parallel"}),
    (SLOW_HOST, {"tp": 2, "pp": 4}, {"host", "bubble"}, {"expert_parallel", "recompute"}),
]  # fmt: skip


@pytest.mark.parametrize(("stack", "degrees", "there", "absent"), CAUSES)
def test_causes_follow_the_layout(
    stack: Any, degrees: dict[str, Any], there: set[str], absent: set[str]
) -> None:
    layout = layout_with(**degrees)

    parts = made(layout, max(1, layout.gpus // 8), software=stack).parts_s

    total = sum(parts.values())
    assert {name for name in there if parts[name] <= 1e-9 * total} == set()
    assert {name for name in absent if abs(parts[name]) > 1e-9 * total} == set()


def test_ideal_is_the_model_flops_at_peak() -> None:
    found = made(layout_with(tp=2, dp=4))
    machine = cluster("dgx-h100")
    flops = 32 * 4096 * model_flops_per_token(small(), 4096)

    assert found.parts_s[IDEAL] == pytest.approx(flops / (8 * half_precision_peak(machine.gpu)))
    assert found.peak_flops == half_precision_peak(machine.gpu)
    assert PRECISION not in found.parts_s


def test_eight_bits_are_measured_against_their_own_peak() -> None:
    """MFU keeps dividing by the half-precision peak; what 8 bits gain is said on its own."""
    layout = layout_with(dp=8, micro_batch=4)  # longer than the host
    eight, half = made(layout, precision="fp8"), made(layout)

    assert eight.parts_s[IDEAL] == half.parts_s[IDEAL]
    assert -eight.parts_s[PRECISION] == pytest.approx(0.5 * eight.parts_s[IDEAL], rel=0.2)
    assert eight.parts_s["products"] > 0
    assert eight.step_time_s < half.step_time_s


def test_full_recompute_is_a_third_more_hardware_flops_but_the_output_matrix() -> None:
    model = gpt(32, 4096, 32)
    table = Prices(model, cluster("dgx-h100"), job(32, 2048))
    found = falls(table, layout_with(tp=8, recompute=Recompute.FULL))
    head = 6 * 51200 * 4096 / model_flops_per_token(model, 2048)

    assert found.hfu / found.mfu == pytest.approx(1 + (1 - head) / 3, rel=1e-3)
    assert found.parts_s["recompute"] > 0


def test_transfers_are_what_a_free_network_would_save() -> None:
    layout = layout_with(pp=2, dp=8)
    fast = cluster("dgx-h100", 2)
    assert fast.scale_out is not None
    slow_net = fast.scale_out.model_copy(update={"p2p_efficiency": 0.01})
    slow = fast.model_copy(update={"scale_out": slow_net})
    stack = software(TORCH_LAUNCHER, overlap_pipeline=False)

    first, second = (
        falls(Prices(small(), machine, job(64, software=stack)), layout) for machine in (fast, slow)
    )

    more_s = second.step_time_s - first.step_time_s
    grown_s = second.parts_s["pipeline_parallel"] - first.parts_s["pipeline_parallel"]
    assert more_s > 0
    assert grown_s == pytest.approx(more_s)
    assert second.parts_s["bubble"] == pytest.approx(first.parts_s["bubble"])


def test_unequal_stages_show_as_imbalance() -> None:
    table = prices("small", "dgx-h100", 1)
    layout = layout_with(pp=4, dp=2)

    equal, uneven = (falls(table, layout, Split(layers)).parts_s["imbalance"]
                     for layers in ((4, 4, 4, 4), (7, 3, 3, 3)))  # fmt: skip

    assert uneven > 2 * equal


def test_mfu_of_a_measured_time() -> None:
    found = made(layout_with(dp=8, recompute=Recompute.FULL))

    assert found.mfu_at(2 * found.step_time_s) == pytest.approx(found.mfu / 2)
    assert found.hfu_at(found.step_time_s) == found.hfu
