"""GPT-NeoX's YAML: names either way, its defaults, DeepSpeed's part, its rules."""

from pathlib import Path
from typing import Any

import pytest

from planner.formats.detect import detect, read_foreign
from planner.formats.settle import settle
from planner.layout.layout import Recompute, Shard
from planner.model.parameters import total_parameters

# the sizes of GPT-NeoX-20B, on the 96 GPUs that it was trained on
TWENTY: dict[str, Any] = {
    "pipe-parallel-size": 4, "model-parallel-size": 2, "num-layers": 44, "hidden-size": 6144,
    "num-attention-heads": 64, "seq-length": 2048, "max-position-embeddings": 2048,
    "norm": "layernorm", "pos-emb": "rotary", "rotary_pct": 0.25, "no-weight-tying": "true",
    "gpt_j_residual": "true", "padded_vocab_size": 50432, "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 32, "checkpoint-activations": "True", "checkpoint-num-layers": 1,
    "hidden-dropout": 0, "attention-dropout": 0, "zero_optimization": "{'stage': 1, }",
    "fp16": "{'enabled': true, 'loss_scale': 0, }", "global_num_gpus": 96,
}  # fmt: skip


def text_of(**changes: Any) -> str:
    """Return a file as they are written: like JSON, with comments and trailing commas."""
    settings = TWENTY | {name.replace("_", "-") if name.replace("_", "-") in TWENTY else name: value
                         for name, value in changes.items()}  # fmt: skip
    lines = [f'  "{name}": {value},' for name, value in settings.items() if value is not None]
    return "# a model\n{\n  # layout\n" + "\n".join(lines) + "\n}\n"


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "20b.yml"
    file.write_text(text_of(**changes))
    return file


def test_the_published_model_is_read(tmp_path: Path) -> None:
    setup = read_foreign(written(tmp_path))
    settled = settle(setup)

    assert setup.framework == "neox"
    assert (setup.unknown, setup.silent, settled.problems) == ((), (), ())
    assert setup.model is not None
    # the model card of EleutherAI/gpt-neox-20b
    assert total_parameters(setup.model) == 20_554_567_680
    layout = settled.layout
    assert layout is not None
    assert (layout.tp, layout.pp, layout.dp, layout.micro_batch) == (2, 4, 12, 4)
    assert (layout.shard, layout.recompute) == (Shard.zero(1, 12), Recompute.FULL)
    assert settled.global_batch == 4 * 32 * 12  # 3.15M tokens, as the paper says
    assert (setup.precision, setup.seq_len) == ("fp16", 2048)


def test_names_with_underscores_are_the_same(tmp_path: Path) -> None:
    dashed = read_foreign(written(tmp_path))
    (tmp_path / "20b.yml").write_text(text_of().replace("-size", "_size").replace("num-", "num_"))

    other = read_foreign(tmp_path / "20b.yml")

    assert (other.model, other.tp, other.pp) == (dashed.model, dashed.tp, dashed.pp)


# settings, fields of the record, what breaks or is said
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"model_parallel_size": 3}, {"tp": 3}, "X3: tp=3 does not divide heads=64; try tp 2 or 4"),
    ({"global_num_gpus": 100}, {"gpus": 100}, "X1: GPUs=100 is not a multiple"),
    ({"seq_length": 4096}, {"seq_len": 4096}, "X5: seq_length=4096 is more than"),
    ({"zero_optimization": "{'stage': 2}"}, {"zero": 2}, "D3: ZeRO-2 excludes a pipeline (pp=4)"),
    ({"train_batch_size": 64}, {"global_batch": 64}, "D1: train_batch_size=64 is not"),
    ({"num_attention_heads": 60}, {}, "X2: num_attention_heads=60 does not divide"),
    ({"pipe_parallel_size": 48, "global_num_gpus": 96}, {"pp": 48}, "X6: pp=48 is more than"),
    ({"bf16": "{'enabled': true}", "fp16": None}, {"precision": "bf16"}, ""),
    ({"pipe_parallel_size": 0, "zero_optimization": "{'stage': 3, 'offload_param': "
      "{'device': 'cpu'}}"}, {"pp": 1, "zero": 3, "offload_weights": True}, ""),
    ({"sequence_parallel": "true"}, {"sequence_parallel": True}, ""),
    ({"precision": "bfloat16", "fp16": None}, {"precision": "bf16"}, ""),
    ({"fp16": None}, {"precision": "fp16"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "fields", "said"), CASES)
def test_settings_and_rules(
    changes: dict[str, Any], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    setup = read_foreign(written(tmp_path, **changes))
    problems = " ".join(settle(setup).problems)

    assert {name: getattr(setup, name) for name in fields} == fields
    assert (said in problems) if said else problems == ""


def test_what_is_not_priced_is_said(tmp_path: Path) -> None:
    setup = read_foreign(written(
        tmp_path, optimizer="{'type': 'Lion', 'params': {'lr': 1.0e-4}}", checkpoint_num_layers=2,
        padded_vocab_size=None, num_layers=46, made_up=1,
    ))  # fmt: skip

    assert set(setup.unpriced) == {
        "optimizer lion (estimated as AdamW)", "groups of recomputed layers"
    }  # fmt: skip
    assert "deals 46 layers over 4 stages" in " ".join(setup.assumed)
    assert setup.open_fields == ("vocab",)
    assert [knob.name for knob in setup.unknown] == ["made_up"]


def test_other_megatron_yaml_is_not_taken_for_it() -> None:
    nemo = "model:\n  tensor_model_parallel_size: 2\n  pipeline_model_parallel_size: 1\n"
    assert detect(Path("a.yaml"), nemo) == "nemo"
    assert detect(Path("a.yml"), text_of()) == "neox"
