"""Offloaded activations: linear in the fraction, what stays, what the nodes must hold."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Offload, Recompute
from planner.layout.stages import Split, StageLayers
from planner.memory.estimate import peak_memory, rank_memory
from planner.memory.moments import job_shape, kept_bytes, moments
from planner.memory.offload import moved_bytes, moved_layers, offload_problems, small_bytes
from planner.memory.room import HOST_SHARE, fullest_node, fullest_node_bytes, offload_refusals
from planner.spec.cluster import ClusterSpec
from planner.spec.software import MEGATRON_CORE, TORCH_LAUNCHER
from planner.units import GB, GIB
from tests.properties.strategies import cluster, job, layouts_of, quick, small, small_moe

JOB = job(32, 4096)
HALF = Offload(0.5, "host")
LAYOUTS = layouts_of("small", "dgx-h100", 2)
MOE_LAYOUTS = layouts_of("small-moe", "dgx-h100", 4)
fractions = st.floats(0.01, 1.0)


def offloading(layout: Layout, fraction: float, target: str = "host") -> Layout:
    return replace(layout, offload=Offload(fraction, target if fraction else ""))


def resident(layout: Layout, fraction: float, software: Any = MEGATRON_CORE) -> float:
    """Bytes that stay of one pass through all layers of a rank, between the passes."""
    stage = StageLayers(6, 0, head=True, dense_recomputed=2)
    return kept_bytes(small(), job(software=software), offloading(layout, fraction), stage).resident


@given(layout=LAYOUTS, first=fractions, second=fractions)
@quick
def test_what_stays_is_linear_in_the_fraction(layout: Layout, first: float, second: float) -> None:
    assume(abs(first - second) > 0.01)
    whole = resident(layout, 0.0)

    slopes = [(whole - resident(layout, fraction)) / fraction for fraction in (first, second)]

    assert slopes[0] == pytest.approx(slopes[1])
    assert slopes[0] > 0


@given(layout=LAYOUTS, first=fractions, second=fractions)
@quick
def test_host_bytes_are_linear_in_the_fraction(layout: Layout, first: float, second: float) -> None:
    held = [
        rank_memory(small(), JOB, offloading(layout, fraction), 0).offloaded / fraction
        for fraction in (first, second)
    ]

    assert held[0] == pytest.approx(held[1])


@given(layout=LAYOUTS | MOE_LAYOUTS, fraction=fractions)
@quick
def test_no_rank_needs_more_than_without(layout: Layout, fraction: float) -> None:
    model = small_moe() if layout.ep > 1 else small()
    before = peak_memory(model, JOB, layout)

    after = peak_memory(model, JOB, offloading(layout, fraction))

    assert after.allocated <= before.allocated * (1 + 1e-12)


def test_what_stays_and_what_leaves() -> None:
    """Four layers of which the last, before the loss, keeps everything; statistics stay too."""
    layout, stage = offloading(Layout(), 0.5), StageLayers(4, 0, head=True)
    shape = job_shape(JOB, layout)
    kept = kept_bytes(small(), JOB, Layout(), stage)
    statistics = small_bytes(small(), shape, MEGATRON_CORE, Recompute.NONE)

    (moved,) = moved_layers(small(), shape, MEGATRON_CORE, layout, stage)

    assert statistics == 4 * 4096 * 16
    assert moved.count == 3
    assert moved.each_bytes == (kept.last_layer - statistics) / 2
    assert moved_bytes(small(), shape, MEGATRON_CORE, layout, stage) == 3 * moved.each_bytes


def test_a_stage_without_head_gives_away_its_last_layer_and_keeps_its_input() -> None:
    layout, stage = offloading(Layout(pp=4), 1.0), StageLayers(4, 0)
    shape = job_shape(JOB, layout)

    (moved,) = moved_layers(small(), shape, MEGATRON_CORE, layout, stage)
    away = moved_bytes(small(), shape, MEGATRON_CORE, layout, stage)

    assert moved.count == 4
    assert away == 4 * moved.each_bytes - 2 * shape.tokens * small().hidden


def test_a_recomputed_layer_gives_away_its_input_only() -> None:
    layout, stage = offloading(Layout(), 1.0), StageLayers(2, 0, head=True, dense_recomputed=2)
    shape = job_shape(JOB, layout)

    plain, again = moved_layers(small(), shape, MEGATRON_CORE, layout, stage)

    assert (plain.count, again.count) == (1, 2)
    assert again.recompute is Recompute.FULL
    assert again.each_bytes == 2 * 4096 * small().hidden


def test_two_layers_are_loaded_at_a_time() -> None:
    """Everything leaves: the backward pass holds its own layer and the next one, no more."""
    layout, stage = offloading(Layout(), 1.0), StageLayers(8, 0, head=True)
    each = moved_layers(small(), job_shape(JOB, layout), MEGATRON_CORE, layout, stage)[0].each_bytes
    small_ones = kept_bytes(small(), JOB, layout, stage).last_layer - each

    found = [moment.activations for moment in moments(small(), JOB, layout, stage, 0)]

    assert max(found) == pytest.approx(8 * small_ones + 2 * each)


def test_layers_of_megatron_are_a_fraction() -> None:
    """40 of 80 layers leave as many bytes as this fraction of 79: the last one never does."""
    assert Offload.layers(40, 80) == Offload(40 / 79, "host")
    assert Offload.layers(80, 80).fraction == 1
    assert Offload.layers(1, 1).fraction == 1


# a rank of each of four stages, ranks per stage, GPUs of a node, the fullest node
NODES = [
    ([4.0, 3.0, 2.0, 1.0], 8, 8, 32.0),
    ([4.0, 3.0, 2.0, 1.0], 4, 8, 28.0),
    ([4.0, 3.0, 2.0, 1.0], 2, 8, 20.0),
    ([1.0, 2.0, 3.0, 4.0], 4, 8, 28.0),
]


@pytest.mark.parametrize(("each", "dp", "node", "fullest"), NODES)
def test_the_fullest_node(each: list[float], dp: int, node: int, fullest: float) -> None:
    machines = cluster("dgx-h100", 8).model_copy(update={"gpus_per_node": node})

    assert fullest_node(each, Layout(pp=4, dp=dp), machines) == fullest


def test_host_memory_is_counted_per_node() -> None:
    layout = offloading(Layout(dp=16), 1.0)
    held = rank_memory(small(), JOB, layout, 0).offloaded

    assert fullest_node_bytes(small(), cluster("dgx-h100", 2), JOB, layout) == 8 * held
    assert held > GIB


def small_host(**changes: Any) -> ClusterSpec:
    machines = cluster("dgx-h100", 2)
    assert machines.host is not None
    return machines.model_copy(
        update={"host": machines.host.model_copy(update={"memory_bytes": 10 * GB})} | changes
    )


# cluster, layout, what the refusal says
REFUSED = [
    (small_host(), offloading(Layout(dp=16), 1.0), "has room for 8.4 GiB; try a fraction of 0."),
    (small_host(host=None), offloading(Layout(dp=16), 1.0), "describes no host"),
    (small_host(ssd=None), offloading(Layout(dp=16), 1.0, "ssd"), "describes no drives"),
    (small_host(), offloading(Layout(dp=16), 1.5), "is not between 0 and 1"),
    (small_host(), offloading(Layout(dp=16), 0.5, "tape"), "'tape' is not known; use one of host"),
]


@pytest.mark.parametrize(("machines", "layout", "words"), REFUSED)
def test_refusals_have_numbers(machines: ClusterSpec, layout: Layout, words: str) -> None:
    (problem,) = offload_refusals(small(), machines, JOB, layout)

    assert words in problem


def test_the_fraction_that_is_tried_fits() -> None:
    machines, layout = small_host(), offloading(Layout(dp=16), 1.0)
    (problem,) = offload_refusals(small(), machines, JOB, layout)
    smaller = offloading(layout, float(problem.rpartition(" ")[2]))

    assert offload_refusals(small(), machines, JOB, smaller) == []
    needed = fullest_node_bytes(small(), machines, JOB, smaller)
    assert 0.8 * 10 * GB < needed <= HOST_SHARE * 10 * GB


def test_nothing_is_asked_of_a_layout_without_offload() -> None:
    assert offload_problems(Layout(), small_host(host=None)) == []
    assert fullest_node_bytes(small(), small_host(), JOB, Layout()) == 0


def test_unequal_stages_give_away_what_they_hold() -> None:
    layout = offloading(Layout(pp=2, dp=8), 1.0)
    split = Split((4, 12), (0, 0))
    held = [
        rank_memory(small(), job(software=TORCH_LAUNCHER), layout, rank, split).offloaded
        for rank in (0, 1)
    ]

    assert held[1] > 1.3 * held[0]  # three times the layers, half the passes
