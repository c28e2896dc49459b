"""Bytes alive for a moment: a layer's backward pass, the loss, gathered weights, buffers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout
from planner.layout.local import stage_local
from planner.layout.stages import StageLayers
from planner.memory.working import (
    LOSS_BYTES,
    WORKSPACE_BYTES,
    buffer_bytes,
    gathered_bytes,
    head_gathered_bytes,
    layer_working_bytes,
    loss_working_bytes,
    receive_bytes,
    scores_working_bytes,
    step_working_bytes,
)
from planner.model.operations import Shape
from planner.model.parameters import expert_parameters, layer_parameters
from planner.spec.job import SoftwareSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER
from tests.properties.strategies import (
    degrees,
    gpt,
    layout_with,
    quick,
    small,
    small_moe,
    software,
)

STACKS = [MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER]
SEQ = 4096
U = 2 * SEQ * 2048  # one hidden tensor of the small model


# tp, sequence parallel: gradient of the output, whole and as a shard, and of gate and up
@pytest.mark.parametrize(("tp", "sp"), [(1, False), (4, False), (4, True)])
def test_backward_of_a_dense_layer(tp: int, sp: bool) -> None:
    shape = Shape(1, SEQ, tp=tp, sequence_parallel=sp)

    size = layer_working_bytes(small(), shape, MEGATRON_CORE, False)

    assert size == U + (U / tp if sp else 0) + 2 * SEQ * 2 * 8192 / tp


def test_backward_of_an_expert_layer() -> None:
    shape = Shape(1, SEQ, tp=2, ep=8, sequence_parallel=True)
    rows = 4 * SEQ / 2

    size = layer_working_bytes(small_moe(), shape, MEGATRON_CORE, True)

    assert size == U + U / 2 + 3 * 2 * rows * 2048 + 2 * rows * 2 * 1024


@pytest.mark.parametrize(("fused", "each"), [(True, 2), (False, 10)])
def test_scores_of_unfused_attention(fused: bool, each: int) -> None:
    stack, shape = software(MEGATRON_2022, fused_kernels=fused), Shape(2, 2048, tp=4)

    assert scores_working_bytes(small(), shape, stack) == each * 2 * 16 / 4 * 2048**2
    assert scores_working_bytes(small(), shape, MEGATRON_CORE) == 0


def test_long_sequences_work_on_their_scores() -> None:
    spec = gpt(24, 2048, 16)
    short, long = (
        layer_working_bytes(spec, Shape(1, length), MEGATRON_2022, False)
        for length in (1024, 16384)
    )

    assert long > 16 * short


@quick
@given(st.sampled_from(STACKS), degrees, st.booleans(), st.integers(1, 8))
def test_working_bytes_grow_with_the_micro_batch(
    stack: SoftwareSpec, tp: int, moe_layer: bool, mb: int
) -> None:
    shapes = [Shape(size, SEQ, tp=tp, sequence_parallel=tp > 1) for size in (1, 2, mb)]
    one, two, several = (
        layer_working_bytes(small_moe(), shape, stack, moe_layer) for shape in shapes
    )

    assert two > one
    assert several - one == pytest.approx((mb - 1) * (two - one))


@quick
@given(st.sampled_from(STACKS), st.booleans())
def test_splitting_never_needs_more(stack: SoftwareSpec, moe_layer: bool) -> None:
    shapes = [Shape(1, SEQ, tp=tp, sequence_parallel=True) for tp in (2, 4, 8)]
    layer = [layer_working_bytes(small_moe(), shape, stack, moe_layer) for shape in shapes]
    loss = [loss_working_bytes(small_moe(), shape, stack) for shape in shapes]

    assert layer == sorted(layer, reverse=True)
    assert loss == sorted(loss, reverse=True)


# kind of loss; the logits of 4096 tokens and 131072 words outweigh the gradient of the matrix
@pytest.mark.parametrize("loss", ["eager", "kernel", "in_place", "native", "remade"])
def test_logits_at_the_moment_of_the_loss(loss: str) -> None:
    spec = small(vocab=131072)

    size = loss_working_bytes(spec, Shape(4, SEQ), software(loss=loss))

    assert size == 4 * 4 * U + LOSS_BYTES[loss] * 4 * SEQ * 131072


def test_gathered_logits_are_those_of_every_tensor_parallel_rank() -> None:
    spec, shape = small(vocab=131072), Shape(4, SEQ, tp=8)
    logits = 4 * SEQ * 131072

    split, whole = (
        loss_working_bytes(spec, shape, software(loss="eager", gathers_logits=gathers))
        for gathers in (False, True)
    )

    assert whole - split == pytest.approx(LOSS_BYTES["eager"] * logits * 7 / 8)


def test_a_fused_loss_leaves_the_backward_of_the_matrix() -> None:
    """2-byte gradients of the logits and of the weight."""
    spec = small(vocab=131072)

    size = loss_working_bytes(spec, Shape(1, SEQ), MEGATRON_CORE)

    assert size == 4 * U + 2 * SEQ * 131072 + 2 * 131072 * 2048


@quick
@given(degrees, st.integers(1, 100_000))
def test_the_vocabulary_is_padded(tp: int, vocab: int) -> None:
    padded = -(-vocab // (128 * tp)) * 128 * tp
    shape = Shape(1, SEQ, tp=tp)

    sizes = [
        loss_working_bytes(small(vocab=size), shape, MEGATRON_CORE) for size in (vocab, padded)
    ]

    assert sizes[0] == sizes[1]


# layout, bytes of each parameter of a layer (the one at work and the next; the whole gradient of
# the one before), and of the output matrix and the embedding at the moment of the loss
GATHERED = [
    (layout_with(3, dp=8), (2 * 2, 4), (2, 4)),
    (layout_with(2, dp=8), (0, 4), (0, 4)),
    (layout_with(1, dp=8), (0, 0), (0, 0)),
    (layout_with(3, dp=8, pp=2), (0, 0), (0, 0)),  # a pipeline keeps its weights whole
]


@pytest.mark.parametrize(("layout", "layer", "ends"), GATHERED, ids=lambda it: str(it)[:40])
def test_gathered_weights(layout: Layout, layer: tuple[int, int], ends: tuple[int, int]) -> None:
    parameters = stage_local(small(), StageLayers(1, 0), 1, 1, 1).total
    table = small().vocab * small().hidden
    stack = software(vocab_multiple=1)

    sizes = gathered_bytes(small(), Shape(1, SEQ), stack, layout, False)
    of_ends = head_gathered_bytes(small(), Shape(1, SEQ), stack, layout)

    assert sizes == pytest.approx([each * parameters for each in layer])
    assert of_ends == pytest.approx([each * table for each in ends])


def test_a_gradient_that_is_added_afterwards_needs_room() -> None:
    """2 bytes of the largest matrix, unless the product itself adds to the main gradient."""
    fused, alone = (
        layer_working_bytes(
            small(), Shape(1, SEQ), software(fused_gradient_accumulation=added), False
        )
        for added in (True, False)
    )

    assert alone - fused == 2 * small().hidden * small().ffn_hidden


def test_gathered_experts_are_those_of_the_rank() -> None:
    layout = layout_with(3, dp=16, ep=8)
    alone, split = (
        sum(gathered_bytes(small_moe(), Shape(1, SEQ, ep=ep), MEGATRON_CORE, layout, True))
        for ep in (1, 8)
    )

    experts = layer_parameters(small_moe(), True).experts
    assert alone - split == pytest.approx(8 * experts * 7 / 8)


def test_buffers() -> None:
    """The workspace, the gathered input of a layer, one dummy gradient per weight shape."""
    shape = Shape(1, SEQ, tp=4, sequence_parallel=True)
    plain, layer = software(dummy_gradients=False), layer_parameters(small(), False)

    assert buffer_bytes(small(), Shape(1, SEQ), plain, False) == WORKSPACE_BYTES
    assert buffer_bytes(small(), shape, plain, False) == WORKSPACE_BYTES + U
    dummies = buffer_bytes(small(), shape, MEGATRON_CORE, False) - WORKSPACE_BYTES - U
    assert dummies == 2 * (layer.attention + layer.mlp) / 4


def test_experts_share_one_dummy_of_each_shape() -> None:
    spec, shape = small_moe(), Shape(1, SEQ, ep=4)
    dense = 2 * (layer_parameters(spec, True).attention + layer_parameters(spec, True).mlp)

    size = buffer_bytes(spec, shape, MEGATRON_CORE, True)

    assert size == WORKSPACE_BYTES + dense + 2 * expert_parameters(spec)


def test_optimizer_step() -> None:
    stack = software(optimizer_temporary_bytes=2.0)

    assert step_working_bytes(1e9, stack) == 2e9
    assert step_working_bytes(1e9, MEGATRON_CORE) == 0


# pp, vpp, rank, neighbours whose messages the chunks of the rank receive
RECEIVED = [
    (4, 1, 0, 1),
    (4, 1, 1, 2),
    (4, 1, 3, 1),
    (2, 2, 0, 3),
    (2, 2, 1, 3),
    (1, 1, 0, 0),
]


@pytest.mark.parametrize(("pp", "vpp", "rank", "neighbours"), RECEIVED)
def test_torch_keeps_a_buffer_for_every_message(
    pp: int, vpp: int, rank: int, neighbours: int
) -> None:
    layout, shape = Layout(pp=pp, vpp=vpp), Shape(1, SEQ)

    kept, reused = (
        receive_bytes(small(), shape, software(keeps_receive_buffers=keeps), layout, rank, 8)
        for keeps in (True, False)
    )

    assert kept == neighbours * 8 * U
    assert reused == 0


def test_shards_are_received_as_shards() -> None:
    layout, stack = Layout(tp=4, pp=2), software(keeps_receive_buffers=True)
    whole, shards = (
        receive_bytes(small(), Shape(1, SEQ, tp=4, sequence_parallel=sp), stack, layout, 0, 8)
        for sp in (False, True)
    )

    assert whole == pytest.approx(4 * shards)


def test_an_activation_of_several_kernels_holds_one_tensor_more() -> None:
    fused, eager = (
        layer_working_bytes(small(), Shape(1, SEQ), software(fused_kernels=fused), False)
        for fused in (True, False)
    )

    assert eager - fused == 2 * SEQ * small().ffn_hidden
