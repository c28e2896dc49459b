"""Documentation cannot rot: commands, options, links and shipped counts are checked."""

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from planner.cli import app
from planner.spec.cluster import cluster_names
from planner.spec.gpu import gpu_names
from planner.spec.huggingface import model_names
from tests.cli.command import planner

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_documented(name: str) -> None:
    result = planner(f"{name} --help")

    assert result.exit_code == 0
    assert all(parameter.help for parameter in COMMANDS[name].params if parameter.name != "help")
    assert any(f"planner {name}" in page.read_text() for page in PAGES)


def test_every_option_of_recommend_is_documented() -> None:
    text = (ROOT / "docs" / "recommend.md").read_text()

    options = {max(parameter.opts, key=len) for parameter in COMMANDS["recommend"].params}
    assert {option for option in options if option.startswith("--") and option not in text} == set()


def test_readme_opens_with_two_commands() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)

    assert len(blocks) == 2
    assert "planner recommend llama-3-70b --cluster dgx-h100 --nodes 8" in blocks[0]
    assert blocks[1] == "bash scripts/test\n"
    assert README.index("```bash") < README.index("## ")


def test_readme_gives_the_reason_of_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["run"]}
    table = README.partition("## Dependencies\n")[2].partition("\n## ")[0]

    listed = re.findall(r"[a-z]+", " ".join(re.findall(r"^\| ([^|]+) \| \w", table, re.M)))
    names = {re.split(r"[<>=]", one)[0] for one in needed}
    assert names <= {*listed}
    assert {*listed} - names == {"with", "rich", "extra", "run"}


def test_readme_counts_what_ships() -> None:
    assert f"{len(model_names())} ship (`planner models`)" in README
    assert f"{len(cluster_names())} ship (`planner clusters`)" in README
    assert f"{len(gpu_names())} GPUs (`planner gpus`)" in README


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()

    others = {page.name for page in PAGES} - {"index.md"}
    assert {name for name in others if f"({name})" not in index} == set()
