"""The decoder against transformers' own models: the same weights give the same logits."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.model.parameters import total_parameters
from planner.spec.model import ModelSpec
from tests.formats.plans import deepseek, gpt, llama, mixtral, neox
from tests.launcher.reference import whole_model

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # logits are near 1; two orders of the same fp32 sums differ by 2e-6
_SHARED = {"vocab_size": 61, "hidden_size": 32, "max_position_embeddings": 16}
_LLAMA_SIZES = _SHARED | {
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "rms_norm_eps": 1e-5,
}
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers": "model.layers",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
# configuration class, its extra settings, our model
LLAMA_LIKE: list[tuple[str, dict[str, Any], ModelSpec]] = [
    ("LlamaConfig", {}, llama()),
    ("LlamaConfig", {"tie_word_embeddings": True}, llama(tied_embeddings=True)),
    ("LlamaConfig", {"mlp_bias": True}, llama(mlp_bias=True)),
    ("Qwen2Config", {}, llama(qkv_bias=True)),
    ("Qwen3Config", {}, llama(qk_norm=True)),
]


def foreign(config: str, settings: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = getattr(transformers, config)(**settings, attn_implementation="eager")
        return transformers.AutoModelForCausalLM.from_config(loaded).eval()  # type: ignore[no-any-return]


def with_biases(spec: ModelSpec) -> nn.Module:
    """Biases start at 0, where a misplaced one would not show."""
    model = whole_model(spec)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def tokens() -> Tensor:
    return torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(1))


def llama_name(name: str) -> str:
    return ".".join(_LLAMA_NAMES.get(part, part) for part in name.split("."))


@pytest.mark.parametrize(("config", "settings", "spec"), LLAMA_LIKE)
def test_llama_family_gives_the_same_logits(
    config: str, settings: dict[str, Any], spec: ModelSpec
) -> None:
    theirs, ours = foreign(config, _LLAMA_SIZES | settings), with_biases(spec)
    weights = {llama_name(name): value for name, value in ours.state_dict().items()}
    missing = theirs.load_state_dict(weights, strict=False)

    difference = (theirs(tokens()).logits - ours(tokens())).abs().max()

    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert difference < TOLERANCE


def test_gpt2_gives_the_same_logits() -> None:
    spec = gpt(ffn_hidden=128)
    settings = {"n_embd": 32, "n_layer": 4, "n_head": 8, "n_positions": 16, "vocab_size": 61}
    theirs = foreign("GPT2Config", settings | {"activation_function": "gelu"})
    ours = with_biases(spec)
    with torch.no_grad():
        for name, value in gpt2_weights(ours).items():
            theirs.get_parameter(f"transformer.{name}").copy_(value)

    difference = (theirs(tokens()).logits - ours(tokens())).abs().max()

    assert difference < TOLERANCE


def gpt2_weights(model: nn.Module) -> dict[str, Tensor]:
    """GPT-2 stores transposed matrices, and query, key and value as one."""
    own: dict[str, Tensor] = dict(model.named_parameters())
    found = {"wte.weight": own["embedding.weight"], "wpe.weight": own["positions.weight"]}
    for kind in ("weight", "bias"):
        found[f"ln_f.{kind}"] = own[f"norm.{kind}"]
        for i in range(4):
            parts = [own[f"layers.{i}.attention.{p}.{kind}"] for p in ("query", "key", "value")]
            found[f"h.{i}.attn.c_attn.{kind}"] = torch.cat(parts).t()
            found[f"h.{i}.attn.c_proj.{kind}"] = own[f"layers.{i}.attention.out.{kind}"].t()
            found[f"h.{i}.mlp.c_fc.{kind}"] = own[f"layers.{i}.mlp.up.{kind}"].t()
            found[f"h.{i}.mlp.c_proj.{kind}"] = own[f"layers.{i}.mlp.down.{kind}"].t()
            found[f"h.{i}.ln_1.{kind}"] = own[f"layers.{i}.attention_norm.{kind}"]
            found[f"h.{i}.ln_2.{kind}"] = own[f"layers.{i}.mlp_norm.{kind}"]
    return found


# configuration class, its extra settings, our model, names of the experts' module there
EXPERTS: list[tuple[str, dict[str, Any], ModelSpec]] = [
    ("MixtralConfig", {"intermediate_size": 32, "num_local_experts": 8, "rope_theta": 1e4},
     mixtral()),
    ("Qwen3MoeConfig", {"moe_intermediate_size": 32, "num_experts": 8, "norm_topk_prob": True},
     mixtral(qk_norm=True)),
    ("Qwen2MoeConfig", {"moe_intermediate_size": 32, "num_experts": 8, "norm_topk_prob": True,
                        "shared_expert_intermediate_size": 24, "mlp_only_layers": [2]},
     mixtral({"shared_ffn_hidden": 24, "shared_gate": True, "dense_layers": (2,)}, qkv_bias=True)),
]  # fmt: skip
_EXPERT_NAMES = {"router": "gate", "shared": "shared_expert", "shared_gate": "shared_expert_gate"}


def expert_weights(model: nn.Module) -> dict[str, Tensor]:
    """There gate and up of all experts are one tensor."""
    own = dict(model.state_dict())
    found: dict[str, Tensor] = {}
    for name, value in own.items():
        if ".mlp.experts." not in name:
            parts = (_EXPERT_NAMES.get(part, part) for part in llama_name(name).split("."))
            found[".".join(parts)] = value
        elif name.endswith("up"):
            both = torch.cat((own[name.removesuffix("up") + "gate"], value), 1)
            found[f"model.{name.removesuffix('up')}gate_up_proj"] = both
        elif name.endswith("down"):
            found[f"model.{name}_proj"] = value
    return found


@pytest.mark.parametrize(("config", "settings", "spec"), EXPERTS)
def test_experts_give_the_same_logits(
    config: str, settings: dict[str, Any], spec: ModelSpec
) -> None:
    theirs = foreign(config, _LLAMA_SIZES | {"num_experts_per_tok": 2} | settings)
    ours = with_biases(spec)
    missing = theirs.load_state_dict(expert_weights(ours), strict=False)

    difference = (theirs(tokens()).logits - ours(tokens())).abs().max()

    assert (missing.unexpected_keys, missing.missing_keys) == ([], [])
    assert difference < TOLERANCE


_LATENT_NAMES = {
    "query_down": "q_a_proj",
    "query_norm": "q_a_layernorm",
    "query_up": "q_b_proj",
    "key_value_down": "kv_a_proj_with_mqa",
    "key_value_norm": "kv_a_layernorm",
    "key_value_up": "kv_b_proj",
}


@pytest.mark.parametrize("q_lora_rank", [24, 0])
def test_latent_attention_gives_the_same_logits(q_lora_rank: int) -> None:
    spec = deepseek({"q_lora_rank": q_lora_rank}, moe=None, attention_out_bias=True, qkv_bias=True)
    assert spec.mla is not None
    latent = spec.mla.model_dump() | {"q_lora_rank": q_lora_rank or None}
    settings = _LLAMA_SIZES | latent | {"num_key_value_heads": 8, "attention_bias": True}
    # every layer dense, and halves of a head turned, not neighbours
    settings |= {"first_k_dense_replace": 4, "rope_interleave": False}
    del settings["head_dim"]
    theirs, ours = foreign("DeepseekV3Config", settings), with_biases(spec)
    for module in theirs.modules():
        if hasattr(module, "variance_epsilon"):  # their latent norms ignore the configuration
            module.variance_epsilon = _LLAMA_SIZES["rms_norm_eps"]
    names = _LATENT_NAMES if q_lora_rank else _LATENT_NAMES | {"query_up": "q_proj"}
    weights = {
        ".".join(names.get(part, _LLAMA_NAMES.get(part, part)) for part in name.split(".")): value
        for name, value in ours.state_dict().items()
    }
    missing = theirs.load_state_dict(weights, strict=False)

    difference = (theirs(tokens()).logits - ours(tokens())).abs().max()

    assert (missing.unexpected_keys, missing.missing_keys) == ([], [])
    assert difference < TOLERANCE


COUNTED = [
    llama(),
    gpt(),
    neox(),
    llama(mlp_bias=True, norm_bias=True),
    mixtral(),
    mixtral({"shared_ffn_hidden": 24, "shared_gate": True, "router_bias": True, "every": 2}),
    mixtral(gated_mlp=False),
    deepseek(),
    deepseek({"q_lora_rank": 0}, qkv_bias=True, attention_out_bias=True),
]


@pytest.mark.parametrize("spec", COUNTED)
def test_parameters_are_those_the_planner_counts(spec: ModelSpec) -> None:
    built = sum(parameter.numel() for parameter in whole_model(spec).parameters())

    assert built == total_parameters(spec)
