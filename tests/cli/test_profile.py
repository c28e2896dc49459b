import json
from pathlib import Path

import pytest
from typer.testing import Result

from planner.errors import SpecError
from planner.profiler import start
from planner.spec.measured import GemmMeasurement
from planner.spec.profile import Profile
from tests.cli.command import planner

FOUND = Profile(
    device="TestGPU",
    world_size=2,
    backend="gloo",
    date="2025-01-31",
    torch_version="2.13",
    gemms=(GemmMeasurement(m=1, n=1, k=1, seconds=1.0),),
)


def test_starts_the_profiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def measure(*arguments: object) -> Profile:
        asked.append(arguments)
        return FOUND

    monkeypatch.setattr(start, "profile", measure)
    file = tmp_path / "profile.json"

    result = planner_run(file, "--quick")

    assert result.exit_code == 0
    ((nproc, model, output, words),) = asked
    assert (nproc, model, output) == (2, Path("tiny-llama"), file)
    assert isinstance(words, tuple)
    assert words[words.index("--seq-len") + 1] == "4096"
    assert words[-1] == "--quick"
    assert result.stdout == f"planner recommend tiny-llama --profile {file} ...\n"
    assert "0 link curves and 1 kernels measured on TestGPU" in result.stderr


def test_what_the_profiler_says_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(*arguments: object) -> Profile:
        raise SpecError("profiling needs torch: pip install 'llm-layout-planner[run]'")

    monkeypatch.setattr(start, "profile", measure)

    result = planner_run(tmp_path / "profile.json")

    assert result.exit_code == 2
    assert result.stderr.startswith("error: profiling needs torch")


def test_an_existing_profile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text("{}")

    result = planner_run(file)

    assert result.exit_code == 2
    assert "exists; name another file, or add --force" in result.stderr


def test_an_unknown_model_starts_nothing(tmp_path: Path) -> None:
    result = planner("profile llama-9 --nproc 2 --output", tmp_path / "profile.json")

    assert result.exit_code == 2
    assert "model 'llama-9' is not shipped" in result.stderr


def test_a_dry_run_measures_nothing(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"

    result = planner_run(file, "--dry-run", "--seq-len", "64")

    assert result.exit_code == 0, result.stderr
    assert "all_reduce, 2 ranks, 2 per node, in one domain" in result.stdout
    assert "measurements, about " in result.stderr
    assert not file.exists()


# tiny-llama has 8 heads; options that cannot be, and what is said before any process starts
WRONG = [
    ("--nproc 2", "--output: no file named; name the profile to write, or add --dry-run"),
    ("--nproc 2 --dry-run --micro-batch 1,x", "--micro-batch: '1,x' is no list of counts"),
    ("--nproc 2 --dry-run --micro-batch 0", "--micro-batch: 0 must be 1 or more"),
    ("--nproc 2 --dry-run --largest 0", "--largest: 0 must be 1 or more"),
    ("--nproc 2 --dry-run --largest huge", "--largest: 'huge' is not a size"),
    ("--nproc 2 --dry-run --timeout 0s", "--timeout-s: 0.0 must be more than 0 seconds"),
    ("--nproc 2 --dry-run --tp 4", "--tp: 4 ranks, but only 2 take part"),
    ("--nproc 4 --dry-run --tp 1,3", "--tp: 3 does not divide 8 heads"),
    ("--nproc 4 --dry-run --ep 2", "--ep: 2 does not divide 1 experts"),
    ("--nproc 4 --dry-run --ssd /absent", "--ssd: /absent: no such folder"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_options_that_cannot_be(options: str, said: str) -> None:
    result = planner("profile tiny-llama --seq-len 64", *options.split())

    assert result.exit_code == 2
    assert f"error: {said}" in result.stderr


def test_a_dry_run_needs_no_file() -> None:
    assert planner("profile tiny-llama --nproc 2 --seq-len 64 --dry-run").exit_code == 0


def test_show_diff_and_merge(tmp_path: Path) -> None:
    one, two, both = (tmp_path / name for name in ("one.json", "two.json", "both.json"))
    one.write_text(FOUND.model_dump_json())
    faster = GemmMeasurement(m=1, n=1, k=1, seconds=0.5)
    two.write_text(FOUND.model_copy(update={"gemms": (faster,)}).model_dump_json())

    shown = planner("profile show", one)
    changes = planner("profile diff", one, two)
    merged = planner("profile merge", one, two, "--output", both)

    assert shown.exit_code == changes.exit_code == merged.exit_code == 0
    assert "2 x TestGPU" in shown.stdout
    assert "-50%" in changes.stdout
    assert json.loads(both.read_text())["gemms"][0]["seconds"] == 0.5


def test_profiles_of_two_machines_do_not_merge(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(FOUND.model_dump_json())
    two.write_text(FOUND.model_copy(update={"device": "Other"}).model_dump_json())

    result = planner("profile merge", one, two, "--output", tmp_path / "both.json")

    assert result.exit_code == 2
    assert "device: 'TestGPU', 'Other' differ" in result.stderr


@pytest.mark.slow
def test_measures_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "profile.json"

    result = planner_run(file, "--quick", "--seq-len", "64", "--micro-batch", "1")

    assert result.exit_code == 0, result.stderr
    found = json.loads(file.read_text())
    assert found["world_size"] == 2
    assert found["links"]
    assert found["gemms"]


def planner_run(file: Path, *more: str) -> Result:
    """Profile two processes into a file."""
    return planner("profile tiny-llama --nproc 2 --output", file, *more)
