"""Model FLOPs against formulas written out by hand, family by family."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.model.flops import attention_flops_per_token, model_flops_per_token
from planner.model.operations import attention_span
from planner.spec.model import MLASpec, MoESpec
from tests.properties.strategies import gpt, model, small


@pytest.mark.parametrize(
    ("layers", "hidden", "heads"), [(96, 12288, 96), (24, 2048, 16), (48, 6144, 64)]
)
def test_gpt(layers: int, hidden: int, heads: int) -> None:
    """72 L h^2 (1 + s / 12h + V / 12Lh): SC21 without recompute, attention halved."""
    spec, seq_len, vocab = gpt(layers, hidden, heads), 2048, 51200
    rest = seq_len / (12 * hidden) + vocab / (12 * layers * hidden)
    vectors = 6 * (layers * 13 * hidden + 2 * hidden)  # biases and norms

    flops = model_flops_per_token(spec, seq_len)

    assert flops == pytest.approx(72 * layers * hidden**2 * (1 + rest) + vectors, rel=1e-12)


def test_llama_with_grouped_queries() -> None:
    """Llama 3 8B: 32 layers, 4096 wide, 8 of 32 heads for keys and values."""
    spec, seq_len = model("llama-3-8b"), 8192
    attention = 4096 * 4096 * 2 + 2 * 4096 * 1024
    mlp = 3 * 4096 * 14336
    matrices = 32 * (attention + mlp) + 128256 * 4096
    norms = (2 * 32 + 1) * 4096

    flops = model_flops_per_token(spec, seq_len)

    assert flops == 6 * (matrices + norms) + 32 * 6 * seq_len * 4096


def test_mixtral_counts_two_of_eight_experts() -> None:
    spec, seq_len = model("mixtral-8x7b"), 4096
    attention = 4096 * 4096 * 2 + 2 * 4096 * 1024
    experts = 2 * 3 * 4096 * 14336
    matrices = 32 * (attention + experts + 8 * 4096) + 32000 * 4096
    norms = (2 * 32 + 1) * 4096

    flops = model_flops_per_token(spec, seq_len)

    assert flops == 6 * (matrices + norms) + 32 * 6 * seq_len * 4096


def test_latent_attention() -> None:
    """DeepSeek's attention: scores over 192 dimensions, context over 128."""
    mla = MLASpec(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128,
    )  # fmt: skip
    spec = small(layers=1, hidden=7168, heads=128, kv_heads=128, mla=mla, vocab=1000)
    matrices = 7168 * (1536 + 512 + 64) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    matrices += 3 * 7168 * 8192 + 1000 * 7168
    norms = 3 * 7168 + 1536 + 512

    flops = model_flops_per_token(spec, 4096)

    assert attention_flops_per_token(spec, 4096) == 2 * 2048 * 128 * (192 + 128)
    assert flops == 6 * (matrices + norms) + 3 * 2 * 2048 * 128 * (192 + 128)


# model, sequence, FLOPs per token as its source implies (README of the measured rows), tolerance
PUBLISHED = [
    ("llama-3-70b", 8192, 4.49e11, 0.02),
    ("qwen3-235b-a22b", 4096, 1.48e11, 0.01),  # Megatron MoE Model Zoo
    ("mixtral-8x22b", 4096, 2.42e11, 0.01),  # causal half
    ("gpt3-175b", 2048, 1.063e12, 0.005),  # MegaScale
]


@pytest.mark.parametrize(("name", "seq_len", "flops", "within"), PUBLISHED)
def test_published_flops_per_token(name: str, seq_len: int, flops: float, within: float) -> None:
    assert model_flops_per_token(model(name), seq_len) == pytest.approx(flops, rel=within)


@given(st.integers(1, 1 << 20))
def test_causal_attention_is_half_the_square(seq_len: int) -> None:
    assert attention_span(small(), seq_len) == seq_len / 2


@given(st.integers(1, 1 << 16), st.integers(1, 1 << 16))
def test_a_window_only_takes_away(window: int, seq_len: int) -> None:
    span = attention_span(small(sliding_window=window), seq_len)

    assert 0 < span <= seq_len / 2
    assert span <= window


def test_a_window_of_the_whole_sequence_is_none() -> None:
    assert attention_span(small(sliding_window=4096), 4096) == 2048


@pytest.mark.parametrize(("every", "share"), [(0, 0), (1, 1), (2, 1 / 2), (6, 1 / 6)])
def test_layers_with_and_without_a_window_are_averaged(every: int, share: float) -> None:
    full, windowed = (attention_span(small(sliding_window=window), 4096) for window in (0, 512))
    mixed = attention_span(small(sliding_window=512, full_attention_every=every), 4096)

    assert mixed == pytest.approx(share * full + (1 - share) * windowed)


@pytest.mark.parametrize(("window", "seq_len"), [(1, 8), (3, 8), (8, 16), (100, 257)])
def test_a_window_counts_the_keys_of_each_query(window: int, seq_len: int) -> None:
    keys = sum(min(position, window) for position in range(seq_len))

    assert attention_span(small(sliding_window=window), seq_len) == pytest.approx(
        keys / seq_len, abs=0.5
    )


def test_the_input_embedding_is_no_product() -> None:
    more = small(vocab=64000)
    tied = small(vocab=64000, tied_embeddings=True)

    grown = model_flops_per_token(more, 4096) - model_flops_per_token(small(), 4096)

    assert grown == 6 * 32000 * 2048
    assert model_flops_per_token(tied, 4096) == model_flops_per_token(more, 4096)


@given(st.integers(2, 64))
def test_idle_experts_cost_only_their_router(experts: int) -> None:
    def flops(count: int) -> float:
        moe = MoESpec(experts=count, top_k=2, ffn_hidden=512)
        return model_flops_per_token(small(moe=moe), 4096)

    assert flops(experts) - flops(2) == pytest.approx(6 * 16 * (experts - 2) * 2048)
