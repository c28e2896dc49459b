"""Reading plan.json: the same fields as the planner writes, every problem at once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from planner.launcher import plan_file
from planner.launcher.plan_file import PlanError, parse_plan, read_plan
from planner.plan import PLAN_VERSION, LayoutRecord, StageRecord
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan, gpt


def document(**layout: Any) -> dict[str, Any]:
    return build_plan(**layout).model_dump(mode="json")


def problems(changed: object) -> list[str]:
    with pytest.raises(PlanError) as caught:
        parse_plan(changed)
    return caught.value.problems


@pytest.mark.parametrize(
    ("config", "record"),
    [
        (plan_file.ModelConfig, ModelSpec),
        (plan_file.LayoutConfig, LayoutRecord),
        (plan_file.StageConfig, StageRecord),
    ],
)
def test_fields_are_those_the_planner_writes(config: type[Any], record: type[BaseModel]) -> None:
    known = {field.name for field in dataclasses.fields(config)}

    assert known == set(record.model_fields)
    assert plan_file.PLAN_VERSION == PLAN_VERSION


def test_plan_survives_the_file(tmp_path: Path) -> None:
    plan = build_plan(gpt(), pp=2, dp=2, zero=1, rank_map=(3, 1, 2, 0))
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())

    read = read_plan(path)

    assert dataclasses.asdict(read.model) == plan.model.model_dump()
    assert dataclasses.asdict(read.layout) == plan.layout.model_dump()
    assert [dataclasses.asdict(s) for s in read.stages] == [s.model_dump() for s in plan.stages]
    assert (read.global_batch, read.seq_len, read.rank_map) == (8, 16, (3, 1, 2, 0))
    assert (read.gpu, read.estimate.step_time_s) == ("TestGPU", 0.02)
    assert read.micro_batches == 4


def test_all_problems_are_reported_with_their_place() -> None:
    changed = document()
    changed["model"]["heads"] = "eight"
    changed["model"]["colour"] = "red"
    del changed["layout"]["tp"], changed["stages"][0]["layers"]
    changed["layout"]["pp"] = -1
    changed["job"]["seq_len"] = True
    changed["rank_map"] = ["first"]

    found = "\n".join(problems(changed))

    assert "model.heads: 'eight' is not of type int" in found
    assert "model.colour: this launcher does not know it" in found
    assert "layout.pp: -1 is negative" in found
    assert "stages[0].layers: missing" in found
    assert "job.seq_len: True is not of type int" in found
    assert "rank_map: ['first'] is not a list of ranks" in found
    assert len(found.splitlines()) == 6


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ([], "not a JSON object"),
        (document() | {"version": 99}, "version: 99 is not 1"),
        (document() | {"model": 3}, "model: 3 is not a record"),
        (document() | {"stages": None}, "stages: None is not of type list"),
        (document() | {"estimate": {}}, "estimate.step_time_s: None is not of type float"),
    ],
)
def test_wrong_shape_is_said(changed: object, words: str) -> None:
    found = problems(changed)

    assert words in found[0]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "No such file"), ("{", "not JSON"), ("[]", "not a JSON object")]
)
def test_unreadable_file_is_named(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(PlanError) as caught:
        read_plan(path)

    assert str(path) in caught.value.problems[0]
    assert words in caught.value.problems[0]


def test_expert_model_is_read_so_that_the_rules_can_refuse_it() -> None:
    changed = document()
    changed["model"]["moe"] = {"experts": 8, "top_k": 2, "ffn_hidden": 64}

    plan = parse_plan(json.loads(json.dumps(changed)))

    assert plan.model.moe is not None
