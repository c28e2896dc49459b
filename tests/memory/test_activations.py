"""Bytes kept for the backward pass: the formulas of Korthikanti et al., and laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Recompute
from planner.memory.activations import attention_bytes, layer_bytes
from planner.model.operations import Shape
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER
from tests.properties.strategies import (
    degrees,
    gpt,
    model,
    quick,
    recomputes,
    small,
    small_moe,
    software,
)

STACKS = [MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP, TORCH_LAUNCHER]
NONE, SELECTIVE, FULL = Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL
heads = st.sampled_from([16, 32, 96])
sequences = st.sampled_from([1024, 2048, 8192])


def kept(
    spec: ModelSpec,
    shape: Shape,
    recompute: Recompute = NONE,
    stack: SoftwareSpec = MEGATRON_2022,
    moe_layer: bool = False,
) -> float:
    return layer_bytes(spec, shape, stack, recompute, moe_layer)


@quick
@given(heads, sequences, st.integers(1, 8), degrees)
def test_formulas_of_the_paper(a: int, s: int, b: int, t: int) -> None:
    """Equations 1 to 5, with h = 128 a."""
    h = 128 * a
    spec = gpt(24, h, a)
    plain, sp = Shape(b, s, tp=t), Shape(b, s, tp=t, sequence_parallel=t > 1)
    scores = 5 * a * s / (h * t)

    assert kept(spec, Shape(b, s)) == pytest.approx(s * b * h * (34 + 5 * a * s / h))
    assert kept(spec, plain) == pytest.approx(s * b * h * (10 + 24 / t + scores))
    assert kept(spec, sp) == pytest.approx(s * b * h * (34 / t + scores))
    assert kept(spec, plain, SELECTIVE) == pytest.approx(s * b * h * (10 + 24 / t))
    assert kept(spec, sp, SELECTIVE) == pytest.approx(s * b * h * 34 / t)
    assert kept(spec, plain, FULL) == 2 * s * b * h
    assert kept(spec, sp, FULL) == 2 * s * b * h / t


@quick
@given(st.sampled_from(STACKS), degrees, st.booleans(), st.booleans())
def test_more_recompute_never_keeps_more(
    stack: SoftwareSpec, tp: int, sp: bool, moe_layer: bool
) -> None:
    shape = Shape(2, 4096, tp=tp, sequence_parallel=sp and tp > 1)
    sizes = [kept(small_moe(), shape, recompute, stack, moe_layer) for recompute in Recompute]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0


@quick
@given(st.sampled_from(STACKS), recomputes, degrees, degrees, st.integers(1, 8))
def test_kept_bytes_grow_with_the_micro_batch(
    stack: SoftwareSpec, recompute: Recompute, tp: int, cp: int, mb: int
) -> None:
    one, several = (Shape(size, 8192, tp=tp, cp=cp) for size in (1, mb))

    assert kept(small(), several, recompute, stack) == pytest.approx(
        mb * kept(small(), one, recompute, stack)
    )


@quick
@given(st.sampled_from(STACKS), recomputes, st.booleans())
def test_splitting_never_keeps_more(
    stack: SoftwareSpec, recompute: Recompute, moe_layer: bool
) -> None:
    def size(tp: int, cp: int) -> float:
        shape = Shape(1, 8192, tp=tp, cp=cp, sequence_parallel=tp > 1)
        return kept(small_moe(), shape, recompute, stack, moe_layer)

    by_tp = [size(tp, 1) for tp in (1, 2, 4, 8)]
    by_cp = [size(1, cp) for cp in (1, 2, 4, 8)]

    assert by_tp == sorted(by_tp, reverse=True)
    assert by_cp == sorted(by_cp, reverse=True)
    assert by_cp[1:] == pytest.approx([2 * by_cp[1] / cp for cp in (2, 4, 8)])


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
@pytest.mark.parametrize("tp", [2, 8])
def test_sequence_parallelism_keeps_less(stack: SoftwareSpec, tp: int) -> None:
    plain = Shape(1, 4096, tp=tp)
    sp = replace(plain, sequence_parallel=True)

    assert kept(small(), sp, stack=stack) < kept(small(), plain, stack=stack)


def test_fused_attention_keeps_no_scores() -> None:
    """As much as selective recompute, and a 4-byte statistic of each row."""
    spec, shape = gpt(24, 2048, 16), Shape(1, 2048)
    fused = software(MEGATRON_2022, flash_attention=True)

    statistic = kept(spec, shape, stack=fused) - kept(spec, shape, SELECTIVE)

    assert statistic == 4 * 2048 * 16


def test_llama_layer_by_hand() -> None:
    """bf16, fused attention: inputs of 2 norms, qkv, mlp; q k v, output; gate, up, product."""
    spec, s = small(), 4096
    width = (16 + 2 * 8) * 128
    elements = 4 * 2048 + width + 2048 + 3 * 8192

    assert kept(spec, Shape(1, s), stack=MEGATRON_CORE) == s * (2 * elements + 4 * 16)


def test_expert_layer_by_hand() -> None:
    """Of the MLP's place: input, routing, dispatched rows, expert activations and outputs."""
    spec, s = small_moe(), 4096
    dense = kept(spec, Shape(1, s), stack=MEGATRON_CORE)
    mlp = 2 * s * (2048 + 3 * 8192)
    experts = 2 * 2048 + 12 * 16 + 4 * (2 * 2048 + 2 * 3 * 1024 + 2 * 2048) + 2 * 3 * 2048

    size = kept(spec, Shape(1, s), stack=MEGATRON_CORE, moe_layer=True)

    assert size == pytest.approx(dense - mlp + s * experts)


