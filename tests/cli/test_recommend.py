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


def links_file(folder: Path, nodes: int = 3) -> Path:
    """Write the links of some nodes, of which the first two are far apart."""
    rates = [[10e9] * nodes for _ in range(nodes)]
    rates[0][1] = 1e9
    file = folder / "links.json"
    hosts = [f"host{index}" for index in range(nodes)]
    file.write_text(json.dumps({"hosts": hosts, "bytes_per_s": rates}))
    return file


MIXED = """\
name: mixed
gpus_per_node: 4
domain_gpus: 4
scale_up: {kind: nvlink, bytes_per_s: 300 GB/s}
scale_out: {fabric: ib, nics_per_node: 4, nic_bytes_per_s: 200 Gbit/s}
node_groups:
  - {gpu: A100-SXM-80GB, nodes: 1, hosts: [fast]}
  - {gpu: A100-SXM-80GB, nodes: 1, speed: 0.5, hosts: [slow]}
"""


def mixed_file(folder: Path, text: str = MIXED) -> Path:
    file = folder / "mixed.yaml"
    file.write_text(text)
    return file


JOB = "--global-batch 64 --seq-len 8192 --target megatron"


def test_kinds_of_nodes_are_compared_and_hosts_named(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    command = f"recommend llama-3-8b --cluster {mixed_file(tmp_path)} {JOB}"

    result = planner(command, "--output", plan, columns=200)

    assert result.exit_code == 0
    assert "Kinds of nodes" in result.stdout
    assert "1 x A100-SXM-80GB, without A100-SXM-80GB at 50% speed" in result.stdout
    assert sorted(load(Plan, plan).hosts) == ["fast", "slow"]
    exported = planner(f"export {plan} --target megatron --output {tmp_path / 'out'}")
    assert exported.exit_code == 0, exported.stderr
    hosts = ",".join(load(Plan, plan).hosts)
    assert f"#SBATCH --nodelist={hosts}\n" in (tmp_path / "out" / "job.sbatch").read_text()


def test_a_mixed_plan_without_names_is_not_exported(tmp_path: Path) -> None:
    text = MIXED.replace(", hosts: [fast]", "").replace(", hosts: [slow]", "")
    plan = tmp_path / "plan.json"
    planner(f"recommend llama-3-8b --cluster {mixed_file(tmp_path, text)} {JOB} -o {plan}")

    result = planner(f"export {plan} --target megatron --output {tmp_path / 'out'}")

    assert result.exit_code == 2
    assert "give each group its hosts" in result.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("min-gpus llama-3-8b --cluster {} --nodes 2 " + JOB, "nodes of several kinds"),
        ("recommend llama-3-8b --cluster {} --nodes 3 " + JOB, "lists its 2 nodes by kind"),
        ("recommend llama-3-8b --cluster {} --links x.json " + JOB, "is of several kinds of nodes"),
    ],
)
def test_what_is_not_known_of_mixed_clusters_is_refused(
    tmp_path: Path, command: str, said: str
) -> None:
    result = planner(command.format(mixed_file(tmp_path)))

    assert result.exit_code == 2
    assert said in result.stderr


SMALL = "recommend tiny-llama --cluster dgx-h100 --global-batch 48 --seq-len 2048"


def test_measured_links_bring_hosts_and_their_order(tmp_path: Path) -> None:
    result = planner(SMALL, "--nodes", 2, "--links", links_file(tmp_path), columns=200)

    assert result.exit_code == 0
    assert "Order of nodes" in result.stdout
    assert "host0 - host1: 10.0 % of a healthy link; avoided, carries nothing" in result.stdout
    assert "hosts: host0, host2" in result.stdout


def test_all_measured_nodes_are_used_where_none_are_asked_for(tmp_path: Path) -> None:
    result = planner(SMALL, "--links", links_file(tmp_path), "--json")

    assert sorted(json.loads(result.stdout)["hosts"]) == ["host0", "host1", "host2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", 4), "--nodes: links of 3 nodes were measured; use at most 3"),
        (("--cluster", "gb200-nvl72"), "--links: 'gb200-nvl72' has domains of nodes"),
    ],
)
def test_links_that_do_not_fit_the_cluster_are_refused(
    tmp_path: Path, words: tuple[object, ...], said: str
) -> None:
    result = planner(SMALL, "--links", links_file(tmp_path), *words)

    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("words", ["--no-offload", "--offload", "--keep 3", ""])
def test_the_command_of_a_plan_can_be_typed_again(words: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    assert planner(f"{TINY} {words}", "--output", first).exit_code == 0

    command = json.loads(first.read_text())["command"].replace(str(first), str(again))

    assert words in command
    assert planner(command.removeprefix("planner ")).exit_code == 0
    assert json.loads(again.read_text())["layout"] == json.loads(first.read_text())["layout"]
