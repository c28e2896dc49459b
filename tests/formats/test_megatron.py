"""Megatron-LM arguments: plans written and read back, launch scripts as people write them."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.errors import LayoutError, SpecError
from planner.formats.megatron import read_megatron
from planner.formats.megatron_script import megatron_arguments, write_megatron
from planner.formats.settle import settle
from planner.formats.setup import Setup
from planner.formats.work import work_of_plan, work_of_setup
from planner.layout.layout import Recompute
from planner.layout.rules_megatron import megatron_problems
from planner.plan import Plan
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec, MoESpec
from tests.formats.plans import build_plan, job, llama, neox
from tests.formats.random_plans import OWN, random_plans

PLANS = list(
    random_plans(
        100, OWN, megatron_problems, uneven=True, partial=True,
        precisions=("bf16", "fp16", "fp8", "mxfp8", "nvfp4"),
    )
)  # fmt: skip


def placed(model: ModelSpec) -> list[bool]:
    return [model.is_moe_layer(layer) for layer in range(model.layers)]


def plain(model: ModelSpec) -> dict[str, Any]:
    """Return what a file can say: no name, and experts by layer instead of by rule."""
    fields = model.model_dump(exclude={"name"})
    if model.moe is not None:
        fields["moe"] |= {"first_layer": 0, "every": 1, "dense_layers": placed(model)}
    return fields


def read(text: str, **given: str) -> Setup:
    return read_megatron(Path("run.sh"), text, given)


def one_number(plan: Plan) -> bool:
    """Whether every stage recomputes the same number of layers, or all it has."""
    pairs = [(stage.recompute_layers, stage.layers) for stage in plan.stages]
    most = max(again for again, _ in pairs)
    return all(again == min(most, layers) for again, layers in pairs)


WRITABLE = [plan for plan in PLANS if one_number(plan)]


@pytest.mark.parametrize("plan", WRITABLE, ids=range(len(WRITABLE)))
def test_a_plan_written_is_read_back(plan: Plan) -> None:
    work = work_of_plan(plan)
    setup = read(write_megatron(work))
    settled = settle(setup)
    back = work_of_setup(setup, settled, work.per_node)

    assert (setup.unknown, settled.problems, setup.silent, setup.assumed) == ((), (), (), ())
    assert plain(back.model) == plain(work.model)
    assert (back.layers, back.again, back.recompute) == (work.layers, work.again, work.recompute)
    assert replace(back.layout, recompute=Recompute.NONE) == replace(
        work.layout, recompute=Recompute.NONE
    )
    assert (back.nodes, back.per_node) == (work.nodes, work.per_node)
    for name in ("global_batch", "seq_len", "precision"):
        assert getattr(back.job, name) == getattr(work.job, name)
    for name in ("loss", "dropout", "overlap_grad_reduce", "flash_attention", "vocab_multiple"):
        assert getattr(back.job.software, name) == getattr(work.job.software, name)


@pytest.mark.parametrize(("tp", "chunks"), [(2, 4), (1, 1)])
def test_tensor_parallel_overlap_is_written_where_it_can_be(tp: int, chunks: int) -> None:
    plan = build_plan(tp=tp, dp=8 // tp, sequence_parallel=tp > 1)
    overlapping = plan.job.software.model_copy(update={"name": "chunks", "tp_overlap_chunks": 4})
    job = plan.job.model_copy(update={"software": overlapping})
    work = work_of_plan(plan.model_copy(update={"job": job}))

    setup = read(write_megatron(work))
    back = work_of_setup(setup, settle(setup), work.per_node)

    assert back.job.software.tp_overlap_chunks == chunks


def test_random_plans_are_of_every_kind() -> None:
    assert len(WRITABLE) == len(PLANS) == 100
    for feature in ("vpp", "cp", "ep", "etp", "tp", "pp"):
        assert any(getattr(plan.layout, feature) > 1 for plan in PLANS), feature
    assert any(len({stage.layers for stage in plan.stages}) > 1 for plan in PLANS)


HOSTILE = [
    "$(touch HIT)",
    "`touch HIT`",
    "'; touch HIT; '",
    '"; touch HIT; "',
    "two\nlines\ntouch HIT",
    "a && touch HIT",
    "$HOME ${PATH} \\",
    "--num-layers 3",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reaches_a_shell(name: str, tmp_path: Path) -> None:
    work = work_of_plan(build_plan(llama(name=name), dp=8))
    (tmp_path / "megatron.sh").write_text(write_megatron(work))
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
    torchrun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MEGATRON_PATH": "/some where"}

    result = subprocess.run(
        ["bash", "megatron.sh", "extra word"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip

    assert sorted(path.name for path in tmp_path.iterdir()) == ["megatron.sh", "torchrun"]
    words = result.stdout.split("\0")[:-1]
    assert words[-1] == "extra word"
    start = words.index("/some where/pretrain_gpt.py") + 1
    assert words[start:-1] == megatron_arguments(work)
    assert result.stderr.startswith(f"{name} on 8 GPUs")
    assert settle(read((tmp_path / "megatron.sh").read_text())).model is not None


@pytest.mark.parametrize(
    ("environment", "words"),
    [({}, "MEGATRON_PATH"), ({"MEGATRON_PATH": "m", "NNODES": "3"}, "is not 8 ranks")],
)
def test_the_script_says_what_is_missing(environment: dict[str, str], words: str) -> None:
    text = write_megatron(work_of_plan(build_plan(dp=8)))

    result = subprocess.run(
        ["bash", "-c", text], env={"PATH": os.environ["PATH"]} | environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip

    assert result.returncode != 0
    assert words in result.stderr


def unequal_recompute() -> Plan:
    plan = build_plan(pp=2)
    first, last = plan.stages
    return plan.model_copy(
        update={"stages": (first.model_copy(update={"recompute_layers": 1}), last)}
    )


# what Megatron-LM has no argument for, and the words of the complaint
REFUSED: list[tuple[Plan, str]] = [
    (build_plan(neox()), "parallel attention"),
    (build_plan(dp=2, rank_map=[1, 0]), "rank_map"),
    (build_plan(dp=8, zero=3), "M31"),
    (build_plan(llama(mlp_bias=True)), "biases"),
    (build_plan(llama(attention_out_bias=True, qkv_bias=True)), "attention output"),
    (build_plan(job_spec=job(precision="fp64")), "fp64"),
    (build_plan(llama(moe=MoESpec(experts=4, top_k=1, ffn_hidden=8, router_bias=True))), "router"),
    (unequal_recompute(), "unequal"),
    (build_plan(llama(heads=6, kv_heads=6), tp=4), "M3"),
]


@pytest.mark.parametrize(("plan", "words"), REFUSED)
def test_what_megatron_cannot_run_is_refused(plan: Plan, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        write_megatron(work_of_plan(plan))


BARE = "--num-layers 4 --hidden-size 64 --num-attention-heads 8 --seq-length 128"
BATCH = "--micro-batch-size 1 --global-batch-size 8 --bf16"

# extra arguments of a bare list, and fields of the record they become
MEANINGS: list[tuple[str, dict[str, Any]]] = [
    ("--tensor-model-parallel-size=4", {"tp": 4}),
    ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1", {"vpp": 2}),
    ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", {"vpp": 2}),
    ("--pipeline-model-parallel-size 4 --pipeline-model-parallel-layout 'Et|tt|t|L'",
     {"stages": (1, 2, 1, 0), "vpp": 1}),
    ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et|(t|)*2,t'",
     {"stages": (1, 1, 1, 1), "vpp": 2}),
    ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 1", {"stages": (1, 3)}),
    ("--pipeline-model-parallel-size 3 --account-for-embedding-in-pipeline-split "
     "--account-for-loss-in-pipeline-split", {"stages": (1, 2, 1)}),
    ("--use-distributed-optimizer", {"zero": 1}),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params", {"zero": 3}),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", {"zero": 2}),
    ("--use-torch-fsdp2", {"zero": 3}),
    ("--use-torch-fsdp2 --torch-fsdp2-no-reshard-after-forward", {"zero": 2}),
    ("--recompute-activations", {"recompute": Recompute.SELECTIVE}),
    ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
     {"recompute": Recompute.FULL}),
    ("--recompute-granularity full --recompute-method block --recompute-num-layers 2",
     {"recompute": Recompute.NONE, "recompute_layers": 2}),
    ("--recompute-granularity full --recompute-method block --recompute-num-layers 4",
     {"recompute": Recompute.FULL}),
    ("--activations-checkpoint-method uniform", {"recompute": Recompute.FULL}),
    ("--fp8-format hybrid", {"precision": "fp8"}),
    ("--fp8-format e4m3 --fp8-recipe mxfp8", {"precision": "mxfp8"}),
    ("--fp4-format e2m1", {"precision": "nvfp4"}),
    ("--sequence-parallel", {"sequence_parallel": False}),
    ("--sequence-parallel --tensor-model-parallel-size 2", {"sequence_parallel": True}),
    ("--num-experts 8 --tensor-model-parallel-size 2", {"etp": 2}),
    ("--num-experts 8 --tensor-model-parallel-size 2 --expert-tensor-parallel-size 1", {"etp": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), MEANINGS)
def test_arguments_mean(words: str, expected: dict[str, Any]) -> None:
    setup = read(f"{BARE} {BATCH} {words}")

    assert {name: getattr(setup, name) for name in expected} == expected
    assert setup.unknown == ()


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        ("", "in_place"),
        ("--cross-entropy-loss-fusion", "native"),
        ("--cross-entropy-loss-fusion --cross-entropy-fusion-impl native", "native"),
        ("--cross-entropy-loss-fusion --cross-entropy-fusion-impl te", "fused"),
        ("--cross-entropy-fusion-impl te", "in_place"),
    ],
)
def test_arguments_choose_the_loss(words: str, loss: str) -> None:
    assert read(f"{BARE} {BATCH} {words}").software.loss == loss


# extra arguments, and fields of the model they describe
MODEL_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("", {"ffn_hidden": 256, "kv_heads": 8, "positions": 0, "vocab": 50257, "qkv_bias": True}),
    ("--max-position-embeddings 512", {"positions": 512, "tied_embeddings": True}),
    ("--swiglu", {"ffn_hidden": 128, "gated_mlp": True}),
    ("--group-query-attention --num-query-groups 2", {"kv_heads": 2}),
    ("--num-query-groups 2", {"kv_heads": 8}),
    ("--kv-channels 32", {"head_dim": 32}),
    ("--position-embedding-type rope --max-position-embeddings 512", {"positions": 0}),
    ("--disable-bias-linear --add-qkv-bias", {"qkv_bias": True, "mlp_bias": False}),
    ("--window-size 127,0", {"sliding_window": 128}),
    ("--window-size 127,0 --window-attn-skip-freq 2", {"sliding_window": 0}),
    ("--tokenizer-type Llama2Tokenizer", {"vocab": 32000}),
    ("--padded-vocab-size 640 --vocab-size 600", {"vocab": 640}),
    ("--multi-latent-attention --kv-lora-rank 16", {"head_dim": 192, "qk_norm": False}),
]


@pytest.mark.parametrize(("words", "expected"), MODEL_FIELDS)
def test_arguments_describe_the_model(words: str, expected: dict[str, Any]) -> None:
    model = read(f"{BARE} {BATCH} {words}").model

    assert model is not None
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        ("1", [True] * 4),
        ("2", [True, False, True, False]),
        ("[0]*1+[1]*3", [False, True, True, True]),
        ("[1,0]*2", [True, False, True, False]),
        ("([0]+[1])*2", [False, True, False, True]),
    ],
)
def test_which_layers_hold_experts(frequency: str, expected: list[bool]) -> None:
    model = read(f"{BARE} {BATCH} --num-experts 4 --moe-layer-freq '{frequency}'").model

    assert model is not None
    assert placed(model) == expected


@pytest.mark.parametrize(
    "frequency", ["[0]*9", "__import__('os').getcwd()", "[1]*10**9", "2.5", "[", "0", "[1]*4+[2]"]
)
def test_an_expert_pattern_is_no_code(frequency: str) -> None:
    setup = read(f"{BARE} {BATCH} --num-experts 4 --moe-layer-freq {shlex.quote(frequency)}")

    assert setup.model is None
    assert any("--moe-layer-freq" in problem for problem in setup.problems)


# arguments that do nothing, and the words that say so
SILENT = [
    ("--sequence-parallel", "--sequence-parallel does nothing with tp 1"),
    ("--num-query-groups 2", "--num-query-groups does nothing"),
    ("--cp-comm-type p2p", "--cp-comm-type does nothing"),
    ("--recompute-num-layers 2", "--recompute-num-layers does nothing"),
    ("--fp8-recipe mxfp8", "--fp8-recipe does nothing"),
    ("--data-parallel-sharding-strategy optim", "does nothing without --use-megatron-fsdp"),
    ("--recompute-activations", "saves nothing with fused attention"),
]


@pytest.mark.parametrize(("words", "said"), SILENT)
def test_what_does_nothing_is_said(words: str, said: str) -> None:
    assert any(said in sentence for sentence in read(f"{BARE} {BATCH} {words}").silent)
    assert read(f"{BARE} {BATCH}").silent == ()


def test_knobs_are_sorted_by_what_is_known_of_them() -> None:
    setup = read(f"{BARE} {BATCH} --lr 0.1 --log-interval 5 --wandb-project x --no-such-thing 3")

    assert [knob.name for knob in setup.unknown] == ["--no-such-thing"]
    assert [knob.name for knob in setup.neutral] == ["--lr", "--log-interval", "--wandb-project"]
    assert ("--num-layers", "4", "layers 4") in {
        (knob.name, knob.value, knob.meaning) for knob in setup.understood
    }


def test_the_last_of_two_values_wins_and_is_said() -> None:
    setup = read(f"{BARE} {BATCH} --num-layers 8")

    assert setup.model is not None
    assert setup.model.layers == 8
    assert setup.assumed == ("--num-layers is given twice; the last one wins",)


@pytest.mark.parametrize("value", ["many", "1.5", "", "nan", "1e999"])
def test_a_value_that_is_none_names_file_and_argument(value: str) -> None:
    setup = read(f"{BARE} {BATCH} --tensor-model-parallel-size {value}")

    assert len(setup.problems) == 1
    assert setup.problems[0].startswith("run.sh: --tensor-model-parallel-size: ")


def test_a_file_without_a_launch_is_refused() -> None:
    with pytest.raises(SpecError, match=r"run\.sh: no training command"):
        read("echo hello\n")


def test_records_serialise() -> None:
    setup = read(f"{BARE} {BATCH}")

    assert json.dumps([knob.name for knob in setup.understood])
    assert isinstance(work_of_setup(setup, settle(setup)).job, JobSpec)
