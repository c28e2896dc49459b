"""What recommend proposes for torchtitan: written without a complaint, and read back equal."""

from pathlib import Path
from typing import NamedTuple

import pytest

from planner.formats.torchtitan_toml import torchtitan_problems_of, write_torchtitan
from planner.formats.work import Work, work_of_plan
from planner.layout.layout import Recompute
from planner.layout.space import layouts
from planner.layout.stages import split_layers
from planner.plan import Plan
from planner.search.answer import recommend
from planner.search.recommend import Options
from planner.search.targets import TARGETS
from tests.cli.command import planner
from tests.formats.test_other_formats import back, same
from tests.properties.strategies import cluster, job, model

TITAN = TARGETS["torchtitan"]


class Case(NamedTuple):
    """A job, and whether its fastest plan recomputes all layers."""

    model: str
    cluster: str
    nodes: int
    global_batch: int
    seq_len: int
    full: bool = False
    precision: str = "bf16"


CASES = [
    Case("llama-3-8b", "dgx-h100", 1, 64, 8192),
    Case("llama-3-8b", "l40s-pcie", 2, 64, 4096),
    Case("llama-3-70b", "dgx-h100", 2, 32, 8192, full=True),
]
SLOW = [
    Case("llama-3-70b", "dgx-h100", 8, 128, 8192, full=True, precision="fp8"),
    Case("qwen3-30b-a3b", "dgx-h100", 2, 64, 4096),
    Case("llama-3.1-405b", "dgx-h100", 64, 256, 8192),
    Case("deepseek-v3", "dgx-h100", 64, 1024, 4096, full=True),
]
cases = pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)],
    ids=lambda case: "-".join(map(str, case[:3])),
)  # fmt: skip


@cases
def test_a_recommended_plan_is_written_and_read_back(case: Case, tmp_path: Path) -> None:
    asked = job(case.global_batch, case.seq_len, precision=case.precision)
    machines = cluster(case.cluster, case.nodes)

    plan = recommend(model(case.model), machines, asked, TITAN, Options())

    assert isinstance(plan, Plan)
    assert plan.job.software == TITAN.software
    work = work_of_plan(plan)
    found = back(write_torchtitan(work), "job.toml", work, None, tmp_path)
    same(found, work)
    assert (found.model, found.layers, found.recompute) == (work.model, work.layers, work.recompute)
    assert (work.recompute is Recompute.FULL) == case.full


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-30b-a3b"])
def test_every_layout_of_the_space_can_be_written(name: str) -> None:
    spec, machines = model(name), cluster("dgx-h100", 2)
    asked = job(64, 8192, software=TITAN.software)
    found = layouts(spec, machines, asked, TITAN.problems)
    refused = {}
    for layout in found:
        layers = split_layers(spec.layers, layout.pp * layout.vpp)
        work = Work(spec, asked, layout, layers, (0,) * len(layers), tuple(range(16)), 2, 8)
        if problems := torchtitan_problems_of(work):
            refused[layout.label()] = problems

    assert refused == {}
    assert {layout.shard.zero_stage() for layout in found} == {0, 1, 2, 3}
    assert {layout.pp for layout in found} > {1, 2, 4}


# what torchtitan cannot be told, and what is said
REFUSED = [
    ("mixtral-8x7b", {}, "is no flavor of torchtitan"),
    ("llama-3-8b", {"optimizer": "muon"}, "only adamw"),
    ("llama-3-8b", {"lora_rank": 8}, "without adapters"),
    ("llama-3-8b", {"precision": "nvfp4"}, "use bf16, fp8 or mxfp8"),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED)
def test_what_torchtitan_cannot_be_told(name: str, changes: dict[str, object], said: str) -> None:
    asked = job(64, 4096, software=TITAN.software).model_copy(update=changes)
    assert TITAN.problems is not None

    assert layouts(model(name), cluster("dgx-h100"), asked, TITAN.problems) == []
    one = layouts(model(name), cluster("dgx-h100"), asked)[0]
    assert said in " ".join(TITAN.problems(model(name), asked, one))


def test_recommend_and_export_on_the_command_line(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    asked = "llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 8192"

    made = planner(f"recommend {asked} --target torchtitan --output {plan}")
    written = planner(f"export {plan} --target torchtitan --output {out}")

    assert made.exit_code == 0, made.stderr
    assert written.exit_code == 0, written.stderr
    checked = planner(f"check {out / 'torchtitan.toml'} --cluster dgx-h100 --nodes 1")
    assert checked.exit_code == 0, checked.stdout + checked.stderr