def test_latent_attention_keeps_its_latents() -> None:
    spec, s = model("deepseek-v3"), 1024
    mla = spec.mla
    assert mla is not None
    heads = spec.heads
    key = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    latents = mla.kv_lora_rank + mla.qk_rope_head_dim + mla.q_lora_rank
    elements = 4 * spec.hidden + 2 * latents + heads * (2 * key + 2 * mla.v_head_dim)
    elements += 3 * spec.ffn_hidden

    assert kept(spec, Shape(1, s), stack=MEGATRON_CORE) == s * (2 * elements + 4 * heads)


# stack with the field, without it
COSTLY = [("dropout", True, False), ("fused_norm", False, True), ("fused_activation", False, True)]


@pytest.mark.parametrize(("field", "costly", "cheap"), COSTLY)
def test_what_software_keeps_besides(field: str, costly: bool, cheap: bool) -> None:
    more, less = (
        kept(small(), Shape(1, 2048), stack=software(MEGATRON_CORE, **{field: value}))
        for value in (costly, cheap)
    )

    assert more > less


def test_regathering_keeps_only_the_shard() -> None:
    shape = Shape(1, 4096, tp=8, sequence_parallel=True)
    whole = software(regather_sequence=False)

    extra = kept(small(), shape, stack=whole) - kept(small(), shape, stack=MEGATRON_CORE)

    assert extra == pytest.approx(2 * 2 * 4096 * 2048 * 7 / 8)


@quick
@given(st.sampled_from(STACKS), degrees, st.booleans())
def test_the_attention_block_is_a_part_of_its_layer(
    stack: SoftwareSpec, tp: int, moe_layer: bool
) -> None:
    shape = Shape(1, 4096, tp=tp)

    part = attention_bytes(small_moe(), shape, stack, NONE)

    assert 0 < part < kept(small_moe(), shape, NONE, stack, moe_layer)


@pytest.mark.parametrize(("cp", "copies"), [(1, 0), (4, 2)])
def test_exchanging_heads_keeps_the_output_twice_more(cp: int, copies: int) -> None:
    shape = Shape(1, 8192, cp=cp)
    ring, exchange = MEGATRON_CORE, software(context_exchange="all_to_all")

    extra = kept(small(), shape, stack=exchange) - kept(small(), shape, stack=ring)

    assert extra == copies * 8192 / cp * 2048


def test_torch_recomputes_what_eager_kernels_would_keep() -> None:
    """torchtitan's policy keeps every other product: what lies between them is made again."""
    eager = software(TORCH_FSDP, fused_norm=False, fused_activation=False, fused_kernels=False)
    shape = Shape(1, 8192)

    assert kept(small(), shape, SELECTIVE, eager) == kept(small(), shape, SELECTIVE, TORCH_FSDP)
    assert kept(small(), shape, NONE, eager) > kept(small(), shape, NONE, TORCH_FSDP)
