import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.model.parameters import total_parameters
from planner.spec.files import data_path
from planner.spec.huggingface import ARCHITECTURES, load_model, model_names
from planner.spec.model import MLASpec

SHIPPED = data_path("profiles") / "models"

# name, parameters as published or counted from the checkpoint
PUBLISHED = [
    ("llama-2-7b", 6_738_415_616),
    ("llama-3-8b", 8_030_261_248),
    ("llama-3-70b", 70_553_706_496),
    ("llama-3.1-405b", 405_853_388_800),
    ("llama-3.2-1b", 1_235_814_400),
    ("mistral-7b", 7_241_732_096),
    ("qwen2-7b", 7_615_616_512),
    ("qwen2.5-72b", 72_706_203_648),
    ("qwen3-8b", 8_190_735_360),
    ("qwen3-30b-a3b", 30_532_122_624),
    ("qwen3-235b-a22b", 235_093_634_560),
    ("mixtral-8x7b", 46_702_792_704),
    ("mixtral-8x22b", 140_620_634_112),
    ("qwen1.5-moe-a2.7b", 14_315_784_192),
    ("deepseek-v2-lite", 15_706_484_224),
    ("deepseek-v2", 235_741_434_880),
    ("deepseek-v3", 671_026_404_352),
    ("gpt2", 124_439_808),
    ("gpt-neox-20b", 20_554_567_680),
]


def config(tmp_path: Path, name: str, remove: Sequence[str] = (), **changes: Any) -> Path:
    data = json.loads((SHIPPED / f"{name}.json").read_text()) | changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in data.items() if k not in remove}, indent=2))
    return path


def refused(path: Path) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert all(str(path) in problem for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    assert total_parameters(load_model(name)) == parameters


def test_all_shipped_models_read_and_every_family_ships() -> None:
    used = {json.loads(path.read_text())["architectures"][0] for path in SHIPPED.glob("*.json")}

    assert [load_model(name).name for name in model_names()] == list(model_names())
    assert used == set(ARCHITECTURES)
    assert {"tiny-llama", "gpt3-175b"} <= set(model_names())


def test_every_shipped_model_names_its_source() -> None:
    for path in SHIPPED.glob("*.json"):
        assert json.loads(path.read_text())["_source"]


def test_fields_of_a_dense_model() -> None:
    model = load_model("qwen2-7b")

    assert (model.layers, model.hidden, model.heads, model.kv_heads) == (28, 3584, 28, 4)
    assert (model.head_dim, model.ffn_hidden, model.vocab) == (128, 18944, 152064)
    assert model.qkv_bias
    assert not model.attention_out_bias
    assert model.sliding_window == 0
    assert load_model("mistral-7b").sliding_window == 4096


def test_fields_of_gpt() -> None:
    model = load_model("gpt3-175b")

    assert model.ffn_hidden == 4 * model.hidden == 49152
    assert (model.positions, model.tied_embeddings, model.gated_mlp) == (2048, True, False)
    assert model.norm_bias
    assert model.mlp_bias
    assert load_model("gpt-neox-20b").parallel_block


@pytest.mark.parametrize(
    ("kinds", "window", "every"),
    [
        (None, 128, 2),
        (["full_attention"] * 3, 0, 1),
        (["sliding_attention"] * 3, 128, 0),
        (["sliding_attention", "sliding_attention", "full_attention"] * 2, 128, 3),
    ],
)
def test_layers_of_gpt_oss_with_a_window(
    tmp_path: Path, kinds: list[str] | None, window: int, every: int
) -> None:
    model = load_model(config(tmp_path, "gpt-oss-120b", layer_types=kinds))

    assert (model.sliding_window, model.full_attention_every) == (window, every)
    assert model.attention_sinks
    assert model.moe is not None
    assert (model.moe.experts, model.moe.top_k, model.moe.expert_bias) == (128, 4, True)


def test_groups_of_the_router() -> None:
    limits = {}
    for name in ("deepseek-v3", "kimi-k2", "deepseek-v2-lite"):
        moe = load_model(name).moe
        assert moe is not None
        limits[name] = (moe.groups, moe.top_groups)

    assert limits == {"deepseek-v3": (8, 4), "kimi-k2": (1, 1), "deepseek-v2-lite": (1, 1)}


def test_fields_of_deepseek() -> None:
    model = load_model("deepseek-v3")
    latent = MLASpec(
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )

    small = load_model("deepseek-v2-lite")

    assert model.mla == latent
    assert small.mla is not None
    assert model.moe is not None
    assert small.mla.q_lora_rank == 0
    assert (model.moe.experts, model.moe.top_k, model.moe.shared_ffn_hidden) == (256, 8, 2048)
    assert model.moe_layers == 58
    assert not model.is_moe_layer(2)
    assert model.is_moe_layer(3)
    assert model.mtp_layers == 1


def test_dense_layers_among_experts(tmp_path: Path) -> None:
    path = config(tmp_path, "qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[3, 5])

    model = load_model(path)

    assert [layer for layer in range(10) if model.is_moe_layer(layer)] == [1, 7, 9]


def test_deepseek_counts_its_steps_from_layer_zero(tmp_path: Path) -> None:
    model = load_model(config(tmp_path, "deepseek-v2-lite", moe_layer_freq=2))

    assert [layer for layer in range(7) if model.is_moe_layer(layer)] == [2, 4, 6]


def test_qwen_without_experts_is_dense(tmp_path: Path) -> None:
    assert load_model(config(tmp_path, "qwen3-30b-a3b", num_experts=0)).moe is None


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"use_sliding_window": True, "max_window_layers": 0}, 131072),
        ({"use_sliding_window": True, "max_window_layers": 14}, 0),
        ({"use_sliding_window": False}, 0),
    ],
)
def test_window_only_if_every_layer_has_one(
    tmp_path: Path, changes: dict[str, Any], window: int
) -> None:
    assert load_model(config(tmp_path, "qwen2-7b", **changes)).sliding_window == window


