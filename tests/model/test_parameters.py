"""Our parameter counts against transformers' own models on the meta device: always equal."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.model.parameters import (
    active_parameters,
    embedding_parameters,
    expert_parameters,
    head_parameters,
    layer_parameters,
    total_parameters,
)
from planner.spec.files import data_path
from planner.spec.huggingface import load_model, model_names
from planner.spec.model import ModelSpec, MoESpec

SHIPPED = data_path("profiles") / "models"
SMALL = {"num_hidden_layers": 5, "hidden_size": 96, "num_attention_heads": 6, "vocab_size": 331}
SMALL_DENSE = SMALL | {"num_key_value_heads": 2, "intermediate_size": 160}
SMALL_MOE = SMALL_DENSE | {"moe_intermediate_size": 48, "num_experts_per_tok": 2}
SMALL_MLA = SMALL_MOE | {
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_routed_experts": 7,
}

# shipped model, changed fields: every switch of every family that adds or removes a parameter
VARIANTS = [
    ("llama-3-8b", SMALL_DENSE),
    ("llama-3-8b", SMALL_DENSE | {"attention_bias": True, "mlp_bias": True}),
    ("llama-3-8b", SMALL_DENSE | {"tie_word_embeddings": True}),
    ("llama-3-8b", SMALL_DENSE | {"head_dim": 40}),
    ("mistral-7b", SMALL_DENSE | {"head_dim": 24}),
    ("qwen2-7b", SMALL_DENSE),
    ("qwen2-7b", SMALL_DENSE | {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    ("qwen3-8b", SMALL_DENSE | {"head_dim": 32}),
    ("qwen3-8b", SMALL_DENSE | {"attention_bias": True}),
    ("gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 77, "vocab_size": 331}),
    ("gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_inner": 100}),
    ("gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 6, "tie_word_embeddings": False}),
    ("gpt-neox-20b", SMALL | {"intermediate_size": 160}),
    ("gpt-neox-20b", SMALL | {"intermediate_size": 160, "attention_bias": False}),
    ("gpt-neox-20b", SMALL | {"intermediate_size": 160, "use_parallel_residual": False}),
    ("mixtral-8x7b", SMALL_DENSE | {"num_local_experts": 3}),
    ("mixtral-8x7b", SMALL_DENSE | {"num_local_experts": 3, "head_dim": 20}),
    ("gpt-oss-120b", SMALL_DENSE | {"num_local_experts": 5, "head_dim": 16}),
    ("gpt-oss-120b", SMALL_DENSE | {"num_local_experts": 5, "attention_bias": False}),
    ("qwen1.5-moe-a2.7b", SMALL_MOE | {"num_experts": 6, "shared_expert_intermediate_size": 80}),
    ("qwen1.5-moe-a2.7b", SMALL_MOE | {"num_experts": 6, "decoder_sparse_step": 2}),
    ("qwen1.5-moe-a2.7b", SMALL_MOE | {"num_experts": 6, "mlp_only_layers": [0, 3]}),
    ("qwen1.5-moe-a2.7b", SMALL_MOE | {"num_experts": 6, "qkv_bias": False}),
    ("qwen3-30b-a3b", SMALL_MOE | {"num_experts": 6, "head_dim": 32}),
    ("qwen3-30b-a3b", SMALL_MOE | {"num_experts": 6, "attention_bias": True}),
    ("qwen3-30b-a3b", SMALL_MOE | {"num_experts": 6, "decoder_sparse_step": 3}),
    ("qwen3-30b-a3b", SMALL_MOE | {"num_experts": 6, "mlp_only_layers": [4]}),
    ("deepseek-v2-lite", SMALL_MLA),
    ("deepseek-v2-lite", SMALL_MLA | {"q_lora_rank": 36, "attention_bias": True}),
    ("deepseek-v2-lite", SMALL_MLA | {"first_k_dense_replace": 3, "n_shared_experts": 1}),
    ("deepseek-v3", SMALL_MLA | {"n_group": 1, "topk_group": 1}),
    ("deepseek-v3", SMALL_MLA | {"n_group": 1, "topk_group": 1, "q_lora_rank": None}),
    ("deepseek-v3", SMALL_MLA | {"n_group": 1, "topk_group": 1, "attention_bias": True}),
]


def transformers_count(path: Path) -> int:
    """Parameters of the model that transformers builds from a config file; nothing is downloaded.

    The balancing bias of DeepSeek-V3 is a parameter in some versions and a buffer in others; no
    gradient ever reaches it.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        config = transformers.AutoConfig.from_pretrained(str(path))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.endswith("e_score_correction_bias")
    )


