"""torchtitan's Python recipes: read by syntax, and written as a module that 0.3 takes."""

from pathlib import Path
from typing import Any

import pytest

from planner.errors import LayoutError, SpecError
from planner.formats.detect import detect, read_foreign
from planner.formats.torchtitan_python import BASES, recipe_name, write_recipe
from planner.formats.work import work_of_plan
from planner.layout.layout import Recompute
from planner.plan import Plan
from planner.spec.huggingface import load_model
from tests.formats.oracles import ask
from tests.formats.plans import build_plan, job
from tests.formats.random_plans import random_plans
from tests.formats.test_other_formats import back, same, torchtitan_problems

PLANS = [
    plan
    for plan in random_plans(
        130, ["llama-3-8b", "qwen3-30b-a3b"], torchtitan_problems, uneven=True, seed=31
    )
    if plan.layout.etp == 1
][:100]
ORACLE = "torchtitan.config.configurable"  # a module of 0.3 that 0.2 has not


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_a_recipe_written_is_read_back(plan: Plan, tmp_path: Path) -> None:
    work = work_of_plan(plan)
    found = back(write_recipe(work), "torchtitan_plan.py", work, None, tmp_path)

    same(found, work)
    assert found.model == load_model(work.model.name)
    assert (found.layers, found.again, found.recompute) == (work.layers, work.again, work.recompute)
    assert found.job.seq_len == work.job.seq_len


def test_plans_are_of_every_kind() -> None:
    assert len(PLANS) == 100
    for name in ("tp", "cp", "pp", "vpp", "ep"):
        assert any(getattr(plan.layout, name) > 1 for plan in PLANS), name


REGISTRY = """
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.trainer import Trainer
from . import model_registry

LENGTH = 4096

def deepseek_v3_671b() -> Trainer.Config:
    spec = model_registry("671B", attn_backend="flex")
    return Trainer.Config(
        model_spec=model_registry("671B"),
        training=TrainingConfig(local_batch_size=4, seq_len=4096, steps=10),
        parallelism=ParallelismConfig(
            pipeline_parallel_schedule="Interleaved1F1B", expert_parallel_degree=2),
        activation_checkpoint=SelectiveAC.Config(),
    )

def deepseek_v3_671b_wide() -> Trainer.Config:
    config = deepseek_v3_671b()
    config.parallelism.expert_parallel_degree = 64
    config.activation_checkpoint = FullAC.Config()
    config.compile = CompileConfig(enable=True)
    return config

def deepseek_v3_671b_open() -> Trainer.Config:
    config = deepseek_v3_671b()
    config.parallelism.tensor_parallel_degree = degree_of("H100")
    if True:
        config.training.seq_len = 8192
    return config
"""
# recipe, further --set, fields of the record, words in a list of it
READ: list[tuple[str, dict[str, str], dict[str, Any], dict[str, str]]] = [
    ("deepseek_v3_671b", {},
     {"ep": 2, "seq_len": 4096, "micro_batch": 4, "recompute": Recompute.SELECTIVE},
     {"silent": "pipeline_parallel_schedule does nothing with pp 1"}),
    ("deepseek_v3_671b_wide", {}, {"ep": 64, "recompute": Recompute.FULL}, {}),
    ("deepseek_v3_671b_open", {}, {"ep": 2},
     {"problems": "add --set parallelism.tensor_parallel_degree=VALUE",
      "assumed": "what a branch or loop sets is not read"}),
    ("deepseek_v3_671b_open", {"parallelism.tensor_parallel_degree": "8"}, {"tp": 8, "ep": 2}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "more", "fields", "said"), READ)