def test_folder_and_file_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    shutil.copy(SHIPPED / "llama-3-8b.json", folder / "config.json")

    model = load_model(folder)

    assert model == load_model(folder / "config.json")
    assert model.name == "my-model"
    assert model.model_copy(update={"name": "llama-3-8b"}) == load_model("llama-3-8b")


def test_a_folder_does_not_hide_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)

    assert load_model("gpt2").layers == 12


def test_model_type_stands_in_for_architectures(tmp_path: Path) -> None:
    path = config(tmp_path, "llama-3-8b", remove=["architectures"])

    assert load_model(path).layers == 32


def test_text_config_is_read(tmp_path: Path) -> None:
    inner = json.loads((SHIPPED / "mistral-7b.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["Vision"], "text_config": inner}))

    assert load_model(path).kv_heads == 8


def test_error_inside_text_config_has_its_line(tmp_path: Path) -> None:
    inner = json.loads((SHIPPED / "mistral-7b.json").read_text()) | {"num_hidden_layers": -1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"text_config": inner}, indent=1))

    (problem,) = refused(path)

    line = path.read_text().splitlines()[int(problem.split(":")[1]) - 1]
    assert "num_hidden_layers" in line
    assert "-1 is not accepted; write a number greater than 0" in problem


def test_remote_code_is_read_as_numbers(tmp_path: Path) -> None:
    auto = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}

    assert load_model(config(tmp_path, "deepseek-v3", auto_map=auto)).layers == 61


def test_own_record_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(load_model("qwen3-8b").model_dump_json())

    assert load_model(path) == load_model("qwen3-8b")


# shipped model, changed fields, what the message must contain
BAD = [
    ("llama-3-8b", {"architectures": ["FooForCausalLM"]}, "architectures: 'FooForCausalLM' is not"),
    ("llama-3-8b", {"architectures": ["FooForCausalLM"]}, "use one of: LlamaForCausalLM, Mistral"),
    ("llama-3-8b", {"architectures": [], "model_type": "foo"}, "model_type: 'foo' is not supporte"),
    ("llama-3-8b", {"hidden_size": -1}, "hidden_size: -1 is not accepted; write a number greater"),
    ("llama-3-8b", {"hidden_size": "big"}, "hidden_size: 'big' is not accepted; write a whole num"),
    (
        "llama-3-8b",
        {"hidden_size": 4097},
        "4097 is not a multiple of 32 heads; give head_dim, or a",
    ),
    ("llama-3-8b", {"hidden_size": 4097}, "a multiple such as 4128"),
    ("llama-3-8b", {"num_key_value_heads": 5}, "num_key_value_heads: 5 does not divide 32 heads;"),
    ("llama-3-8b", {"num_key_value_heads": 5}, "use one of 1, 2, 4, 8, 16, 32"),
    ("llama-3-8b", {"intermediate_size": None}, "intermediate_size: missing; add it"),
    (
        "llama-3-8b",
        {"tie_word_embeddings": "maybe"},
        "'maybe' is not accepted; write true or false",
    ),
    ("gpt2", {"n_layer": 0}, "n_layer: 0 is not accepted; write a number greater than 0"),
    ("mixtral-8x7b", {"num_local_experts": None}, "num_local_experts: missing; add it"),
    (
        "mixtral-8x7b",
        {"num_local_experts": 0},
        "num_local_experts: 0 is not accepted; write a number",
    ),
    (
        "mixtral-8x7b",
        {"num_experts_per_tok": 9},
        "num_experts_per_tok: 9 is too many; use at most 8",
    ),
    ("qwen3-30b-a3b", {"moe_intermediate_size": None}, "moe_intermediate_size: missing; add it"),
    ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank: missing; add it"),
    ("deepseek-v3", {"first_k_dense_replace": None}, "first_k_dense_replace: missing; add it"),
]


@pytest.mark.parametrize(("name", "changes", "said"), BAD)
def test_bad_configs(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    problems = refused(config(tmp_path, name, **changes))

    assert any(said in problem for problem in problems), problems


def test_all_violations_of_a_config_at_once(tmp_path: Path) -> None:
    path = config(
        tmp_path, "deepseek-v3", remove=["q_lora_rank", "v_head_dim"], n_shared_experts=None
    )

    fields = [problem.split(": ")[1] for problem in refused(path)]

    assert sorted(fields) == ["n_shared_experts", "q_lora_rank", "v_head_dim"]


def test_line_of_the_wrong_field(tmp_path: Path) -> None:
    path = config(tmp_path, "llama-3-8b", num_attention_heads=31)

    for problem in refused(path):
        line = path.read_text().splitlines()[int(problem.split(":")[1]) - 1]
        assert problem.split(": ")[1] in line


def test_truncated_config(tmp_path: Path) -> None:
    path = config(tmp_path, "llama-3-8b")
    path.write_text(path.read_text()[:200])

    (problem,) = refused(path)

    assert "the file is cut short; copy it again" in problem


def test_no_architecture_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"vocab_size": 5}')

    assert "model_type: missing; use one of: llama, mistral" in refused(path)[0]


def test_unknown_name_suggests() -> None:
    with pytest.raises(SpecError, match="did you mean 'llama-3-8b'"):
        load_model("llama3-8b")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json: no such file"):
        load_model(tmp_path)
