import json

import pytest

from planner.spec.cluster import cluster_names
from planner.spec.gpu import gpu_names
from planner.spec.huggingface import model_names
from tests.cli.command import planner


@pytest.mark.parametrize(
    ("command", "names"),
    [("models", model_names()), ("clusters", cluster_names()), ("gpus", gpu_names())],
)
def test_every_shipped_name_is_listed(command: str, names: tuple[str, ...]) -> None:
    result = planner(command)

    listed = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert result.exit_code == 0
    assert listed == list(names)
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["models", "clusters", "gpus"])
def test_lists_fit_80_columns_uncut(command: str) -> None:
    text = planner(command).stdout

    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("command", ["models", "clusters", "gpus"])
def test_full_records_as_json(command: str) -> None:
    records = json.loads(planner(command, "--json").stdout)

    listed = planner(command).stdout.splitlines()[1:]
    assert [record["name"] for record in records] == [line.split()[0] for line in listed]


def test_key_numbers() -> None:
    assert "70.6B" in planner("models").stdout
    assert "nvlink 450" in planner("clusters").stdout
    assert "125 (fp16)" in planner("gpus").stdout  # V100 has no bf16
