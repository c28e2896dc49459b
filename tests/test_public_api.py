import ast
from pathlib import Path

import pytest

import planner

NAMES = [
    "ClusterSpec",
    "JobSpec",
    "Layout",
    "ModelSpec",
    "Plan",
    "PlannerError",
    "estimate_step",
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
