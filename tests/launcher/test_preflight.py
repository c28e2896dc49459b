"""The check before the first collective: complete, quick, without torch, exit code 2."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from planner.launcher.main import main
from planner.launcher.plan_file import parse_plan
from planner.launcher.preflight import plan_problems, world_problems
from planner.plan import Plan
from planner.spec.model import MoESpec
from tests.formats.plans import build_plan, job, llama, stage_table

ROOT = Path(__file__).parents[2]


def problems(plan: Plan, **changes: Any) -> str:
    document = plan.model_copy(update=changes).model_dump(mode="json")
    return "\n".join(plan_problems(parse_plan(document)))


def write(plan: Plan, directory: Path) -> Path:
    path = directory / "plan.json"
    path.write_text(plan.model_dump_json())
    return path


@pytest.mark.parametrize(
    "layout",
    [
        {"dp": 4, "zero": 3},
        {"tp": 4, "sequence_parallel": True},
        {"pp": 4, "layers": (0, 2, 2, 0)},
        {"pp": 2, "vpp": 2, "dp": 2, "zero": 1},
    ],
)
def test_executable_plan_has_no_problem(layout: dict[str, Any]) -> None:
    found = problems(build_plan(**layout))

    assert found == ""


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((4,), "stages: 1 listed, pp * vpp is 2"),
        ((2, 1), "stages: hold 3 layers, the model has 4"),
        ((3, 2), "stages: hold 5 layers, the model has 4"),
    ],
)
def test_stages_must_hold_the_model(counts: tuple[int, ...], words: str) -> None:
    found = problems(build_plan(pp=2), stages=stage_table(counts))

    assert words in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": 0}, "stages[1]: stage is 0, must be 1"),
        ({"first_layer": 1}, "stages[1]: first_layer is 1, must be 2"),
        ({"embedding": True}, "stages[1]: the embedding belongs to stage 0"),
        ({"head": False}, "stages[1]: the head belongs to stage 1"),
        ({"recompute_layers": 3}, "stages[1]: recompute_layers=3 of 2 layers"),
    ],
)
def test_wrong_stage_is_named(change: dict[str, Any], words: str) -> None:
    first, second = stage_table((2, 2))

    found = problems(build_plan(pp=2), stages=(first, second.model_copy(update=change)))

    assert words in found


def test_empty_stage_in_the_middle_is_refused() -> None:
    found = problems(build_plan(pp=4, layers=(2, 0, 2, 0)))

    assert found == "stages[1]: holds nothing"


def test_rank_map_and_schedule_must_fit() -> None:
    found = problems(build_plan(dp=4), rank_map=(0, 1, 1, 2), schedule="zbv")

    assert "rank_map: [0, 1, 1, 2] is no order of the ranks 0 to 3" in found
    assert "schedule: 'zbv' is not executed with vpp=1; try '1f1b'" in found
    chunked = problems(build_plan(llama(layers=8), pp=2, vpp=2), schedule="gpipe")
    assert chunked == "schedule: 'gpipe' is not executed with vpp=2; try 'interleaved_1f1b'"


def test_gpipe_runs_with_any_number_of_micro_batches() -> None:
    few = build_plan(pp=4, micro_batch=4)
    assert "micro-batches" in problems(few)
    assert problems(few, schedule="gpipe") == ""


def test_zero_sizes_are_refused_before_anything_divides_by_them() -> None:
    document = build_plan(dp=4).model_dump(mode="json")
    document["layout"]["dp"] = 0
    document["model"]["kv_heads"] = 0

    found = plan_problems(parse_plan(document))

    assert found == ["layout.dp: 0 must be at least 1", "model.kv_heads: 0 must be at least 1"]


def test_number_of_processes_must_be_that_of_the_plan() -> None:
    plan = parse_plan(build_plan(dp=4).model_dump(mode="json"))

    assert world_problems(plan, 4) == []
    assert world_problems(plan, 2) == ["the plan has 4 ranks, 2 processes were started; start 4"]


def test_check_prints_every_problem_and_returns_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moe = MoESpec(experts=8, top_k=2, ffn_hidden=64)
    path = write(build_plan(llama(moe=moe), tp=3, job_spec=job(precision="fp8")), tmp_path)

    code = main([str(path), "--check"])

    assert code == 2
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [
        " L1", " L7", " L11", " L12",
    ]  # fmt: skip


def test_start_without_torchrun_says_how_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)

    code = main([str(write(build_plan(), tmp_path)), "--steps", "0"])

    assert code == 2
    assert "--steps 0 must be at least 1" in (error := capsys.readouterr().err)
    assert "start with launch.sh or torchrun" in error


def test_check_does_not_import_torch(tmp_path: Path) -> None:
    path = write(build_plan(dp=4), tmp_path)
    code = (
        "import sys; from planner.launcher.main import main;"
        f"assert main([{str(path)!r}, '--check']) == 0; sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_illegal_plan_ends_all_processes_before_any_collective(tmp_path: Path) -> None:
    plan = build_plan(tp=2, pp=2, sequence_parallel=True, job_spec=job(seq_len=15, global_batch=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "4", "-m", "planner.launcher.main"]
    begin = time.monotonic()

    done = subprocess.run(
        [*command, str(write(plan, tmp_path)), "--backend", "gloo"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode != 0
    assert time.monotonic() - begin < 45
    assert done.stderr.count("error: L14: sequence_parallel: tp=2 does not divide seq_len=15") == 1
    assert done.stderr.count("error: L17: 1F1B over pp=2 needs at least 2 micro-batches") == 1
    assert "exitcode  : 2" in done.stderr
