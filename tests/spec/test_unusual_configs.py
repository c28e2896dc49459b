"""The unusual fields of published config.json files: counted right, or refused by name and reason.

Small files of our own with the shapes that publishers use; none is misread in silence.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.model.parameters import total_parameters
from planner.spec.huggingface import load_model
from planner.spec.model import ModelSpec

_BASE: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 512,
    "intermediate_size": 512, "num_key_value_heads": 2,
}  # fmt: skip
_MLA: dict[str, Any] = _BASE | {
    "num_key_value_heads": 8, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def mla_parameters(experts: int, dense: int, layers: int, extra: int = 0) -> int:
    """Count latent attention and experts by hand: the sizes of ``_MLA``."""
    hidden, heads, vocab = 256, 8, 512
    attention = hidden * 64 + 64 + 64 * heads * 48  # down, norm, up of the queries
    attention += hidden * (32 + 16) + 32 + 32 * heads * (32 + 32) + heads * 32 * hidden
    moe = 3 * hidden * 64 * (experts + 1) + hidden * experts
    mlp = 3 * hidden * 512
    total = layers * (attention + 2 * hidden) + dense * mlp + (layers - dense) * moe
    return total + 2 * vocab * hidden + hidden + extra


QWEN_ATTENTION = 256 * 128 * (8 + 2 + 2) + 8 * 128 * 256 + 2 * 128  # head width 128, not 256/8
# model whose shape it is, file, parameters by hand
COUNTED: list[tuple[str, dict[str, Any], int]] = [
    ("DeepSeek-V3", _MLA | {"architectures": ["DeepseekV3ForCausalLM"]}, mla_parameters(8, 1, 4)),
    # 384 = 3 * 2^7 experts under another model_type
    ("Kimi-K2", _MLA | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2",
                        "n_routed_experts": 12, "num_nextn_predict_layers": 0},
     mla_parameters(12, 1, 4)),
    # intermediate_size is there and unused
    ("Qwen3-30B-A3B", _BASE | {
        "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 128, "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1,
        "mlp_only_layers": []},
     4 * (QWEN_ATTENTION + 2 * 256 + 3 * 256 * 64 * 8 + 256 * 8) + 2 * 512 * 256 + 256),
    ("Qwen3-0.6B", _BASE | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128,
                            "tie_word_embeddings": True},
     4 * (QWEN_ATTENTION + 2 * 256 + 3 * 256 * 512) + 512 * 256 + 256),
    # heads wider than hidden, biases, sinks, router and expert biases, alternating window
    ("gpt-oss-120b", _BASE | {
        "architectures": ["GptOssForCausalLM"], "head_dim": 64, "num_local_experts": 4,
        "num_experts_per_tok": 2, "experts_per_token": 2, "sliding_window": 128,
        "attention_bias": True},
     4 * (256 * 64 * 12 + 64 * 12 + 512 * 256 + 256 + 8 + 2 * 256
          + 4 * (256 * 1024 + 1024 + 512 * 256 + 256) + 256 * 4 + 4) + 2 * 512 * 256 + 256),
    ("Mixtral-8x22B", _BASE | {
        "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2},
     4 * (256 * 32 * 12 + 256 * 256 + 2 * 256 + 8 * 3 * 256 * 512 + 256 * 8) + 2 * 512 * 256 + 256),
]  # fmt: skip
# model, architecture, unusual fields, words of the reason
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("DeepSeek-V3.2", "DeepseekV32ForCausalLM", _MLA | {"index_n_heads": 64},
     "sparse attention with index heads of its own (index_n_heads)"),
    ("DeepSeek-V4-Flash", "DeepseekV4ForCausalLM", {"compress_ratios": [0, 4, 128, 4]},
     "attention that differs from layer to layer"),
    ("Qwen3.5-35B-A3B", "Qwen3_5MoeForConditionalGeneration",
     {"text_config": _BASE | {"layer_types": ["linear_attention"] * 3 + ["full_attention"],
                              "linear_num_key_heads": 16}}, "linear-attention layers"),
    ("Gemma-4-26B-A4B", "Gemma4ForConditionalGeneration",
     {"text_config": _BASE | {"global_head_dim": 512}}, "two shapes of attention"),
    ("Llama-4-Scout", "Llama4ForConditionalGeneration",
     {"text_config": _BASE | {"intermediate_size_mlp": 1024, "interleave_moe_layer_step": 1}},
     "two MLP widths"),
    ("Kimi-K3", "KimiK3ForCausalLM", {"linear_attn_config": {"kda_layers": [1, 2]},
                                      "moe_latent_size": 64}, "linear-attention layers"),
    ("MiMo-V2-Flash", "MiMoV2FlashForCausalLM", {"hybrid_layer_pattern": [0, 1, 1, 1],
                                                 "swa_num_attention_heads": 8},
     "windowed layers with heads of their own"),
    ("Nemotron-3-Nano", "NemotronHForCausalLM", {"hybrid_override_pattern": "ME*E"},
     "a pattern of Mamba, attention and MLP blocks"),
    ("Nemotron-H-56B", "NemotronHForCausalLM",
     {"hybrid_override_pattern": "M-*-", "time_step_limit": [0.0, float("inf")]}, "Mamba"),
    ("Llama-3.3-Nemotron-Super-49B", "DeciLMForCausalLM",
     {"block_configs": [{"attention": {"no_op": True}}]}, "a shape of its own for each layer"),
    ("MiniMax-M3", "MiniMaxM3ForCausalLM", {"moe_layer_freq": [0, 1, 1, 1]},
     "expert layers by a list"),
    ("GLM-5", "GlmMoeDsaForCausalLM", _MLA | {"index_n_heads": 32}, "sparse attention"),
    ("Step-3.7-Flash", "Step3p7ForCausalLM", {"sliding_window": 512}, "use one of: Llama"),
]  # fmt: skip


def saved(folder: Path, data: dict[str, Any]) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(data, indent=1))
    return file


@pytest.mark.parametrize(("name", "data", "parameters"), COUNTED, ids=[one[0] for one in COUNTED])
def test_parameters_are_those_counted_by_hand(
    name: str, data: dict[str, Any], parameters: int, tmp_path: Path
) -> None:
    assert total_parameters(load_model(saved(tmp_path, data))) == parameters


def test_a_prediction_layer_is_counted_beside_the_model(tmp_path: Path) -> None:
    data = _MLA | {"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1}
    model = load_model(saved(tmp_path, data))

    assert isinstance(model, ModelSpec)
    assert model.mtp_layers == 1


@pytest.mark.parametrize(
    ("name", "architecture", "data", "words"), REFUSED, ids=[one[0] for one in REFUSED]
)
def test_layers_that_are_not_held_are_refused_by_name(
    name: str, architecture: str, data: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, {"architectures": [architecture]} | (
        data if "text_config" in data else _BASE | data))  # fmt: skip

    with pytest.raises(SpecError) as error:
        load_model(file)

    [problem] = error.value.problems
    assert words in problem
    assert re.search(r"config\.json:\d+: (architectures|model_type): ", problem)


@pytest.mark.parametrize("field", ["block_configs", "layers_block_type"])
def test_a_known_name_does_not_hide_other_layers(field: str, tmp_path: Path) -> None:
    data = _BASE | {"architectures": ["LlamaForCausalLM"], field: ["attention", "mamba"]}

    with pytest.raises(SpecError, match=rf"config\.json:\d+: {field}: .* is not read"):
        load_model(saved(tmp_path, data))
