"""Bytes of weights, gradients and optimizer under every sharding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Shard
from planner.layout.local import LocalParameters, stage_local
from planner.layout.stages import rank_layers
from planner.memory.states import StateBytes, state_bytes
from planner.model.parameters import total_parameters
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_CORE
from tests.properties.strategies import gpt, layout_with, model, quick, small, small_moe, software

DENSE = LocalParameters(1000, 0)
EXPERTS = LocalParameters(0, 1000)
groups = st.sampled_from([1, 2, 4, 8, 64])


def fullest(spec: ModelSpec, layout: Layout) -> StateBytes:
    """Return the states of the rank that has the most."""
    sizes = []
    for rank in range(layout.pp):
        held = rank_layers(spec, layout.pp, layout.vpp, rank)
        local = stage_local(spec, held, layout.tp, layout.ep, layout.etp, MEGATRON_CORE)
        sizes.append(state_bytes(local, layout, MEGATRON_CORE))
    return max(sizes, key=lambda size: size.total)


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt3-175b", "mixtral-8x7b"])
def test_18_bytes_a_parameter_without_sharding(name: str) -> None:
    spec = model(name)
    local = stage_local(spec, rank_layers(spec, 1, 1, 0), 1, 1, 1)

    states = state_bytes(local, Layout(), MEGATRON_CORE)

    assert states.total == pytest.approx(18 * total_parameters(spec), rel=2e-3)  # padded vocabulary
    assert (states.weights, states.gradients) == (states.total / 9, states.total / 4.5)


# ZeRO section 3.1 with an fp32 gradient: 2, 4 and 12 bytes over 8 ranks
ZERO = [(0, 18000), (1, 7500), (2, 4000), (3, 2250)]


@pytest.mark.parametrize(("stage", "size"), ZERO)
def test_zero(stage: int, size: float) -> None:
    assert state_bytes(DENSE, layout_with(stage, dp=8), MEGATRON_CORE).total == size


def test_zero_of_the_paper() -> None:
    """7.5 billion parameters on 64 ranks: 120, 31.4, 16.6 and 1.9 GB with 2-byte gradients."""
    stack = software(gradient_bytes=2)
    local = LocalParameters(7.5, 0)

    sizes = [state_bytes(local, layout_with(stage, dp=64), stack).total for stage in range(4)]

    assert sizes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


@quick
@given(groups, groups, st.sampled_from([1, 2, 8]), st.sampled_from([1, 4]))
def test_more_sharding_never_holds_more(dp: int, cp: int, ep: int, pp: int) -> None:
    local = LocalParameters(1000, 3000)
    sizes = [
        state_bytes(local, layout_with(stage, dp=8 * dp, cp=cp, ep=ep, pp=pp), MEGATRON_CORE).total
        for stage in range(4)
    ]

    assert sizes == sorted(sizes, reverse=True)


@quick
@given(groups)
def test_a_larger_group_holds_less(group: int) -> None:
    sizes = [
        state_bytes(DENSE, Layout(dp=64, shard=Shard(size, size, size)), MEGATRON_CORE).total
        for size in (1, group)
    ]

    assert sizes[1] == sizes[0] / group


def test_experts_are_shared_only_by_their_copies() -> None:
    copies = layout_with(1, dp=16, ep=4)
    alone = layout_with(1, dp=4, ep=4)

    assert copies.edp == 4
    assert state_bytes(EXPERTS, copies, MEGATRON_CORE).optimizer == 12000 / 4
    assert state_bytes(EXPERTS, alone, MEGATRON_CORE).optimizer == 12000


def test_hybrid_sharding_of_experts_takes_what_there_is() -> None:
    layout = Layout(dp=16, ep=8, shard=Shard(8, 8, 8))

    assert state_bytes(EXPERTS, layout, MEGATRON_CORE).total == 18000 / 2
    assert state_bytes(DENSE, layout, MEGATRON_CORE).total == 18000 / 8


def test_a_pipeline_keeps_whole_weights_and_gradients() -> None:
    sharded = state_bytes(DENSE, layout_with(3, dp=8, pp=2), MEGATRON_CORE)

    assert sharded == StateBytes(2000, 4000, 1500)


def test_bytes_are_those_of_the_software() -> None:
    stack = software(gradient_bytes=2, optimizer_bytes=8)

    assert state_bytes(DENSE, Layout(), stack) == StateBytes(2000, 2000, 8000)


SPECS = [small(), small(tied_embeddings=True), small_moe(), gpt(16, 2048, 16)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("zero", [0, 1])
def test_more_tensor_ranks_never_hold_more(spec: ModelSpec, zero: int) -> None:
    sizes = [fullest(spec, layout_with(zero, tp=tp, dp=8)).total for tp in (1, 2, 4, 8, 16)]

    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("zero", [0, 1])
def test_more_stages_never_hold_more(spec: ModelSpec, zero: int) -> None:
    sizes = [fullest(spec, layout_with(zero, pp=pp, dp=8)).total for pp in (1, 2, 4, 8, 16)]

    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("etp", [1, 2])
def test_more_expert_ranks_never_hold_more(etp: int) -> None:
    layouts = [layout_with(0, tp=2, dp=16, ep=ep, etp=etp) for ep in (1, 2, 4, 8, 16)]
    sizes = [fullest(small_moe(), layout).total for layout in layouts]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_folding_paper_optimizer_of_experts() -> None:
    """With edp = 1 nobody shares them: 18 bytes remain for each local expert parameter."""
    spec = model("mixtral-8x7b")
    layout = layout_with(1, tp=2, dp=4, ep=8)
    local = stage_local(spec, rank_layers(spec, 1, 1, 0), 2, 8, 1)

    states = state_bytes(local, layout, MEGATRON_CORE)

    assert layout.edp == 1
    assert local.expert == 32 * 3 * 4096 * 14336
    assert states.total == pytest.approx(18 * local.expert + (6 + 12 / 4) * local.dense)