@pytest.mark.parametrize("name", model_names())
def test_shipped_models_have_as_many_parameters_as_in_transformers(name: str) -> None:
    assert total_parameters(load_model(name)) == transformers_count(SHIPPED / f"{name}.json")


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_every_switch_counts_as_in_transformers(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads((SHIPPED / f"{name}.json").read_text()) | changes))

    assert total_parameters(load_model(path)) == transformers_count(path)


def model(**changes: Any) -> ModelSpec:
    fields = {"name": "m", "layers": 4, "hidden": 64, "heads": 8, "kv_heads": 2, "head_dim": 8}
    return ModelSpec.model_validate(fields | {"ffn_hidden": 256, "vocab": 1000} | changes)


def test_one_layer_by_hand() -> None:
    layer = layer_parameters(model(), moe_layer=False)

    assert layer.attention == 64 * (64 + 2 * 16) + 64 * 64
    assert layer.mlp == 3 * 64 * 256
    assert layer.experts == 0
    assert layer.replicated == 2 * 64
    assert layer.total == layer.attention + layer.mlp + layer.replicated


def test_one_expert_layer_by_hand() -> None:
    moe = MoESpec(experts=8, top_k=2, ffn_hidden=32, shared_ffn_hidden=48, shared_gate=True)

    layer = layer_parameters(model(moe=moe), moe_layer=True)

    assert layer.experts == 8 * 3 * 64 * 32
    assert layer.mlp == 3 * 64 * 48
    assert layer.replicated == 2 * 64 + 8 * 64 + 64


def test_embedding_and_head() -> None:
    assert embedding_parameters(model(positions=50)) == 1050 * 64
    assert head_parameters(model()) == 64 + 1000 * 64
    assert head_parameters(model(tied_embeddings=True, norm_bias=True)) == 2 * 64


def test_active_parameters_by_name() -> None:
    """The numbers in the names of the models, in billions."""
    for name, billions in [
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22.2),
        ("mixtral-8x7b", 12.9),
    ]:
        assert active_parameters(load_model(name)) / 1e9 == pytest.approx(billions, abs=0.1)
    assert active_parameters(load_model("llama-3-8b")) == total_parameters(load_model("llama-3-8b"))


def test_prediction_layers_are_left_out() -> None:
    assert total_parameters(model(mtp_layers=1)) == total_parameters(model())


@given(
    experts=st.integers(1, 16),
    every=st.integers(1, 4),
    first=st.integers(0, 4),
    dense=st.sets(st.integers(0, 3)),
)
def test_layers_add_up(experts: int, every: int, first: int, dense: set[int]) -> None:
    moe = MoESpec(
        experts=experts,
        top_k=1,
        ffn_hidden=32,
        every=every,
        first_layer=first,
        dense_layers=tuple(dense),
    )
    spec = model(moe=moe)

    layers = [layer_parameters(spec, spec.is_moe_layer(layer)).total for layer in range(4)]

    rest = embedding_parameters(spec) + head_parameters(spec)
    assert total_parameters(spec) == sum(layers) + rest
    idle = (experts - 1) * spec.moe_layers * expert_parameters(spec)
    assert active_parameters(spec) == total_parameters(spec) - idle
