import json
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import TINY, planner

NOTHING_FITS = (
    "recommend llama-3.1-405b --cluster dgx-h100 --nodes 1 --global-batch 8 --seq-len 8192"
)


def test_the_first_line_is_the_answer() -> None:
    result = planner(f"{TINY} --pp 1", columns=300)

    assert result.exit_code == 0
    first = result.stdout.splitlines()[0]
    for word in ("Fastest: data 8", "per step (", "tokens/s per GPU", "TFLOP/s bf16 dense peak"):
        assert word in first


def test_json_alone_on_stdout() -> None:
    result = planner(TINY, "--json")

    plan = Plan.model_validate_json(result.stdout)
    assert plan.model.name == "tiny-llama"
    assert "target torch" in result.stderr


def test_json_and_file_hold_the_same(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    result = planner(TINY, "--json", "--output", file)

    assert json.loads(result.stdout) == json.loads(file.read_text())
    assert f"plan written to {file}" in result.stderr


def test_plan_file_can_be_read_back(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    planner(TINY, "-o", file)

    plan = load(Plan, file)

    assert plan.cluster.nodes == 1
    assert plan.job.global_batch == 16


def test_next_commands_follow_what_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "p.json"

    unsaved = planner(TINY).stdout
    saved = planner(TINY, "--output", file).stdout

    line = next(text for text in unsaved.splitlines() if "--output plan.json" in text)
    assert "recommend tiny-llama" in line
    assert "--nodes 1" in line
    assert "--keep" not in line
    assert f"planner export {file} --target torch --output tiny-llama-8gpu" in saved
    assert "--output plan.json" not in saved


def test_several_nodes_are_launched_by_slurm() -> None:
    text = planner(TINY.replace("--nodes 1", "--nodes 2")).stdout

    assert "cd tiny-llama-16gpu && sbatch job.sbatch" in text


def test_nodes_default_to_the_cluster_file() -> None:
    result = planner(TINY.replace("--nodes 1", "").replace("dgx-h100", "workstation"), "--json")

    assert json.loads(result.stdout)["cluster"]["nodes"] == 1


def test_keep_is_the_number_of_ranked_layouts() -> None:
    result = planner(TINY, "--keep", "3", "--json")

    assert len(json.loads(result.stdout)["alternatives"]) == 2


def test_expert_models_can_be_exported() -> None:
    words = "recommend qwen1.5-moe-a2.7b --cluster dgx-h100 --nodes 1 --global-batch 64"

    result = planner(words, "--seq-len", "2048", "--keep", "1", columns=200)

    assert result.exit_code == 0
    assert "target torch: " in result.stderr
    assert "expert" in result.stdout.splitlines()[0]
    assert "planner export" in result.stdout


def test_eight_bit_goes_to_megatron() -> None:
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096"

    result = planner(words, "--precision", "fp8", "--keep", "1")

    assert result.exit_code == 0
    assert "target megatron: the torch program cannot run this job (" in result.stderr
    assert "fp8" in result.stdout
    assert "planner export plan.json --target megatron" in result.stdout


def test_memory_kept_free_changes_the_answer() -> None:
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 8192"

    much, little = (
        json.loads(planner(words, "--keep-free", share, "--json").stdout)["estimate"]
        for share in ("50%", "0.02")
    )

    assert much["memory_bytes"] <= 0.5 * much["capacity_bytes"]
    assert little["memory_bytes"] > much["memory_bytes"]
    assert little["step_time_s"] <= much["step_time_s"]


def test_profile_changes_the_estimate(tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    products = [(m, 4096, 4096, "bf16", 2 * m * 4096 * 4096 / 100e12) for m in (512, 1024, 8192)]
    fields = ("m", "n", "k", "dtype", "seconds")
    file.write_text(
        json.dumps(
            {
                "device": "slow H100",
                "world_size": 1,
                "backend": "nccl",
                "date": "2025-01-31",
                "torch_version": "2.13",
                "gemms": [dict(zip(fields, product, strict=True)) for product in products],
            }
        )
    )
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64 --seq-len 8192"

    shipped, measured = (planner(words, "--json", *more) for more in ((), ("--profile", file)))

    before, after = (
        json.loads(result.stdout)["estimate"]["step_time_s"] for result in (shipped, measured)
    )
    assert after > 2 * before
    assert "measured on slow H100, 2025-01-31" in measured.stderr


def test_honest_no() -> None:
    result = planner(NOTHING_FITS, columns=300)

    assert result.exit_code == 1
    assert result.stdout.startswith("Nothing fits: ")
    assert "GiB short" in result.stdout
    assert "What would make it fit" in result.stdout
    assert "error" not in result.stderr


def test_honest_no_as_data(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    result = planner(NOTHING_FITS, "--json", "--output", file)

    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert answer["fits"] is False
    assert answer["shortfall_bytes"] == answer["needed_bytes"] - answer["limit_bytes"] > 0
    assert 1 <= len(answer["changes"]) <= 3
    assert not file.exists()
    assert "was not written" in result.stderr


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("mine")

    result = planner(TINY, "--output", file)

    assert result.exit_code == 2
    assert (
        result.stderr == f"error: {file}: exists; name another file, or add --force to replace it\n"
    )
    assert file.read_text() == "mine"


def test_force_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("mine")

    assert planner(TINY, "--force", "--output", file).exit_code == 0
    assert load(Plan, file).model.name == "tiny-llama"


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_only_commands_are_wider_than_the_terminal(columns: int) -> None:
    text = planner(TINY, columns=columns).stdout

    wide = [line for line in text.splitlines() if len(line) > columns]
    assert all(line.startswith("  planner ") for line in wide)


def test_no_colour_codes_where_it_is_no_terminal() -> None:
    assert "\x1b" not in planner(TINY).stdout
