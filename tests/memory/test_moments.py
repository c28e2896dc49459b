"""The moments of a step: which there are, in what order layers give up what they kept."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.memory.activations import layer_bytes
from planner.memory.moments import AGAIN, IN_FLIGHT, LAYER, LOADED, LOSS, Moment, job_shape, moments
from planner.memory.working import gathered_bytes, layer_working_bytes, loss_working_bytes
from planner.spec.software import MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER
from tests.properties.strategies import job, layout_with, layouts_of, quick, small, small_moe

JOB = job(32, 4096)
EACH = layer_bytes(small(), job_shape(JOB, Layout()), MEGATRON_CORE, Recompute.NONE, False)
INPUT = layer_bytes(small(), job_shape(JOB, Layout()), MEGATRON_CORE, Recompute.FULL, False)


def named(found: list[Moment], name: str) -> list[Moment]:
    return [moment for moment in found if moment.name == name]


# layout, stage, moments at which it may be fullest
MOMENTS = [
    (Layout(), StageLayers(4, 0), {LAYER}),
    (Layout(), StageLayers(4, 0, head=True), {LAYER, LOSS}),
    (Layout(), StageLayers(3, 0, dense_recomputed=1), {LAYER, AGAIN}),
    (Layout(recompute=Recompute.FULL), StageLayers(4, 0, head=True), {AGAIN, LOSS}),
]


@pytest.mark.parametrize(("layout", "stage", "expected"), MOMENTS)
def test_moments(layout: Layout, stage: StageLayers, expected: set[str]) -> None:
    found = moments(small(), JOB, layout, stage, 0)

    assert {moment.name for moment in found} == {LOADED, IN_FLIGHT, *expected}


def test_layers_give_up_what_they_kept_one_after_the_other() -> None:
    """Three plain layers behind two recomputed ones, of which only the inputs are kept."""
    stage = StageLayers(3, 0, dense_recomputed=2)
    found = moments(small(), JOB, Layout(), stage, 0)

    first, second = named(found, LAYER)
    (again,) = named(found, AGAIN)
    assert first.activations == 3 * EACH + 2 * INPUT
    assert second.activations == pytest.approx(2 * EACH + 2 * INPUT)
    assert again.activations == 2 * INPUT
    assert again.working == pytest.approx(first.working + EACH - INPUT)


@pytest.mark.parametrize(("rank", "passes"), [(0, 4), (1, 3), (3, 1)])
def test_other_passes_stay_whole_meanwhile(rank: int, passes: int) -> None:
    layout = Layout(pp=4)
    found = moments(small(), JOB, layout, StageLayers(2, 0), rank)

    assert max(moment.activations for moment in found) == passes * 2 * EACH


def test_before_a_backward_pass_everything_is_kept_and_nothing_at_work() -> None:
    (flight,) = named(moments(small(), JOB, Layout(pp=4), StageLayers(2, 0), 1), IN_FLIGHT)

    assert flight == Moment(IN_FLIGHT, True, 3 * 2 * EACH, 0.0)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4), st.booleans(), st.booleans())
def test_working_bytes_are_those_of_their_moments(
    layout: Layout, moe_layer: bool, head: bool
) -> None:
    spec, shape = small_moe(), job_shape(JOB, layout)
    layout = replace(layout, recompute=Recompute.NONE)
    stage = StageLayers(int(not moe_layer), int(moe_layer), False, head)
    weights, gradient = gathered_bytes(spec, shape, MEGATRON_CORE, layout, moe_layer)
    layer = layer_working_bytes(spec, shape, MEGATRON_CORE, moe_layer)

    found = moments(spec, JOB, layout, stage, layout.pp - 1)

    assert [moment.working for moment in named(found, LAYER)] == pytest.approx(
        [layer + weights, layer + weights + gradient]
    )
    loss = loss_working_bytes(spec, shape, MEGATRON_CORE)
    assert all(moment.working >= loss for moment in named(found, LOSS))


def test_gradients_made_by_the_backward_pass_are_missing_in_the_first() -> None:
    layout, stage = Layout(pp=4), StageLayers(2, 0)
    kept = moments(small(), JOB, layout, stage, 0)
    made = moments(small(), job(32, 4096, software=TORCH_FSDP), layout, stage, 0)

    assert all(moment.gradients for moment in kept)
    assert {moment.gradients for moment in named(made, LAYER)} == {False, True}


def test_one_micro_batch_has_gradients_only_when_activations_are_gone() -> None:
    run, layout = job(8, 4096, software=TORCH_FSDP), layout_with(3, dp=8)
    found = moments(small(), run, layout, StageLayers(4, 0, True, True), 0)

    fullest = max(moment.activations for moment in found)
    with_gradients = [moment for moment in found if moment.gradients]
    assert max(moment.activations for moment in with_gradients) < fullest / 2


def test_the_loss_is_over_when_one_micro_batch_has_its_gradients() -> None:
    run, layout = job(8, 4096, software=TORCH_FSDP), Layout(dp=8, recompute=Recompute.FULL)
    wordy = small(vocab=262144)  # a loss that outweighs every layer
    found = moments(wordy, run, layout, StageLayers(4, 0, True, True), 0)

    loss = max(moment.working for moment in named(found, LOSS))
    assert all(moment.working < loss for moment in found if moment.gradients)


def test_torch_keeps_what_the_first_stage_sent() -> None:
    stage = StageLayers(2, 0, embedding=True)
    run = job(32, 4096, software=TORCH_LAUNCHER)
    freed = run.model_copy(
        update={"software": TORCH_LAUNCHER.model_copy(update={
            "name": "frees", "keeps_receive_buffers": False})}
    )  # fmt: skip
    most = [
        max(moment.activations for moment in moments(small(), it, Layout(pp=2), stage, 0))
        for it in (run, freed)
    ]

    assert most[0] - most[1] == 2 * 2 * 4096 * small().hidden  # two passes in flight


# precision, software, bytes of an input that a product keeps
INPUTS = [
    ("bf16", MEGATRON_CORE, 2), ("fp8", MEGATRON_CORE, 1), ("fp8_block", MEGATRON_CORE, 1 + 1 / 32),
    ("mxfp8", MEGATRON_CORE, 1 + 1 / 32), ("nvfp4", MEGATRON_CORE, 9 / 16),
    ("fp8", TORCH_FSDP, 2),  # torchao quantises again in the backward pass
]  # fmt: skip


@pytest.mark.parametrize(("precision", "stack", "expected"), INPUTS)
def test_quantised_products_keep_quantised_inputs(
    precision: str, stack: object, expected: float
) -> None:
    run = job(32, 4096, software=stack).model_copy(update={"precision": precision})

    assert job_shape(run, Layout()).input_bytes == expected
