"""Plans on nodes of two kinds: commands answer as the plan does, or refuse in one sentence."""

import json
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.spec.files import load
from tests.cli.command import planner

CLUSTER = """\
name: two-kinds
gpus_per_node: 4
domain_gpus: 4
scale_up: {kind: nvlink, bytes_per_s: 150 GB/s}
scale_out: {fabric: ib, nics_per_node: 4, nic_bytes_per_s: 200 Gbit/s}
node_groups:
  - {gpu: V100-SXM-32GB, nodes: 1, hosts: [slow]}
  - {gpu: A100-SXM-80GB, nodes: 1, hosts: [fast]}
"""
JOB = "--global-batch 64 --seq-len 4096 --precision fp16 --target megatron"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Plan]:
    folder = tmp_path_factory.mktemp("mixed")
    cluster, plan = folder / "cluster.yaml", folder / "plan.json"
    cluster.write_text(CLUSTER)
    result = planner(f"recommend llama-3-8b --cluster {cluster} {JOB} --output {plan}")
    assert result.exit_code == 0, result.stderr
    return cluster, plan, load(Plan, plan)


Made = tuple[Path, Path, Plan]


def answer(command: str) -> dict[str, object]:
    result = planner(f"{command} --json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_the_plan_uses_both_kinds(made: Made) -> None:
    plan = made[2]

    assert len(plan.cluster.node_groups) == 2
    assert plan.layout.pp > 1
    assert len({stage.layers for stage in plan.stages}) > 1


def test_check_asks_the_gpu_that_has_least_to_spare(made: Made) -> None:
    _, file, plan = made
    found = answer(f"check {file}")

    assert found["verdict"] == "fits"
    assert found["memory_bytes"] == pytest.approx(plan.estimate.memory_bytes)
    assert found["capacity_bytes"] == plan.estimate.capacity_bytes


def test_explain_memory_names_the_gpu_of_each_rank(made: Made) -> None:
    _, file, plan = made
    shown = planner(f"explain memory {file}", columns=160).stdout
    found = answer(f"explain memory {file}")

    ranks = [line.split() for line in shown.splitlines() if line.endswith("-SXM-32GB")]
    assert len(ranks) + shown.count("A100-SXM-80GB\n") == plan.layout.pp
    assert "No single change is proposed for nodes of several kinds" in shown
    assert [rank["device"] for rank in found["ranks"]] == pytest.approx(  # type: ignore[attr-defined]
        [stage.memory_bytes for stage in plan.stages]
    )
    assert found["changes"] == []


def test_explain_speed_and_simulate_take_as_long_as_the_plan(made: Made) -> None:
    _, file, plan = made
    speed, simulated = answer(f"explain speed {file}"), answer(f"simulate {file}")

    assert speed["step_time_s"] == pytest.approx(plan.estimate.step_time_s)
    assert simulated["step_time_s"] == pytest.approx(plan.estimate.step_time_s)


def test_report_is_written(made: Made) -> None:
    _, file, _ = made
    page = file.with_suffix(".html")

    assert planner(f"report {file} --output {page}").exit_code == 0
    assert "V100-SXM-32GB" in page.read_text()


@pytest.mark.parametrize(("tp", "pp", "fits"), [(4, 2, True), (1, 1, False)])
def test_a_stated_layout_lies_on_the_nodes_in_the_order_of_the_file(
    made: Made, tp: int, pp: int, fits: bool
) -> None:
    cluster = made[0]
    result = planner(f"check llama-3-8b --cluster {cluster} {JOB} --tp {tp} --pp {pp} --json")
    found = json.loads(result.stdout)

    assert (found["verdict"] == "fits") == fits
    assert found["capacity_bytes"] < 33 * 2**30, "the smaller GPU decides"


REFUSED = [
    "check llama-3-8b --cluster {cluster} --global-batch 64 --seq-len 4096 --precision bf16",
    "explain experts {plan} --loads zipf:1",
    "replan {plan} --nodes 2",
    "cost {plan} --tokens 1T",
]


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_not_known_is_refused_in_one_sentence(made: Made, command: str) -> None:
    cluster, plan, _ = made
    result = planner(command.format(cluster=cluster, plan=plan))

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "several kinds" in result.stderr or "V100-SXM-32GB" in result.stderr
    assert result.stderr.count("error:") == 1
