"""From the cells of a row to model, job and layout: what is read, assumed and refused."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import SpecError
from planner.layout.layout import Recompute, Shard
from planner.spec.huggingface import load_model
from planner.validate.cases import Case, read_case, read_rows
from planner.validate.cells import Skip, note, number
from tests.properties.strategies import quick

# a GPT-3 of 175 billion parameters, everything stated
GPT: dict[str, str] = {
    "id": "made-0001",
    "model": "gpt3-175b-padded",
    "n_layers": "96",
    "hidden": "12288",
    "ffn_hidden": "49152",
    "n_heads": "96",
    "n_kv_heads": "96",
    "vocab": "51200",
    "tied_embeddings": "1",
    "gated_mlp": "0",
    "gpu": "A100-SXM-80GB",
    "n_gpus": "128",
    "gpus_per_node": "8",
    "interconnect_intra": "NVLink3 NVSwitch",
    "interconnect_inter": "8x200Gb/s RoCE",
    "precision": "fp16",
    "framework": "Megatron-LM",
    "tp": "8",
    "sp": "0",
    "cp": "1",
    "ep": "1",
    "pp": "8",
    "vpp": "1",
    "dp": "2",
    "zero_stage": "0",
    "recompute": "full",
    "mbs": "1",
    "gbs": "64",
    "seq_len": "2048",
    "notes": "",
}
MIXTURE = GPT | {
    "n_layers": "32",
    "hidden": "4096",
    "ffn_hidden": "14336",
    "n_heads": "32",
    "n_kv_heads": "8",
    "gated_mlp": "1",
    "n_experts": "8",
    "top_k": "2",
    "moe_ffn_hidden": "14336",
    "framework": "Megatron-Core",
    "tp": "2",
    "pp": "2",
    "ep": "4",
    "etp": "1",
    "sp": "1",
    "dp": "32",
}


def gpt(**cells: str) -> dict[str, str]:
    return GPT | cells


def without(*columns: str, **cells: str) -> dict[str, str]:
    return gpt(**dict.fromkeys(columns, ""), **cells)


def reason(row: dict[str, str]) -> str:
    with pytest.raises(Skip) as skipped:
        read_case(row)
    return str(skipped.value)


def read_all(row: dict[str, str]) -> Case:
    found = read_case(row)
    assert found.assumed == ()
    return found


def test_a_row_that_states_everything_assumes_nothing() -> None:
    found = read_all(GPT)

    assert (found.layout.tp, found.layout.pp, found.layout.dp) == (8, 8, 2)
    assert found.layout.recompute is Recompute.FULL
    assert (found.job.global_batch, found.job.seq_len, found.job.precision) == (64, 2048, "fp16")
    assert (found.cluster.nodes, found.cluster.gpu.name) == (16, "A100-SXM-80GB")


def test_the_model_of_a_row() -> None:
    model = read_all(GPT).model

    assert (model.layers, model.hidden, model.ffn_hidden) == (96, 12288, 49152)
    assert (model.heads, model.kv_heads, model.head_dim, model.vocab) == (96, 96, 128, 51200)
    assert (model.tied_embeddings, model.gated_mlp, model.moe) == (True, False, None)


def test_a_plain_mlp_is_a_gpt_with_positions_and_biases() -> None:
    plain, gated = read_case(GPT).model, read_case(gpt(gated_mlp="1")).model

    assert (plain.positions, plain.norm_bias, plain.mlp_bias) == (2048, True, True)
    assert (gated.positions, gated.norm_bias, gated.mlp_bias) == (0, False, False)


def test_the_experts_of_a_row() -> None:
    found = read_all(MIXTURE)
    moe = found.model.moe
    assert moe is not None

    assert (moe.experts, moe.top_k, moe.ffn_hidden, moe.first_layer) == (8, 2, 14336, 0)
    assert (found.layout.ep, found.layout.etp, found.layout.sequence_parallel) == (4, 1, True)


def test_layers_without_experts_come_first() -> None:
    moe = read_case(MIXTURE | {"n_moe_layers": "30", "shared_expert_ffn": "2048"}).model.moe
    assert moe is not None

    assert (moe.first_layer, moe.shared_ffn_hidden) == (2, 2048)


# empty cell, framework, what is assumed, where it ends up
ASSUMED: list[tuple[str, str, str, Any]] = [
    ("zero_stage", "Megatron-LM", "zero_stage=0", lambda c: c.layout.shard == Shard()),
    ("zero_stage", "Megatron-Core", "zero_stage=1", lambda c: c.layout.shard == Shard(1, 1, 2)),
    ("zero_stage", "llm-foundry (FSDP)", "zero_stage=3", lambda c: c.layout.shard.weights == 2),
    ("zero_stage", "DeepSpeed", "zero_stage=2", lambda c: c.layout.shard == Shard(1, 2, 2)),
    ("recompute", "Megatron-LM", "recompute=none", lambda c: c.layout.recompute == "none"),
    ("recompute", "torchtitan", "recompute=selective", lambda c: c.layout.recompute == "selective"),
    ("sp", "Megatron-LM", "sp=0", lambda c: not c.layout.sequence_parallel),
    ("sp", "NeMo", "sp=1", lambda c: c.layout.sequence_parallel),
    ("mbs", "NeMo", "mbs=1", lambda c: c.layout.micro_batch == 1),
    ("cp", "NeMo", "cp=1", lambda c: c.layout.cp == 1),
    ("vpp", "NeMo", "vpp=1", lambda c: c.layout.vpp == 1),
    ("ep", "NeMo", "ep=1", lambda c: c.layout.ep == 1),
    ("gpus_per_node", "NeMo", "gpus_per_node=8", lambda c: c.cluster.gpus_per_node == 8),
    ("n_heads", "NeMo", "n_heads=96", lambda c: c.model.head_dim == 128),
    ("n_kv_heads", "NeMo", "n_kv_heads=96", lambda c: c.model.kv_heads == 96),
    ("ffn_hidden", "NeMo", "ffn_hidden=49152", lambda c: c.model.ffn_hidden == 49152),
    ("vocab", "NeMo", "vocab=51200", lambda c: c.model.vocab == 51200),
    ("tied_embeddings", "NeMo", "tied_embeddings=1", lambda c: c.model.tied_embeddings),
    ("gated_mlp", "NeMo", "gated_mlp=1", lambda c: c.model.gated_mlp),
]


@pytest.mark.parametrize(
    ("column", "framework", "assumed", "holds"), ASSUMED, ids=lambda value: str(value)[:20]
)
def test_an_empty_cell_takes_a_default_and_says_so(
    column: str, framework: str, assumed: str, holds: Any
) -> None:
    found = read_case(without(column, framework=framework))

    assert found.assumed == (assumed,)
    assert holds(found)


@given(st.sets(st.sampled_from([case[0] for case in ASSUMED]), max_size=6))
@quick
def test_as_many_assumptions_as_empty_cells(columns: set[str]) -> None:
    assumed = read_case(without(*columns)).assumed

    assert {text.partition("=")[0] for text in assumed} == columns
    assert len(assumed) == len(columns)


@given(st.sets(st.sampled_from(["zero_stage", "recompute", "mbs", "cp", "vpp", "ep", "vocab"])))
@quick
def test_to_state_what_would_be_assumed_changes_nothing(columns: set[str]) -> None:
    silent = read_case(without(*columns))
    stated = read_case(gpt(**dict(text.split("=") for text in silent.assumed)))

    assert stated.assumed == ()
    assert (stated.layout, stated.model, stated.job) == (silent.layout, silent.model, silent.job)


def test_without_experts_nothing_is_assumed_about_them() -> None:
    assert read_all(without("n_experts", "top_k", "etp", "n_moe_layers")).model.moe is None


def test_a_single_tensor_rank_has_no_sequence_parallelism_to_assume() -> None:
    found = read_case(without("sp", tp="1", pp="64", framework="NeMo"))

    assert found.assumed == ()
    assert not found.layout.sequence_parallel


def test_expert_tensor_parallelism_follows_tp_unless_experts_are_spread() -> None:
    spread = read_case(MIXTURE | {"etp": ""})
    whole = read_case(MIXTURE | {"etp": "", "ep": "1"})

    assert (spread.layout.etp, spread.assumed) == (1, ("etp=1",))
    assert (whole.layout.etp, whole.assumed) == (2, ("etp=2",))


def test_spread_experts_come_with_sequence_parallelism() -> None:
    assert read_case(MIXTURE | {"sp": "0"}).layout.sequence_parallel


# cells that contradict each other or cannot be expressed, and the reason given
REFUSED: list[tuple[dict[str, str], str]] = [
    ({"n_gpus": ""}, "n_gpus is not stated"),
    ({"n_gpus": "0"}, "n_gpus=0 is no whole number from 1 up"),
    ({"n_layers": "2.6"}, "n_layers=2.6 is no whole number from 1 up"),
    ({"zero_stage": "7"}, "zero_stage=7 does not exist"),
    ({"gbs": ""}, "gbs is not stated"),
    ({"seq_len": "unknown"}, "seq_len is not stated"),
    ({"n_layers": ""}, "n_layers is not stated"),
    ({"hidden": ""}, "hidden is not stated"),
    ({"tp": "", "pp": "", "dp": "", "zero_stage": ""}, "no layout is stated"),
    ({"n_gpus": "100"}, "the degrees do not multiply to the GPU count"),
    ({"n_gpus": "32"}, "the degrees do not multiply to the GPU count"),
    ({"tp": "-8"}, "tp=-8 is no whole number from 1 up"),
    ({"gbs": "63"}, "the global batch does not divide into micro-batches"),
    ({"mbs": "64"}, "the global batch does not divide into micro-batches"),
    ({"recompute": "per-op mask"}, "recompute 'per-op mask' cannot be expressed"),
    ({"tp": "mixed"}, "stages with different degrees cannot be expressed"),
    ({"notes": "kind=optimizer;optimizer_s=0.22"}, "it times an optimizer, not a step"),
    ({"offload": "somewhere"}, "offload is not estimated yet"),
    ({"offload": "activations-cpu: [moe_act]"}, "offload of moe_act alone cannot be expressed"),
    ({"attention_kind": "hybrid"}, "hybrid attention layers cannot be expressed"),
    ({"task": "qlora"}, "task qlora is not estimated yet"),
    ({"gpu": "TPU v5"}, "GPU 'TPU v5' is not shipped"),
    ({"n_kv_heads": "36"}, "contradiction: .*heads=96 is not a multiple of kv_heads=36"),
    ({"gpus_per_node": "40", "interconnect_intra": "NVL72"}, "contradiction: .*domain_gpus=72"),
    ({"n_experts": "4", "top_k": "8"}, "contradiction: .*top_k=8 exceeds experts=4"),
    ({"n_experts": "6", "ep": "3"}, "the expert grid does not divide the ranks of a stage"),
]


@pytest.mark.parametrize(("cells", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_skipped_with_the_reason(cells: dict[str, str], why: str) -> None:
    assert re.match(why, reason(gpt(**cells)))


@pytest.mark.parametrize(("cells", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_reason_is_a_sentence_for_a_person(cells: dict[str, str], why: str) -> None:
    text = reason(gpt(**cells))

    assert len(text) > 10
    assert "\n" not in text
    assert not re.search(r"Traceback|validation error|pydantic|<class|NoneType|object at", text)


@pytest.mark.parametrize("offload", ["", "none"])
@pytest.mark.parametrize("task", ["", "pretrain", "sft"])
def test_what_says_that_nothing_is_special_is_read(offload: str, task: str) -> None:
    assert read_all(gpt(offload=offload, task=task)) == read_case(GPT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fp16", "fp16"),
        ("", "bf16"),
        ("bf16/fp16 mixed", "bf16"),
        ("fp8-blockwise", "fp8_block"),
        ("mxfp8", "mxfp8"),
    ],
)
def test_precision_in_the_planners_words(text: str, expected: str) -> None:
    found = read_case(gpt(gpu="B200-SXM-180GB", precision=text))

    assert found.job.precision == expected


@pytest.mark.parametrize(
    ("cells", "modern"),
    [
        ({}, False),
        ({"gpu": "H100-SXM-80GB"}, True),
        ({"gpu": "GB200-NVL72-186GB", "gpus_per_node": "4"}, True),
        ({"gpu": "B300-SXM-288GB"}, True),
        ({"gpu": "V100-SXM-32GB"}, False),
        ({"gpu": "H100-SXM-80GB", "precision": "fp8"}, True),
        ({"gpu": "B200-SXM-180GB", "precision": "nvfp4"}, True),
        ({"cp": "2", "dp": "1"}, True),
        ({"n_experts": "8", "top_k": "2"}, True),
    ],
)
def test_megatron_lm_is_megatron_core_where_only_that_could_have_run(
    cells: dict[str, str], modern: bool
) -> None:
    assert read_case(gpt(**cells)).job.software.dropout != modern


@pytest.mark.parametrize(
    ("framework", "notes", "kind"),
    [
        ("Megatron-LM", "", "allocated"),
        ("nanotron", "", "reserved"),
        ("torchtitan", "", "reserved"),
        ("llm-foundry (FSDP)", "", "reserved"),
        ("nanotron", "read from nvidia-smi", "device"),
        ("Megatron-LM", "memory: nvidia-smi", "device"),
    ],
)
def test_which_memory_was_printed(framework: str, notes: str, kind: str) -> None:
    assert read_case(gpt(framework=framework, notes=notes)).memory_kind == kind


@given(st.text(max_size=30), st.randoms())
@quick
def test_the_id_and_the_order_of_cells_never_matter(name: str, shuffled: random.Random) -> None:
    cells = list(MIXTURE.items())
    shuffled.shuffle(cells)

    assert read_case(dict(cells) | {"id": name, "source": name}) == read_case(MIXTURE)


@pytest.mark.parametrize("column", ["step_time_s", "tokens_per_s_per_gpu", "mem_gib_peak_reported"])
def test_what_was_measured_is_never_read(column: str) -> None:
    assert read_case(gpt(**{column: "12.5"})) == read_case(GPT)


def test_a_framework_that_deals_blocks_has_uneven_stages() -> None:
    dealt = read_case(gpt(framework="nanotron", gated_mlp="1", vocab="250000")).split
    assert dealt is not None

    assert sum(dealt.layers) == 96
    assert dealt.layers[-1] < dealt.layers[0]
    assert read_case(gpt(framework="nanotron", pp="1", tp="8", dp="16")).split is None
    assert read_case(GPT).split is None


def test_golden_values_are_those_of_the_last_rank() -> None:
    assert read_case(gpt(notes="CI golden values, rank-0 logger")).memory_rank == 7
    assert read_case(GPT).memory_rank is None


@pytest.mark.parametrize("notes", ["", "kind=throughput;schedule=1F1B-I;sweep=a", "schedule=1F1B"])
def test_schedules_of_one_forward_one_backward_are_read(notes: str) -> None:
    assert read_case(gpt(notes=notes)).layout.pp == 8


@pytest.mark.parametrize(
    ("notes", "key", "value"),
    [
        ("kind=mfu;sweep=table2-512", "sweep", "table2-512"),
        ("kind=mfu; sweep=a b", "sweep", "a"),
        ("subkind=mfu", "kind", ""),
        ("", "kind", ""),
        ("kind=", "kind", ""),
    ],
)
def test_a_note_is_a_key_and_a_value(notes: str, key: str, value: str) -> None:
    assert note({"notes": notes}, key) == value


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8.0), ("1e3", 1000.0), (" 2.5 ", 2.5), ("", None), ("OOM", None)]
)
def test_a_number_or_none(text: str, value: float | None) -> None:
    assert number({"cell": text}, "cell") == value
    assert number({}, "cell") is None


def written(folder: Path, text: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(text)
    return path


def test_rows_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "id,gpu,n_gpus,framework,notes\na,A100,8,NeMo,\nb,H100,16,,x\n")

    assert read_rows(path) == [
        {"id": "a", "gpu": "A100", "n_gpus": "8", "framework": "NeMo", "notes": ""},
        {"id": "b", "gpu": "H100", "n_gpus": "16", "framework": "", "notes": "x"},
    ]


def test_short_and_long_lines_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    path = written(tmp_path, "id,gpu,n_gpus,framework\na,A100\nb,H100,8,NeMo,too,many\n")

    assert [row["framework"] for row in read_rows(path)] == ["", "NeMo"]
    assert all(set(row) == {"id", "gpu", "n_gpus", "framework"} for row in read_rows(path))


@pytest.mark.parametrize(
    ("text", "missing"),
    [("id,gpu\na,A100\n", "framework, n_gpus"), ("", "framework, gpu, id, n_gpus")],
)
def test_a_file_without_the_columns_says_which(tmp_path: Path, text: str, missing: str) -> None:
    with pytest.raises(SpecError, match=f"runs.csv:1: columns missing: {missing}"):
        read_rows(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.csv: cannot be read: No such file"):
        read_rows(tmp_path / "none.csv")


def test_a_very_long_cell_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, f"id,gpu,n_gpus,framework\na,A100,8,{'x' * 200_000}\n")

    assert len(read_rows(path)[0]["framework"]) == 200_000


@pytest.mark.parametrize(
    "cells",
    [
        {"tp": "0"},
        {"mbs": "0"},
        {"ep": "0"},
        {"gpus_per_node": "0"},
        {"n_gpus": "nan"},
        {"pp": "inf"},
    ],
    ids=str,
)
def test_an_impossible_number_is_skipped(cells: dict[str, str]) -> None:
    assert next(iter(cells)) in reason(gpt(**cells))


def test_a_schedule_that_cannot_be_expressed_is_skipped() -> None:
    assert "V-Half" in reason(gpt(notes="schedule=V-Half"))


@pytest.mark.parametrize(
    ("notes", "schedule"), [("schedule=ZB-1p", "zb_h1"), ("schedule=ZB-2p", "zb_2p"), ("", "")]
)
def test_zero_bubble_schedules_are_read(notes: str, schedule: str) -> None:
    assert read_case(gpt(notes=notes)).layout.schedule == schedule


def test_a_stated_data_parallel_degree_that_contradicts_is_skipped() -> None:
    assert "dp" in reason(gpt(dp="4"))


def test_latent_attention_is_that_of_deepseek() -> None:
    found = read_case(gpt(attention_kind="MLA"))

    assert found.model.mla is not None
    assert (found.model.mla.kv_lora_rank, found.model.head_dim) == (512, 192)
    assert "kv_lora_rank=512" in found.assumed


@pytest.mark.parametrize("column", ["precision", "interconnect_inter"])
def test_precision_and_network_are_assumptions_too(column: str) -> None:
    assert len(read_case(without(column)).assumed) == 1


@pytest.mark.parametrize("precision", ["int3", "fp8"])
def test_a_precision_that_the_gpu_lacks_is_skipped(precision: str) -> None:
    assert precision in reason(gpt(precision=precision))


def test_a_shipped_model_knows_what_rows_have_no_column_for() -> None:
    cells = GPT | {
        "model": "Qwen3-30B-A3B", "n_layers": "48", "hidden": "2048", "ffn_hidden": "6144",
        "n_heads": "32", "n_kv_heads": "4", "vocab": "151936", "gated_mlp": "1",
        "tied_embeddings": "0", "n_experts": "128", "top_k": "8", "moe_ffn_hidden": "768",
        "tp": "1", "pp": "1", "dp": "128", "gbs": "128", "ep": "8", "sp": "",
    }  # fmt: skip

    known, other = (read_case(cells | {"hidden": hidden}).model for hidden in ("2048", "4096"))

    assert known == load_model("qwen3-30b-a3b")
    assert (known.head_dim, known.qk_norm) == (128, True)
    assert (other.head_dim, other.qk_norm) == (
        128,
        False,
    )  # hidden / heads, as nothing else is said
    assert other.name == "Qwen3-30B-A3B"


MODULES = "expert_fc1 moe_act attn_norm mlp_norm qkv_linear core_attn attn_proj"


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("activations-cpu:40 layers", 40 / 95),
        ("activations-cpu:96 layers", 1.0),
        ("activations-cpu:25%", 0.25),
        ("activations-cpu", 1.0),
        (f"activations-cpu: [{MODULES}]", 1.0),
    ],
)
def test_offloaded_activations_are_a_fraction(text: str, fraction: float) -> None:
    offload = read_case(gpt(offload=text)).layout.offload

    assert offload.fraction == pytest.approx(fraction)
    assert offload.target == "host"


@pytest.mark.parametrize(
    ("cells", "optimizer"),
    [
        ({}, "adamw"),
        ({"notes": "sweep=a;8-bit Adam;kept for ranking"}, "adamw-8bit"),
        ({"model": "gpt3_moe_mcore_te_ep8_resume_torch_dist_dist_muon"}, "muon"),
        ({"notes": "trained by a team of Muonio"}, "adamw"),
    ],
)
def test_the_optimizer_that_a_run_speaks_of(cells: dict[str, str], optimizer: str) -> None:
    assert read_case(gpt(**cells)).job.optimizer == optimizer
