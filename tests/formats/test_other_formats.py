"""DeepSpeed, torchtitan, accelerate, NeMo and nanotron: plans written and read back."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import LayoutError
from planner.formats.accelerate import lost_by_accelerate, write_accelerate
from planner.formats.bundle import framework_files
from planner.formats.deepspeed import lost_by_deepspeed, write_deepspeed
from planner.formats.detect import detect, read_foreign
from planner.formats.nanotron import write_nanotron
from planner.formats.nemo_yaml import write_nemo
from planner.formats.settle import RULES, settle
from planner.formats.torchtitan_toml import write_torchtitan
from planner.formats.work import Work, work_of_plan, work_of_setup
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.rule import Facts, broken, facts_of
from planner.plan import Plan
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan
from tests.formats.random_plans import random_plans
from tests.formats.test_megatron import WRITABLE as MEGATRON
from tests.formats.test_megatron import plain


def obeys(framework: str, extra: Callable[[Layout], bool]) -> Callable[..., list[str]]:
    def problems(model: ModelSpec, job: JobSpec, layout: Layout) -> list[str]:
        found = broken(RULES[framework], Facts(**facts_of(model, job, layout)))
        return found or ([] if extra(layout) else ["no setting"])

    return problems


def _is_zero(layout: Layout, *groups: int) -> bool:
    """Whether the sharding is a ZeRO stage over a group of one of these sizes, nothing between."""
    shard = replace(layout.shard, secondary=0)
    return any(shard == Shard.zero(shard.zero_stage(), group) for group in groups)


def _titan_shards(layout: Layout) -> bool:
    ranks, shard = layout.dp * layout.cp, layout.shard
    if layout.pp > 1:
        return shard in (Shard(), Shard.zero(1, ranks)) and (layout.cp == 1 or shard.optimizer > 1)
    if shard.zero_stage() in (1, 0):
        return ranks == 1 or (shard == Shard() and layout.cp == 1)
    whole = shard.optimizer % layout.cp == 0 and shard.optimizer >= layout.cp
    return whole and _is_zero(layout, shard.optimizer)


def _accelerate_mesh(layout: Layout) -> bool:
    """FSDP 2 shards over whole rows of a mesh; its DeepSpeed shards ZeRO-1 over all ranks."""
    if layout.pp * layout.ep * layout.etp > 1:
        return False
    shard, stage = layout.shard, layout.shard.zero_stage()
    if stage == 0:
        return layout.cp == 1 and 1 in (layout.tp, layout.dp)
    if stage == 1:
        return layout.tp == 1 and shard.optimizer == layout.dp * layout.cp
    rows, left = divmod(shard.optimizer, layout.cp)
    return (
        _is_zero(layout, shard.optimizer)
        and left == 0
        and layout.dp % rows == 0
        and (rows > 1 or layout.dp == 1)
    )


accelerate_problems = obeys("accelerate", _accelerate_mesh)
deepspeed_problems = obeys(
    "deepspeed", lambda one: one.pp == one.etp == 1 and _is_zero(one, one.dp * one.cp)
)
nanotron_problems = obeys(
    "nanotron", lambda one: one.pp == 1 and one.shard.optimizer in (1, one.dp * one.cp)
)
torchtitan_problems = obeys("torchtitan", _titan_shards)

DEEPSPEED = list(random_plans(
    100, ["llama", "tied", "qwen", "gpt"], deepspeed_problems, precisions=("bf16", "fp16"),
))  # fmt: skip
ACCELERATE = list(random_plans(
    100, ["llama", "tied", "qwen", "gpt"], accelerate_problems, precisions=("bf16", "fp16"),
))  # fmt: skip
NANOTRON = list(random_plans(100, ["llama"], nanotron_problems))
TORCHTITAN = list(random_plans(
    100, ["llama-3-8b", "qwen3-30b-a3b"], torchtitan_problems, uneven=True,
    precisions=("bf16", "fp8", "mxfp8"),
))  # fmt: skip


def back(text: str, name: str, work: Work, model: ModelSpec | None, folder: Path) -> Work:
    file = folder / name
    file.write_text(text)
    setup = read_foreign(file)
    assert setup.unknown == ()
    if setup.seq_len is None:
        setup = replace(setup, seq_len=work.job.seq_len)
    if setup.micro_batch is None:
        setup = replace(setup, micro_batch=work.layout.micro_batch)
    if setup.micro_batch and setup.accumulation is None and setup.global_batch is None:
        setup = replace(setup, global_batch=work.job.global_batch)
    settled = settle(setup, model, work.ranks)
    return work_of_setup(setup, settled, work.per_node)


def same(found: Work, work: Work) -> None:
    assert found.layout == replace(work.layout, recompute=found.layout.recompute)
    assert (found.job.global_batch, found.job.precision) == (
        work.job.global_batch, work.job.precision
    )  # fmt: skip
    assert (found.nodes, found.per_node) == (work.nodes, work.per_node)


@pytest.mark.parametrize("plan", DEEPSPEED, ids=range(100))
def test_deepspeed_comes_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    # the file says nothing of sequence parallelism, stages or recompute
    found = back(write_deepspeed(work), "ds.json", work, plan.model, tmp_path)

    same(replace(found, layout=replace(
        found.layout, sequence_parallel=work.layout.sequence_parallel)), work)  # fmt: skip
    lost = lost_by_deepspeed(work)
    assert (work.recompute is Recompute.NONE) == (len(lost) == 1)


@pytest.mark.parametrize("plan", ACCELERATE, ids=range(100))
def test_accelerate_comes_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    # model, batch and sequence parallelism stand in the program
    found = back(write_accelerate(work), "config.yaml", work, plan.model, tmp_path)

    same(replace(found, layout=replace(
        found.layout, sequence_parallel=work.layout.sequence_parallel)), work)  # fmt: skip
    told = found.recompute is work.recompute
    assert told != any("recompute" in text for text in lost_by_accelerate(work))


@pytest.mark.parametrize("plan", NANOTRON, ids=range(100))
def test_nanotron_comes_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    found = back(write_nanotron(work), "config.yaml", work, None, tmp_path)

    same(found, work)
    assert found.model.model_copy(update={"name": work.model.name}) == work.model
    assert (found.layers, found.recompute) == (work.layers, work.recompute)


@pytest.mark.parametrize("plan", TORCHTITAN, ids=range(100))
def test_torchtitan_comes_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    found = back(write_torchtitan(work), "job.toml", work, None, tmp_path)

    same(found, work)
    assert found.model == load_model(work.model.name)
    assert (found.layers, found.again) == (work.layers, work.again)
    assert found.recompute == work.recompute
    assert found.job.seq_len == work.job.seq_len


@pytest.mark.parametrize("plan", MEGATRON, ids=range(len(MEGATRON)))
def test_nemo_comes_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    found = back(write_nemo(work), "bridge.yaml", work, None, tmp_path)

    same(found, work)
    assert plain(found.model) == plain(work.model)
    assert (found.layers, found.again, found.recompute) == (work.layers, work.again, work.recompute)
    assert found.job.seq_len == work.job.seq_len


def test_random_plans_are_of_every_kind() -> None:
    expected = {
        "deepspeed": (DEEPSPEED, {"tp", "cp"}),
        "accelerate": (ACCELERATE, {"tp", "cp"}),
        "nanotron": (NANOTRON, {"tp", "cp"}),
        "torchtitan": (TORCHTITAN, {"tp", "cp", "pp", "vpp", "ep"}),
    }
    for plans, features in expected.values():
        used = {name for name in features if any(getattr(one.layout, name) > 1 for one in plans)}
        assert used == features
        stages = {plan.to_layout().shard.zero_stage() for plan in plans}
        assert len(stages) >= 2


def test_nanotron_stages_are_dealt_by_size(tmp_path: Path) -> None:
    model = load_model("llama-3-8b")
    plan = build_plan(model, pp=4, dp=2, layers=[8, 9, 8, 7], job_spec=_job(64))
    work = work_of_plan(plan)
    with pytest.raises(LayoutError) as error:
        write_nanotron(work)
    dealt = next(text for text in error.value.problems if "stages" in text)
    assert dealt.startswith("stages of 8, 9, 8, 7 layers: nanotron has no setting")

    file = tmp_path / "c.yaml"
    file.write_text(write_nanotron(work_of_plan(build_plan(model, dp=8, job_spec=_job(64)))))
    text = file.read_text().replace("  dp: 8", "  dp: 2").replace("  pp: 1", "  pp: 4")
    file.write_text(text)
    stages = read_foreign(file).stages
    assert sum(stages) == 32
    assert stages[-1] < stages[0]  # the output matrix takes the place of some layers
    fixed = plan.model_copy(update={"stages": build_plan(model, pp=4, layers=stages).stages})
    assert settle(read_foreign(_saved(tmp_path, write_nanotron(work_of_plan(fixed))))).split


def _saved(folder: Path, text: str) -> Path:
    (folder / "again.yaml").write_text(text)
    return folder / "again.yaml"


def _job(batch: int) -> JobSpec:
    return JobSpec(global_batch=batch, seq_len=4096)


# writer, a plan it refuses, the words of the reason
LLAMA8 = load_model("llama-3-8b")
REFUSED = [
    (write_deepspeed, build_plan(pp=2), "PipelineModule"),
    (write_deepspeed, build_plan(dp=4, recompute_layers=1), "recomputes all or none"),
    (write_deepspeed, build_plan(dp=2, rank_map=[1, 0]), "rank_map"),
    (write_deepspeed, build_plan(dp=4, shard_optimizer=2), "shards over 2 of 4 ranks"),
    (write_accelerate, build_plan(pp=2), "pp, ep and etp"),
    (write_accelerate, build_plan(tp=2, dp=2, zero=1), "gives no tp; try ZeRO 2 or 3"),
    (write_accelerate, build_plan(tp=2, dp=2), "A3"),
    (write_accelerate, build_plan(cp=2), "needs FSDP 2"),
    (write_accelerate, build_plan(cp=2, dp=4, shard_optimizer=4, shard_gradients=2), "dp_shard"),
    (write_accelerate, build_plan(tp=8, dp=2, zero=3), "A6"),
    (write_accelerate, build_plan(dp=4, zero=3, recompute_layers=1), "recomputes all or none"),
    (write_nanotron, build_plan(dp=4, zero=2), "N8"),
    (write_nanotron, build_plan(tp=8), "N3"),
    (write_nanotron, build_plan(load_model("gpt2"), job_spec=_job(8)), "learned positions"),
    (write_nanotron, build_plan(load_model("mixtral-8x7b"), job_spec=_job(8)), "experts"),
    (write_torchtitan, build_plan(), "no flavor"),
    (write_torchtitan, build_plan(LLAMA8, dp=4, zero=1, job_spec=_job(8)), "no ZeRO-1"),
    (write_torchtitan, build_plan(LLAMA8, pp=4, dp=2, job_spec=_job(4)), "T10"),
    (write_torchtitan, build_plan(LLAMA8, tp=3, job_spec=_job(8)), "T6"),
]


@pytest.mark.parametrize(("write", "plan", "words"), REFUSED)
def test_what_a_framework_cannot_run_is_refused(
    write: Callable[[Work], str], plan: Plan, words: str
) -> None:
    with pytest.raises(LayoutError, match=words):
        write(work_of_plan(plan))


def test_torchtitan_script_starts_its_file(tmp_path: Path) -> None:
    hostile = "$(touch HIT)'\n"
    plan = build_plan(LLAMA8.model_copy(update={"name": hostile}), dp=8, zero=3, job_spec=_job(64))
    work = work_of_plan(plan)
    for name, text in framework_files(work, "torchtitan").items():
        (tmp_path / name).write_text(text)
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
    torchrun.chmod(0o755)

    result = subprocess.run(
        ["bash", str(tmp_path / "torchtitan.sh"), "--training.steps", "5"], capture_output=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip

    assert not (tmp_path / "HIT").exists()
    words = result.stdout.split("\0")
    assert words[:4] == ["--nnodes", "1", "--nproc-per-node", "8"]
    file = words[words.index("--job.config_file") + 1]
    assert detect(Path(file), Path(file).read_text()) == "torchtitan"
    assert words[-3:-1] == ["--training.steps", "5"]
