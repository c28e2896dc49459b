"""What we write for Megatron is accepted by megatron-core; what our rules refuse, it refuses."""

import random

import pytest

from planner.formats.launch_line import Launch
from planner.formats.megatron import settings_of, setup_of
from planner.formats.megatron_script import megatron_arguments
from planner.formats.settle import settle
from planner.formats.work import work_of_plan
from planner.layout.layout import Layout
from planner.layout.ranks import groups
from tests.formats.oracles import HERE, ask
from tests.formats.test_megatron import WRITABLE

pytestmark = pytest.mark.slow
SCRIPT = "oracle_megatron.py"


def test_every_written_plan_is_accepted() -> None:
    works = [work_of_plan(plan) for plan in WRITABLE]
    # fp8 and nvfp4 need Transformer Engine, which has no wheel without a GPU
    asked = [work for work in works if work.job.precision in ("bf16", "fp16")]
    answers = ask(SCRIPT, "megatron.core", [megatron_arguments(work) for work in asked])

    assert len(asked) > 30
    assert [answer["error"] for answer in answers] == [""] * len(asked)
    for work, answer in zip(asked, answers, strict=True):
        if "stages" in answer:
            assert tuple(answer["stages"]) == work.layers


def arguments(rng: random.Random) -> list[str]:
    """Return arguments of a small model in a layout that is legal about every second time."""
    tp, pp = rng.choice([1, 2, 3, 4, 8]), rng.choice([1, 2, 3, 4])
    words = ["--num-layers", str(rng.choice([8, 12])), "--hidden-size", "1152",
             "--ffn-hidden-size", "4608", "--num-attention-heads", str(rng.choice([12, 16])),
             "--bf16", "--tensor-model-parallel-size", str(tp),
             "--pipeline-model-parallel-size", str(pp)]  # fmt: skip
    words += ["--kv-channels", "64"]
    if rng.random() < 0.5:
        words += ["--group-query-attention", "--num-query-groups", str(rng.choice([2, 4]))]
    if tp > 1 and rng.random() < 0.8:
        words.append("--sequence-parallel")
    if pp > 1 and rng.random() < 0.4:
        words += ["--num-virtual-stages-per-pipeline-rank", str(rng.choice([2, 3]))]
    if rng.random() < 0.3:
        words += ["--recompute-granularity", rng.choice(["full", "selective"])]
        words += rng.choice([[], ["--recompute-method", "block", "--recompute-num-layers", "1"]])
    return words


def test_rules_agree_with_the_configuration_class() -> None:
    rng = random.Random(5)
    questions = [arguments(rng) for _ in range(1000)]
    answers = ask(SCRIPT, "megatron.core", questions)
    launch = Launch((), None, {}, (), ())

    differ = []
    for words, answer in zip(questions, answers, strict=True):
        setup = setup_of(HERE / "x.sh", settings_of(words)[0], launch)
        every = settle(setup, gpus=setup.tp * setup.pp * 2).problems
        found = [problem for problem in every if "transformer_config.py" in problem]
        if bool(found) != bool(answer["error"]):
            differ.append((words, found, answer["error"]))
    refused = sum(bool(answer["error"]) for answer in answers)
    assert differ == []
    assert 300 < refused < 900


def grids(rng: random.Random, count: int) -> list[Layout]:
    """Return layouts of 64 ranks, both grids folded over the same ranks of a stage."""
    found: list[Layout] = []
    while len(found) < count:
        tp, cp, pp, ep, etp = (rng.choice([1, 2, 4, 8]) for _ in range(5))
        if 64 % (tp * cp * pp) == 0 == 64 % (ep * etp * pp):
            found.append(Layout(tp, cp, pp, dp=64 // (tp * cp * pp), ep=ep, etp=etp))
    return found


def test_ranks_stand_in_the_groups_of_megatron() -> None:
    rng = random.Random(4)
    layouts = grids(rng, 12)
    ranks = [rng.sample(range(64), 3) for _ in layouts]
    degrees = [[one.tp, one.cp, one.pp, one.ep, one.etp] for one in layouts]

    answers = ask("oracle_groups.py", "megatron.core", list(zip(degrees, ranks, strict=True)))

    for layout, own, answer in zip(layouts, ranks, answers, strict=True):
        for rank, found in zip(own, answer, strict=True):
            for axes, group in found.items():
                expected = [one for one in groups(layout, axes.split()) if rank in one]
                assert expected == [group], (layout, rank, axes)
