"""Published recipes that run: none of them breaks a rule of ours, and a wrong neighbour does."""

import csv
from pathlib import Path

import pytest

from planner.formats.detect import detect, read_foreign
from planner.formats.settle import settle
from planner.formats.setup import Setup

FILE = Path(__file__).parents[1] / "data" / "formats" / "nemo_rl_recipes.csv"
with FILE.open(newline="", encoding="utf-8") as opened:
    ROWS = list(csv.DictReader(opened))

# column -> setting of a recipe
NAMES = {
    "tp": "tensor_model_parallel_size", "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size", "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size", "first_layers": "num_layers_in_first_pipeline_stage",
    "last_layers": "num_layers_in_last_pipeline_stage",
}  # fmt: skip


def read(row: dict[str, str], folder: Path) -> Setup:
    """Return the recipe of a row, its layout in a file that inherits the batch of another."""
    base, recipe = folder / "base.yaml", folder / "recipe.yaml"
    base.write_text(
        "policy:\n"
        f"  train_global_batch_size: {row['global_batch']}\n"
        f"  train_micro_batch_size: {row['micro_batch']}\n"
        f"  max_total_sequence_length: {row['seq_len']}\n"
        "  megatron_cfg:\n    enabled: true\n    tensor_model_parallel_size: 1\n"
        "cluster:\n  gpus_per_node: 1\n  num_nodes: 1\n"
    )
    layout = [f"    {NAMES[name]}: {row[name]}\n" for name in NAMES if row[name]]
    recipe.write_text(
        f"defaults: {base.name}\npolicy:\n  megatron_cfg:\n{''.join(layout)}"
        f"cluster:\n  num_nodes: {row['gpus']}\n"
    )
    return read_foreign(recipe)


@pytest.mark.parametrize("row", ROWS, ids=[Path(row["file"]).stem for row in ROWS])
def test_a_recipe_that_runs_is_not_refused(row: dict[str, str], tmp_path: Path) -> None:
    setup = read(row, tmp_path)

    degrees = {name: str(getattr(setup, name)) for name in ("gpus", "tp", "pp", "cp", "ep", "etp")}
    assert degrees == {name: row[name] for name in degrees}
    assert str(setup.global_batch) == row["global_batch"]
    assert settle(setup).problems == ()


@pytest.mark.parametrize("row", ROWS[::9], ids=[Path(row["file"]).stem for row in ROWS[::9]])
def test_the_same_recipe_on_one_gpu_more_is_refused(row: dict[str, str], tmp_path: Path) -> None:
    setup = read(row | {"gpus": str(int(row["gpus"]) + 1)}, tmp_path)

    found = {problem.split(":")[0] for problem in settle(setup).problems}

    assert found & {"M1", "M2", "M10"}


@pytest.mark.parametrize("line", ["defaults: base.yaml", 'defaults: "../a/base.yml"  # more',
                                  "defaults:\n  - base.yaml"])  # fmt: skip
def test_a_file_that_only_changes_another_is_recognised(line: str) -> None:
    assert detect(Path("x.yaml"), f"{line}\npolicy:\n  lr: 1\n") == "nemo"
    assert detect(Path("x.yaml"), line.replace(".yaml", "").replace(".yml", "")) is None
