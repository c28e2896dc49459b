"""What a layer does: shapes by hand, FLOPs against the model's own, the same over every split."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.model.backward import backward
from planner.model.flops import attention_flops_per_token, model_flops_per_token
from planner.model.operations import (
    SHARD_ORDER,
    Attention,
    Collective,
    Elementwise,
    Gemm,
    Operation,
    Shape,
    attention_operations,
    embedding_operations,
    head_operations,
    mlp_operations,
    moe_operations,
    with_ordered_shards,
)
from planner.model.parameters import layer_parameters
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_LAUNCHER
from tests.properties.strategies import degrees, gpt, model, quick, small, small_moe, software

NAMES = ["llama-3-8b", "gpt3-175b", "mixtral-8x7b", "deepseek-v3", "small-moe", "gpt-neox-20b"]
sequences = st.sampled_from([1024, 4096, 8192])


def flops(operations: list[Operation]) -> float:
    return sum(2 * op.m * op.n * op.k * op.copies for op in operations if isinstance(op, Gemm))


def attention_flops(operations: list[Operation]) -> float:
    return sum(
        2 * op.batch * op.heads * op.seq_q * op.seq_kv * op.head_dim * op.passes
        for op in operations
        if isinstance(op, Attention)
    )


def layer(
    spec: ModelSpec, moe_layer: bool, shape: Shape, stack: SoftwareSpec = MEGATRON_CORE
) -> list[Operation]:
    rest = moe_operations if moe_layer else mlp_operations
    return attention_operations(spec, shape, stack)[0] + rest(spec, shape, stack)


def whole_model(spec: ModelSpec, shape: Shape) -> list[Operation]:
    layers = [layer(spec, spec.is_moe_layer(index), shape) for index in range(spec.layers)]
    return [op for ops in layers for op in ops] + head_operations(spec, shape, MEGATRON_CORE)


def vectors(spec: ModelSpec) -> int:
    """Parameters of norms and biases, which model FLOPs count as if they were matrices."""
    norm = spec.hidden * (2 if spec.norm_bias else 1)
    heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    biases = heads * spec.qkv_bias + spec.hidden * spec.attention_out_bias
    biases += (spec.ffn_hidden + spec.hidden) * spec.mlp_bias
    latent = (spec.mla.q_lora_rank + spec.mla.kv_lora_rank) if spec.mla else 0
    head_norms = 2 * spec.head_dim * spec.qk_norm
    return spec.layers * (2 * norm + biases + latent + head_norms) + norm


@pytest.mark.parametrize("name", NAMES)
def test_products_of_one_token_are_the_matrices_of_the_layer(name: str) -> None:
    """What is left over is norms and biases: less than one part in a thousand."""
    spec = model(name)
    for moe_layer in {spec.is_moe_layer(index) for index in range(spec.layers)}:
        parameters = layer_parameters(spec, moe_layer)
        active: float = parameters.total
        if spec.moe and moe_layer:
            active -= parameters.experts * (1 - spec.moe.top_k / spec.moe.experts)
        products = flops(layer(spec, moe_layer, Shape(1, 1))) / 2
        assert 0 < active - products < 1e-3 * active


@pytest.mark.parametrize("name", NAMES)
def test_forward_products_are_a_third_of_the_model_flops(name: str) -> None:
    spec, shape = model(name), Shape(2, 4096)
    forward = whole_model(spec, shape)

    per_token = flops(forward) / shape.tokens
    attention = attention_flops(forward) / shape.tokens

    expected = model_flops_per_token(spec, 4096) / 3
    assert attention == pytest.approx(attention_flops_per_token(spec, 4096))
    assert per_token + attention + 2 * vectors(spec) == pytest.approx(expected, rel=1e-9)


@quick
@given(st.sampled_from(["llama-3-8b", "gpt3-175b", "gpt-neox-20b"]), degrees, degrees, sequences)
def test_tensor_and_context_ranks_share_the_work_of_a_layer(
    name: str, tp: int, cp: int, seq_len: int
) -> None:
    spec = model(name)
    one, split = Shape(1, seq_len), Shape(1, seq_len, tp=tp, cp=cp, sequence_parallel=tp > 1)
    whole, part = layer(spec, False, one), layer(spec, False, split)

    assert tp * cp * flops(part) == pytest.approx(flops(whole))
    assert tp * cp * attention_flops(part) == pytest.approx(attention_flops(whole))


@quick
@given(degrees, degrees, degrees, st.sampled_from([1, 2, 4]))
def test_expert_ranks_share_the_work_of_a_layer(tp: int, cp: int, ep: int, etp: int) -> None:
    """All tensor, context and expert ranks together do what one rank does alone."""
    spec = small_moe()
    one, split = Shape(1, 4096), Shape(1, 4096, tp, cp, ep, etp, sequence_parallel=tp > 1)

    assert tp * cp * flops(layer(spec, True, split)) == pytest.approx(flops(layer(spec, True, one)))


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite"])
@pytest.mark.parametrize("shared", [False, True])
def test_latents_are_those_of_a_ranks_share_of_the_sequence(name: str, shared: bool) -> None:
    """Without sequence parallelism every tensor rank makes all of them."""
    spec = model(name)
    mla = spec.mla
    assert mla is not None
    one, split = Shape(1, 4096), Shape(1, 4096, tp=4, sequence_parallel=shared)
    down = 2 * 4096 * spec.hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim + mla.q_lora_rank)

    extra = 4 * flops(layer(spec, False, split)) - flops(layer(spec, False, one))

    assert extra == pytest.approx(0 if shared else 3 * down, abs=1e-6 * down)


@quick
@given(degrees, degrees)
def test_head_and_loss_are_shared_by_tensor_ranks(tp: int, cp: int) -> None:
    shape = Shape(2, 4096, tp=tp, cp=cp)

    head = head_operations(small(), shape, MEGATRON_CORE)

    assert tp * cp * flops(head) == 2 * 2 * 4096 * 2048 * 32000


@pytest.mark.parametrize("stack", [MEGATRON_CORE, MEGATRON_2022, TORCH_LAUNCHER])
@pytest.mark.parametrize("name", NAMES)
def test_backward_is_exactly_twice_the_products(name: str, stack: SoftwareSpec) -> None:
    spec, shape = model(name), Shape(1, 2048, tp=2, sequence_parallel=True)
    forward = layer(spec, spec.is_moe_layer(spec.layers - 1), shape, stack)

    reverse = [b for op in forward for b in backward(op, stack)]

    assert flops(reverse) == pytest.approx(2 * flops(forward))
    assert attention_flops(reverse) == pytest.approx(2.5 * attention_flops(forward))


def test_gradients_of_a_product_have_the_shapes_of_its_inputs() -> None:
    dgrad, wgrad = backward(Gemm("up", m=128, n=512, k=64), MEGATRON_CORE)

    assert isinstance(dgrad, Gemm)
    assert isinstance(wgrad, Gemm)
    assert (dgrad.m, dgrad.n, dgrad.k) == (128, 64, 512)  # tokens x inputs
    assert (wgrad.m, wgrad.n, wgrad.k) == (64, 512, 128)  # inputs x outputs
    assert wgrad.accumulates
    assert not dgrad.accumulates


def test_an_unfused_accumulation_is_a_kernel_of_its_own() -> None:
    stack = software(fused_gradient_accumulation=False)

    _, wgrad, added = backward(Gemm("up", m=128, n=512, k=64), stack)

    assert wgrad == Gemm("up wgrad", 64, 512, 128)
    assert added == Elementwise("gradient accumulation", 10 * 512 * 64)


def test_products_of_activations_accumulate_nothing() -> None:
    for stack in (MEGATRON_CORE, TORCH_LAUNCHER):
        made = backward(Gemm("scores", 8, 8, 8, weight=False), stack)
        assert [getattr(op, "accumulates", None) for op in made] == [False, False]


# forward collective, its mirror in the backward pass
MIRRORS = [
    ("all_gather", "tp", "reduce_scatter"),
    ("reduce_scatter", "tp", "all_gather"),
    ("all_reduce", "tp", "all_reduce"),
    ("all_to_all", "ep", "all_to_all"),
    ("all_gather", "cp", "reduce_scatter"),
]


@pytest.mark.parametrize(("kind", "axis", "mirror"), MIRRORS)
def test_collectives_are_mirrored(kind: str, axis: str, mirror: str) -> None:
    made = backward(Collective("it", kind, 100, axis), MEGATRON_CORE)[0]

    assert isinstance(made, Collective)
    assert (made.kind, made.message_bytes, made.axis) == (mirror, 100, axis)


def test_what_runs_behind_the_gradient_products() -> None:
    gather = Collective("it", "all_gather", 100, "tp")
    never = software(overlap_tp_wgrad=False, regather_sequence=False)

    scatter, again = backward(gather, MEGATRON_CORE)

    assert [getattr(op, "hidden_behind", "") for op in (scatter, again)] == ["wgrad", "dgrad"]
    assert getattr(again, "kind", "") == "all_gather"
    assert [getattr(op, "hidden_behind", "") for op in backward(gather, never)] == [""]


# PTD-P section 3.2 and Korthikanti section 4.2.2: the same bytes with and without SP
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_sequence_parallelism_sends_as_much_as_all_reduce(tp: int) -> None:
    def sent(sequence_parallel: bool) -> float:
        shape = Shape(1, 2048, tp=tp, sequence_parallel=sequence_parallel)
        made = [op for op in layer(small(), False, shape) if isinstance(op, Collective)]
        return sum((2 if op.kind == "all_reduce" else 1) * op.message_bytes for op in made)

    assert sent(True) == sent(False) == 2 * 2 * 2 * 2048 * 2048


def test_one_rank_talks_to_nobody() -> None:
    spec, shape = small_moe(), Shape(1, 2048)
    alone = [*layer(spec, False, shape), *layer(spec, True, shape)]
    ends = [*embedding_operations(spec, shape), *head_operations(spec, shape, MEGATRON_CORE)]

    assert not [op for op in (*alone, *ends) if isinstance(op, Collective)]


# MoE Parallel Folding, section 3.3: T k h rows to and fro; with etp the rows are gathered
@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (8, 1), (4, 2), (1, 4)])
def test_exchange_of_tokens(ep: int, etp: int) -> None:
    spec = small_moe()
    shape = Shape(1, 4096, tp=2, ep=ep, etp=etp, sequence_parallel=True)
    rows = 2 * 4096 / 2 * 4 * 2048  # 2 bytes, local tokens, top-k, hidden

    made = [op for op in moe_operations(spec, shape, MEGATRON_CORE) if isinstance(op, Collective)]

    sent = {op.name: (op.kind, op.message_bytes, op.axis) for op in made if op.axis != "tp"}
    exchange = {name: ("all_to_all", rows, "ep") for name in ("dispatch", "combine")}
    gather = {
        "expert gather": ("all_gather", etp * rows, "etp"),
        "expert reduce": ("reduce_scatter", etp * rows, "etp"),
    }
    assert sent == (exchange if ep > 1 else {}) | (gather if etp > 1 else {})


@pytest.mark.parametrize(("cp", "kv_heads"), [(2, 8), (8, 8), (4, 16)])
def test_context_ranks_exchange_keys_and_values(cp: int, kv_heads: int) -> None:
    spec = small(kv_heads=kv_heads)
    operations, _ = attention_operations(spec, Shape(1, 8192, cp=cp), MEGATRON_CORE)

    exchange = [op for op in operations if isinstance(op, Collective)]

    assert exchange == [
        Collective("cp exchange", "all_gather", 2 * 8192 * 2 * kv_heads * 128, "cp", "attention")
    ]


def test_parallel_blocks_enter_and_leave_once() -> None:
    shape = Shape(1, 2048, tp=4, sequence_parallel=True)

    def kinds(spec: ModelSpec) -> list[str]:
        return [op.kind for op in layer(spec, False, shape) if isinstance(op, Collective)]

    assert kinds(small()) == ["all_gather", "reduce_scatter"] * 2
    assert kinds(small(parallel_block=True)) == ["all_gather", "reduce_scatter"]


def test_fused_attention_replaces_scores_in_memory() -> None:
    spec, shape = gpt(24, 2048, 16), Shape(4, 2048, tp=2)
    _, core = attention_operations(spec, shape, MEGATRON_2022)
    _, fused = attention_operations(spec, shape, MEGATRON_CORE)

    assert [op.name for op in core] == [
        "scores", "softmax", "attention dropout", "context", "transpose",
    ]  # fmt: skip
    assert flops(core) == 2 * attention_flops(fused)  # no half is left out


# field of the software, the value that moves the fewest bytes, another
SWITCHES: list[tuple[str, object, object]] = [
    ("fused_norm", True, False), ("fused_kernels", True, False), ("fused_activation", True, False),
    ("loss", "fused", "eager"), ("loss", "kernel", "eager"), ("dropout", False, True),
]  # fmt: skip


@pytest.mark.parametrize(("field", "better", "worse"), SWITCHES)
def test_every_fused_kernel_moves_fewer_bytes(field: str, better: object, worse: object) -> None:
    def moved(value: object) -> float:
        stack, shape = software(MEGATRON_CORE, **{field: value}), Shape(1, 2048)
        made = layer(small(), False, shape, stack) + head_operations(small(), shape, stack)
        return sum(op.moved_bytes for op in made if isinstance(op, Elementwise))

    assert moved(better) < moved(worse)


def test_shapes() -> None:
    shape = Shape(2, 4096, tp=4, cp=2)

    assert shape.tokens == shape.sharded_tokens == 4096
    assert replace(shape, sequence_parallel=True).sharded_tokens == 1024


def test_gathered_logits_cost_every_rank_the_whole_loss() -> None:
    shape = Shape(2, 1024, tp=4)
    gathers = MEGATRON_CORE.model_copy(update={"gathers_logits": True})

    split, whole = (head_operations(small(), shape, stack) for stack in (MEGATRON_CORE, gathers))

    traffic = [next(op.moved_bytes for op in ops if op.name == "loss") for ops in (split, whole)]
    assert traffic[1] == pytest.approx(4 * traffic[0])
    gathered = next(op for op in whole if op.name == "logits")
    assert (gathered.kind, gathered.message_bytes) == ("all_gather", 2 * 2 * 1024 * small().vocab)


def test_context_is_exchanged_around_a_ring_or_by_all_to_all() -> None:
    shape = Shape(1, 8192, tp=2, cp=4)
    ulysses = MEGATRON_CORE.model_copy(update={"context_exchange": "all_to_all"})

    def exchanges(stack: SoftwareSpec) -> list[Collective]:
        operations, _ = attention_operations(small(), shape, stack)
        return [op for op in operations if isinstance(op, Collective) and op.axis == "cp"]

    ring, before_and_after = exchanges(MEGATRON_CORE), exchanges(ulysses)

    assert [op.kind for op in ring] == ["all_gather"]
    assert [op.kind for op in before_and_after] == ["all_to_all", "all_to_all"]
    assert not any(op.hidden_behind for op in before_and_after)
    widths = [op.message_bytes / (2 * shape.tokens * small().head_dim) for op in before_and_after]
    assert widths == [(small().heads + 2 * small().kv_heads) / 2, small().heads / 2]


def test_shards_of_a_sequence_are_put_in_order() -> None:
    """After what gathers, before what scatters; as many bytes in the backward pass."""
    plain = mlp_operations(small(), Shape(2, 1024, tp=4, sequence_parallel=True), TORCH_LAUNCHER)

    found = with_ordered_shards(plain)

    copies = [place for place, one in enumerate(found) if one.name == SHARD_ORDER]
    assert [one for one in found if one.name != SHARD_ORDER] == plain
    assert isinstance(found[copies[0] - 1], Collective)
    assert isinstance(found[copies[1] + 1], Collective)
    for place in copies:
        copy = found[place]
        assert isinstance(copy, Elementwise)
        assert copy.moved_bytes == 2 * 2 * 2048 * small().hidden
        assert backward(copy, TORCH_LAUNCHER) == (copy,)


def test_an_all_reduce_has_no_order() -> None:
    plain = mlp_operations(small(), Shape(2, 1024, tp=4), TORCH_LAUNCHER)

    assert with_ordered_shards(plain) == plain
