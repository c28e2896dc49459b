import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import planner
from planner import JobSpec, Layout, Plan, load_cluster, load_model

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

NAMES = [
    "JobSpec",
    "Layout",
    "Plan",
    "PlannerError",
    "Shard",
    "check",
    "estimate",
    "load_cluster",
    "load_model",
    "recommend",
]


def test_ten_public_names() -> None:
    assert planner.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_from_where_it_is_defined(name: str) -> None:
    found = getattr(planner, name)

    assert found.__name__ == name
    assert name in dir(planner)
    assert planner._HOME[name].startswith("planner.")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(planner.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))

    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert seen == planner._HOME


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'planner' has no attribute 'Plann'"):
        planner.Plann  # noqa: B018


def test_the_example_of_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}

    exec(code, names)

    assert isinstance(names["plan"], planner.Plan)


def test_every_public_name_is_documented_and_typed() -> None:
    page = PAGE.read_text()

    assert [name for name in NAMES if f"`{name}" not in page] == []
    for name in NAMES:
        found = getattr(planner, name)
        assert found.__doc__
        assert isinstance(found, type) or "return" in found.__annotations__


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)

    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize("module", ["planner.api", "planner.spec.cluster"])
def test_the_examples_of_the_docstrings(module: str) -> None:
    failed, tried = doctest.testmod(import_module(module))

    assert tried
    assert failed == 0


def test_nodes_of_a_cluster_are_checked_as_in_a_file() -> None:
    with pytest.raises(planner.PlannerError, match=r"workstation.yaml.*nodes=2 need scale_out"):
        load_cluster("workstation", nodes=2)
    with pytest.raises(planner.PlannerError, match="nodes"):
        load_cluster("dgx-h100", nodes=0)


def test_bad_questions_get_one_sentence_for_each_problem() -> None:
    model, cluster = load_model("tiny-llama"), load_cluster("dgx-h100", nodes=1)
    job = JobSpec(global_batch=16, seq_len=64)

    assert len(planner.check(model, cluster, job, Layout(tp=8, dp=3)).problems) >= 3
    with pytest.raises(planner.PlannerError, match=r"tp\*cp\*dp\*pp=24 is not the 8 GPUs"):
        planner.estimate(model, cluster, job, Layout(tp=8, dp=3))
    with pytest.raises(planner.PlannerError, match="target"):
        planner.recommend(model, cluster, job, "nonsense")
    with pytest.raises(planner.PlannerError, match="precision='fp4'"):
        planner.recommend(model, cluster, job.model_copy(update={"precision": "fp4"}))


def test_the_functions_say_what_the_command_line_says() -> None:
    model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100", nodes=2)
    plan = planner.recommend(model, cluster, JobSpec(global_batch=64, seq_len=8192))
    assert isinstance(plan, Plan)
    layout, split = plan.to_layout(), plan.to_split()

    step = planner.estimate(model, cluster, plan.job, layout, split=split)
    found = planner.check(model, cluster, plan.job, layout, split=split)

    assert step.step_time_s == pytest.approx(plan.estimate.step_time_s)
    assert found.fullest.device == pytest.approx(plan.estimate.memory_bytes)
