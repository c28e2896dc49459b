"""What each optimizer keeps for a parameter and moves in an update, as tables of bytes."""

import pytest

from planner.layout.layout import Layout
from planner.layout.local import LocalParameters, layer_local, stage_local
from planner.layout.stages import StageLayers
from planner.memory.states import state_bytes
from planner.model.matrices import dense_matrix_parameters, layer_matrices, newton_schulz_flops
from planner.model.parameters import layer_parameters, total_parameters
from planner.spec.job import JobSpec
from planner.spec.optimizer import OPTIMIZERS, update_bytes
from planner.spec.software import MEGATRON_CORE
from tests.properties.strategies import gpt, layout_with, model, small, software

MATRICES = LocalParameters(1000, 0, 1000)
OTHERS = LocalParameters(1000, 0, 0)

# bytes of a parameter beside 2-byte weight and gradient, fp32 master weight included
KEPT = {
    "adamw": (12, 12),
    "adamw-8bit": (6 + 2 / 64, 6 + 2 / 64),
    "adamw-bf16": (8, 8),
    "sgd": (4, 4),
    "sgd-momentum": (8, 8),
    "lamb": (12, 12),
    "muon": (8, 12),
    "adafactor": (4, 4),
}
# bytes that an update reads and writes: twice what is kept, the gradient, and passes of its own
MOVED = {"adamw": 28, "adamw-bf16": 20, "sgd": 12, "lamb": 48, "muon": 28}


def test_every_optimizer_is_in_the_table() -> None:
    assert set(KEPT) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", KEPT)
def test_kept_bytes(name: str) -> None:
    sizes = [
        state_bytes(local, Layout(), MEGATRON_CORE, name).optimizer / 1000
        for local in (MATRICES, OTHERS)
    ]

    assert sizes == pytest.approx(KEPT[name])


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("kept", [8, 12])
def test_a_stack_without_master_weights_keeps_the_state_alone(name: str, kept: int) -> None:
    stack = software(optimizer_bytes=kept)
    size = state_bytes(OTHERS, layout_with(1, dp=4), stack, name).optimizer

    assert size == pytest.approx((KEPT[name][1] - (12 - kept)) * 1000 / 4)


@pytest.mark.parametrize("name", MOVED)
def test_moved_bytes(name: str) -> None:
    assert update_bytes(name, 12, 1000, 0) == pytest.approx(1000 * MOVED[name])


def test_an_unknown_optimizer_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'adam' is not known; use one of adamw, adamw-8bit"):
        JobSpec(global_batch=1, seq_len=1, optimizer="adam")


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b"])
def test_matrices_are_a_layer_without_norms_and_biases(name: str) -> None:
    spec = model(name)
    for moe_layer in {spec.is_moe_layer(layer) for layer in range(spec.layers)}:
        whole = layer_parameters(spec, moe_layer)
        matrices = sum(one.parameters for one in layer_matrices(spec, moe_layer))
        vectors = whole.total - matrices

        assert 0 < vectors < 1e-3 * whole.total + 20 * spec.hidden
        assert dense_matrix_parameters(spec, moe_layer) == matrices - whole.experts


def test_embeddings_and_head_are_no_matrices_to_muon() -> None:
    spec = small()
    ends = stage_local(spec, StageLayers(0, 0, True, True), 1, 1, 1)
    layer = layer_local(spec, False, 2, 1, 1)

    assert ends.matrices == 0
    assert layer.matrices == pytest.approx(layer.dense, rel=1e-3)


def test_muon_saves_a_third_of_what_adam_keeps_in_the_layers() -> None:
    spec = model("llama-3-8b")
    local = stage_local(spec, StageLayers(32, 0, True, True), 1, 1, 1)
    adam, muon = (
        state_bytes(local, Layout(), MEGATRON_CORE, name).optimizer for name in ("adamw", "muon")
    )
    layers = 32 * dense_matrix_parameters(spec, False)

    assert adam == pytest.approx(12 * total_parameters(spec))
    assert adam - muon == pytest.approx(4 * layers)


def test_newton_schulz_of_a_square_matrix() -> None:
    """Six products of m by m in each of five steps, 2 m^3 FLOPs each, hold m^2 parameters."""
    spec = gpt(2, 512, 8, ffn_hidden=512)
    square = 5 * 3 * 2 * 512
    wide = 5 * (4 * 512 + 2 * 512 / 3)  # qkv: 512 by 1536

    assert newton_schulz_flops(spec) == pytest.approx((3 * square + 3 * wide) / 6)