def test_a_registry_is_read(
    recipe: str, more: dict[str, str], fields: dict[str, Any], said: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "deepseek_v3" / "config_registry.py"
    file.parent.mkdir()
    file.write_text(REGISTRY)

    setup = read_foreign(file, {"config": recipe, **more})

    assert {name: getattr(setup, name) for name in fields} == fields
    assert setup.model == load_model("deepseek-v3")
    for where, words in said.items():
        assert words in " ".join(getattr(setup, where))
    assert bool(setup.problems) == ("problems" in said)


def test_nothing_of_a_module_is_run(tmp_path: Path) -> None:
    file = tmp_path / "recipes.py"
    file.write_text(f"open({str(tmp_path / 'HIT')!r}, 'w')\n" + REGISTRY)

    with pytest.raises(SpecError, match=r"deepseek_v3_671b_wide.*--set config=NAME"):
        read_foreign(file)
    read_foreign(file, {"config": "deepseek_v3_671b"})
    assert not (tmp_path / "HIT").exists()


@pytest.mark.parametrize("text", ["def f(:\n  Trainer.Config", "Trainer.Config\nx = 1\n"])
def test_other_python_is_bad_input(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(text)
    assert detect(file, text) == "torchtitan"
    with pytest.raises(SpecError, match=r"x\.py"):
        read_foreign(file)


def test_what_has_no_setting_is_refused() -> None:
    eight, wide = load_model("llama-3-8b"), load_model("qwen3-235b-a22b")
    plans = {
        "precision 'fp8' is not written": build_plan(eight, dp=8, zero=3, job_spec=job(
            global_batch=64, seq_len=4096, precision="fp8")),
        "has no recipe in torchtitan 0.3": build_plan(wide, dp=8, zero=3, job_spec=job(
            global_batch=64, seq_len=4096)),
    }  # fmt: skip
    for words, plan in plans.items():
        with pytest.raises(LayoutError, match=words):
            write_recipe(work_of_plan(plan))


@pytest.mark.slow
def test_torchtitan_takes_the_recipes() -> None:
    works = [work_of_plan(plan) for plan in PLANS[:40]]
    big = load_model("llama-3.1-405b"), load_model("deepseek-v3"), load_model("llama-3-70b")
    sizes = job(global_batch=64, seq_len=4096)
    works += [work_of_plan(build_plan(one, dp=64, zero=3, job_spec=sizes)) for one in big]
    answers = ask(
        "oracle_torchtitan_python.py", ORACLE, [[write_recipe(one), one.ranks] for one in works]
    )

    assert [answer["error"] for answer in answers] == [""] * len(works)
    for work, answer in zip(works, answers, strict=True):
        layout, sizes = work.layout, answer["parallelism"]
        names = ("tensor", "context", "pipeline", "expert")
        assert [sizes[f"{name}_parallel_degree"] for name in names] == [
            layout.tp, layout.cp, layout.pp, layout.ep
        ]  # fmt: skip
        assert answer["training"]["global_batch_size"] == work.job.global_batch
        kinds = {Recompute.FULL: "FullAC", Recompute.SELECTIVE: "SelectiveAC"}
        assert answer["policy"] == kinds.get(work.recompute)
        assert recipe_name(work).startswith(answer["model"])


POLICIES = {"FullAC": "full", "SelectiveAC": "selective"}


@pytest.mark.slow
def test_what_torchtitans_own_recipes_state() -> None:
    texts = []
    for base in BASES:
        family = next(one for one in ("llama3", "deepseek_v3", "qwen3") if base.startswith(one))
        texts.append(f"from torchtitan.models.{family}.config_registry import {base} as plan\n")
    answers = ask("oracle_torchtitan_python.py", ORACLE, [[text, 64] for text in texts])

    for (base, stated), answer in zip(BASES.items(), answers, strict=True):
        found = {f"{part}.{name}": value for part in ("training", "parallelism")
                 for name, value in answer[part].items()}  # fmt: skip
        found["activation_checkpoint.mode"] = POLICIES[answer["policy"]]
        found["compile.enable"] = answer["compile"]
        assert {name: found.get(name, value) for name, value in stated.items()} == stated, base
        assert found["activation_checkpoint.mode"] == stated.get(
            "activation_checkpoint.mode", "selective"
        )
        for name in ("tensor_parallel", "expert_parallel", "pipeline_parallel"):
            degree = f"parallelism.{name}_degree"
            assert found[degree] == stated.get(degree, 1), base
