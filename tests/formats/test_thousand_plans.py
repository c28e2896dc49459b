"""A thousand random plans for each framework: written, read back, equal, and taken by its parser.

The same as the hundred of every run (``test_megatron``, ``test_other_formats``), other plans.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.formats.bundle import EXPORTS
from planner.formats.detect import read_foreign
from planner.formats.megatron_script import megatron_arguments
from planner.formats.settle import settle
from planner.formats.work import Work, work_of_plan, work_of_setup
from planner.layout.layout import Recompute
from planner.layout.rules_megatron import megatron_problems
from planner.plan import Plan
from tests.formats.oracles import ask
from tests.formats.random_plans import OWN, random_plans
from tests.formats.test_megatron import one_number
from tests.formats.test_other_formats import (
    accelerate_problems,
    deepspeed_problems,
    nanotron_problems,
    torchtitan_problems,
)

pytestmark = pytest.mark.slow
COUNT, SEED = 1000, 77


def megatron() -> Iterator[Plan]:
    every = random_plans(
        COUNT, OWN, megatron_problems, uneven=True, partial=True, seed=SEED,
        precisions=("bf16", "fp16", "fp8", "mxfp8", "nvfp4"),
    )  # fmt: skip
    return (plan for plan in every if one_number(plan))


def deepspeed() -> Iterator[Plan]:
    models = ["llama", "tied", "qwen", "gpt"]
    return random_plans(COUNT, models, deepspeed_problems, precisions=("bf16", "fp16"), seed=SEED)


def accelerate() -> Iterator[Plan]:
    models = ["llama", "tied", "qwen", "gpt"]
    return random_plans(COUNT, models, accelerate_problems, precisions=("bf16", "fp16"), seed=SEED)


def nanotron() -> Iterator[Plan]:
    return random_plans(COUNT, ["llama"], nanotron_problems, seed=SEED)


def torchtitan() -> Iterator[Plan]:
    models, kinds = ["llama-3-8b", "qwen3-30b-a3b"], ("bf16", "fp8", "mxfp8")
    return random_plans(
        COUNT, models, torchtitan_problems, uneven=True, precisions=kinds, seed=SEED
    )


PLANS: dict[str, Callable[[], Iterator[Plan]]] = {
    "megatron": megatron, "deepspeed": deepspeed, "nanotron": nanotron, "torchtitan": torchtitan,
    "accelerate": accelerate, "nemo": megatron,
}  # fmt: skip
# what a format does not say: sequence parallelism and recompute stand in DeepSpeed's program
SILENT = {name: ("sequence_parallel",) for name in ("deepspeed", "accelerate")}


def back(work: Work, target: str, folder: Path) -> Work:
    file = folder / EXPORTS[target].config
    file.write_text(EXPORTS[target].write(work))
    setup = read_foreign(file)
    assert setup.unknown == ()
    setup = replace(setup, seq_len=setup.seq_len or work.job.seq_len)
    if setup.micro_batch is None:
        setup = replace(setup, micro_batch=work.layout.micro_batch, accumulation=None,
                        global_batch=work.job.global_batch)  # fmt: skip
    settled = settle(setup, setup.model or work.model, work.ranks)
    return work_of_setup(setup, settled, work.per_node)


def told(work: Work, target: str) -> dict[str, Any]:
    """Return what the format says of a job."""
    layout = replace(work.layout, recompute=Recompute.NONE)
    layout = replace(layout, **{name: False for name in SILENT.get(target, ())})
    job = (work.job.global_batch, work.job.seq_len, work.job.precision)
    found: dict[str, Any] = {"layout": layout, "job": job, "nodes": (work.nodes, work.per_node)}
    if target not in SILENT:
        found |= {"stages": work.layers, "again": work.again, "recompute": work.recompute}
    return found


@pytest.mark.parametrize("target", PLANS)
def test_a_thousand_plans_come_back(target: str, tmp_path: Path) -> None:
    works = [work_of_plan(plan) for plan in PLANS[target]()]

    differ = []
    for work in works:
        found = told(back(work, target, tmp_path), target)
        if found != told(work, target):
            differ.append((work.title, found))
    assert differ == []
    assert len(works) > 0.9 * COUNT


def _degrees(answer: dict[str, Any]) -> list[int]:
    sizes = answer["parallelism"]
    names = ("tensor", "context", "pipeline", "expert", "expert_tensor")
    return [sizes[f"{name}_parallel_degree"] for name in names]


def test_megatron_takes_them() -> None:
    works = [work_of_plan(plan) for plan in megatron() if plan.job.precision in ("bf16", "fp16")]

    answers = ask("oracle_megatron.py", "megatron.core", [megatron_arguments(one) for one in works])

    assert {answer["error"] for answer in answers} == {""}


def test_deepspeed_takes_them() -> None:
    works = [work_of_plan(plan) for plan in deepspeed()]
    asked = [[json.loads(EXPORTS["deepspeed"].write(one)), one.layout.dp * one.layout.cp]
             for one in works]  # fmt: skip

    answers = ask("oracle_deepspeed.py", "deepspeed", asked)

    assert {answer["error"] for answer in answers} == {""}
    for work, answer in zip(works, answers, strict=True):
        assert (answer["batch"], answer["micro"], answer["zero"]) == (
            work.job.global_batch, work.layout.micro_batch, work.layout.shard.zero_stage()
        )  # fmt: skip


def test_accelerate_takes_them() -> None:
    works = [work_of_plan(plan) for plan in accelerate()]

    answers = ask(
        "oracle_accelerate.py", "accelerate", [EXPORTS["accelerate"].write(one) for one in works]
    )

    assert {answer["error"] for answer in answers} == {""}
    for work, answer in zip(works, answers, strict=True):
        layout, stage = work.layout, work.layout.shard.zero_stage()
        assert answer["processes"] == work.ranks
        assert answer["zero"] in ([1] if stage == 1 else [None])
        assert answer["reshard"] == {2: "false", 3: "true"}.get(stage, "")
        if answer["mesh"] and stage > 1:
            copies, shard, tp, cp, _ = answer["mesh"]
            assert (copies * shard, shard * cp) == (layout.dp, layout.shard.optimizer)
            assert (tp, cp) == (layout.tp, layout.cp)


def test_nanotron_takes_them() -> None:
    works = [work_of_plan(plan) for plan in nanotron()]

    answers = ask(
        "oracle_nanotron.py", "nanotron", [EXPORTS["nanotron"].write(one) for one in works]
    )

    for work, answer in zip(works, answers, strict=True):
        layout = work.layout
        assert (answer["error"], answer["degrees"]) == (
            "", [layout.dp, layout.tp, layout.pp, layout.cp]
        )  # fmt: skip


def test_torchtitan_takes_them() -> None:
    works = [work_of_plan(plan) for plan in torchtitan()][::5]  # its parser takes 0.2 s for each
    asked = [[EXPORTS["torchtitan"].write(one), one.ranks] for one in works]

    answers = ask("oracle_torchtitan.py", "torchtitan.config.job_config", asked)

    assert {answer["error"] for answer in answers} == {""}
    for work, answer in zip(works, answers, strict=True):
        layout = work.layout
        assert _degrees(answer) == [layout.tp, layout.cp, layout.pp, layout.ep, layout.etp]
