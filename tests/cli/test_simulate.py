"""``planner simulate``: from a written plan to words, data and a trace."""

import gzip
import json
from pathlib import Path

import pytest

from planner.layout.layout import Layout
from planner.plan import Plan
from planner.schedule.custom import actions
from planner.schedule.kinds import V_SHAPED
from planner.schedule.orders import order
from planner.spec.files import load
from tests.cli.command import planner


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("simulate") / "plan.json"
    words = "recommend llama-3-8b --cluster dgx-h100 --nodes 2 --global-batch 64 --seq-len 4096"
    assert planner(words, "--target", "megatron", "--output", file).exit_code == 0
    return file


def with_schedule(plan_file: Path, folder: Path, schedule: str, **layout: int) -> Path:
    """Write the plan again with another pipeline."""
    document = json.loads(plan_file.read_text())
    document["schedule"] = schedule
    document["layout"] |= dict.fromkeys(("tp", "cp", "vpp"), 1) | {"shard_optimizer": 1} | layout
    document["layout"]["sequence_parallel"] = False
    layers = document["model"]["layers"]
    stages = layout["pp"] * document["layout"]["vpp"]
    document["stages"] = [
        {"stage": number, "first_layer": number * layers // stages, "layers": layers // stages}
        for number in range(stages)
    ]
    file = folder / "changed.json"
    file.write_text(json.dumps(document))
    return file


def test_the_plans_own_step_time_is_found_again(plan_file: Path) -> None:
    result = planner("simulate", plan_file, "--json")
    answer = json.loads(result.stdout)

    assert result.exit_code == 0, result.stderr
    assert answer["step_time_s"] == pytest.approx(load(Plan, plan_file).estimate.step_time_s)
    for causes in answer["causes_s"]:
        assert sum(causes.values()) == pytest.approx(answer["step_time_s"])
    assert answer["critical_path"]["tasks"]


def test_words_name_every_second(plan_file: Path) -> None:
    result = planner("simulate", plan_file)

    assert result.exit_code == 0
    for words in ("Where each second goes", "forward compute", "optimizer", "Critical path", "100"):
        assert words in result.stdout


def test_the_trace_is_written_once(plan_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json.gz"

    assert planner("simulate", plan_file, "--trace", file).exit_code == 0
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    again = planner("simulate", plan_file, "--trace", file)
    assert again.exit_code == 2
    assert "add --force" in again.stderr
    assert planner("simulate", plan_file, "--trace", file, "--force").exit_code == 0


def test_a_plan_may_name_another_schedule(plan_file: Path, tmp_path: Path) -> None:
    changed = with_schedule(plan_file, tmp_path, "zb_h1", pp=4, dp=4)
    answer = json.loads(planner("simulate", changed, "--json").stdout)

    assert load(Plan, changed).to_layout().schedule == "zb_h1"
    assert answer["schedule"] == "zb_h1"
    assert all(causes["weight_gradient"] > 0 for causes in answer["causes_s"])
    refused = planner("export", changed, "--target", "megatron", "--output", tmp_path / "b")
    assert refused.exit_code == 2
    assert "zb_h1 is not written for this target" in refused.stderr


def test_the_usual_schedules_are_no_name(plan_file: Path) -> None:
    plan = load(Plan, plan_file)

    assert plan.schedule in ("1f1b", "interleaved_1f1b")
    assert plan.to_layout().schedule == Layout().schedule == ""


@pytest.mark.parametrize(("schedule", "vpp"), [("zb_h1", 1), ("v_half", 2), ("dualpipe", 1)])
def test_another_schedule_may_be_asked_for(
    plan_file: Path, tmp_path: Path, schedule: str, vpp: int
) -> None:
    """The answer is that of a plan that names it, with its stages cut to the schedule's chunks."""
    plain = with_schedule(plan_file, tmp_path, "1f1b", pp=4, dp=4)
    asked = planner("simulate", plain, "--schedule", schedule, "--json")
    named = with_schedule(plan_file, tmp_path, schedule, pp=4, dp=4, vpp=vpp)

    answer = json.loads(asked.stdout)
    assert answer["schedule"] == schedule
    assert answer == json.loads(planner("simulate", named, "--json").stdout)
    assert ("split evenly" in asked.stderr) == (vpp == 2)


def test_an_order_may_come_from_a_file(plan_file: Path, tmp_path: Path) -> None:
    plan = with_schedule(plan_file, tmp_path, "zb_h2", pp=4, dp=4)
    rows, file = actions(order("zb_h2", 4, 16)), tmp_path / "order.csv"
    file.write_text("\n".join(",".join(row) for row in rows))
    given, named = (
        json.loads(planner("simulate", plan, *more, "--json").stdout)
        for more in (("--schedule", file), ())
    )

    # an order from a file is timed from the first pass of rank 0 to the last of all ranks
    assert given["step_time_s"] > named["step_time_s"]
    assert given["causes_s"][0]["weight_gradient"] == named["causes_s"][0]["weight_gradient"]
    file.write_text("\n".join(",".join(row) for row in rows[:2]))
    refused = planner("simulate", plan, "--schedule", file)
    assert refused.exit_code == 2
    assert "holds 2 ranks and 16 micro-batches; the plan has 4" in refused.stderr


def test_an_unknown_schedule_is_named(plan_file: Path, tmp_path: Path) -> None:
    changed = with_schedule(plan_file, tmp_path, "zigzag", pp=4, dp=4)
    result = planner("simulate", changed)

    assert result.exit_code == 2
    assert "'zigzag' is not a schedule; use one of 1f1b" in result.stderr


def test_a_missing_plan_is_an_error(tmp_path: Path) -> None:
    result = planner("simulate", tmp_path / "none.json")

    assert result.exit_code == 2
    assert "none.json" in result.stderr


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "zb_v", "dualpipe_v"])
def test_an_order_from_a_file_is_checked_by_the_passes_it_keeps(
    plan_file: Path, tmp_path: Path, schedule: str
) -> None:
    """As much memory as the schedule of that name on its fullest rank, in words and as data."""
    plan, file = with_schedule(plan_file, tmp_path, "1f1b", pp=4, dp=4), tmp_path / "order.csv"
    chunks = 2 if schedule in V_SHAPED else 1
    rows = actions(order(schedule, 4, 16, chunks))
    file.write_text("\n".join(",".join(row) for row in rows))

    given, named = (
        json.loads(planner("simulate", plan, "--schedule", asked, "--json").stdout)["fit"]
        for asked in (file, schedule)
    )

    assert max(given["device_bytes"]) == pytest.approx(max(named["device_bytes"]))
    assert given["verdict"] == named["verdict"]
    said = planner("simulate", plan, "--schedule", file).stdout
    assert " ".join(said.split()).count(f"{given['verdict'][1:]}: ") == 1


def test_an_order_that_keeps_too_much_is_told(plan_file: Path, tmp_path: Path) -> None:
    """All forward passes first keep 16 micro-batches where 1F1B keeps 4."""
    plan, file = with_schedule(plan_file, tmp_path, "1f1b", pp=4, dp=4), tmp_path / "order.json"
    file.write_text(json.dumps(actions(order("gpipe", 4, 16))))

    plain, greedy = (
        json.loads(planner("simulate", plan, *more, "--json").stdout)["fit"]
        for more in ((), ("--schedule", file))
    )

    assert (plain["verdict"], greedy["verdict"]) == ("fits", "does not fit")
    assert greedy["device_bytes"][3] > greedy["capacity_bytes"] > plain["device_bytes"][3]
    assert "Does not fit: " in planner("simulate", plan, "--schedule", file).stdout
