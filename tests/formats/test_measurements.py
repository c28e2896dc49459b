"""Formats are recognised, several files make one profile, and ``planner profile import`` prints."""

import gzip
import json
from pathlib import Path

import pytest

from planner.cost.collectives import Group, collective_s
from planner.errors import SpecError
from planner.formats.measurements import FORMATS, import_profile
from planner.spec.cluster import load_cluster
from planner.spec.machine import apply_profile
from planner.spec.profile import load_profile
from tests.cli.command import planner
from tests.formats.measured import kernel, nccl_tests, operator, seconds, simumax, torch_trace

TRACE = torch_trace([operator(1, "aten::mm", [[64, 128], [128, 32]]), kernel(1, 7.0)])
TEXTS = {"nccl-tests": nccl_tests(), "simumax": json.dumps(simumax()), "torch-trace": TRACE}


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_recognised_by_what_it_holds(form: str, tmp_path: Path) -> None:
    file = written(tmp_path, "some.file", TEXTS[form])

    by_content, _ = import_profile([file])
    by_name, _ = import_profile([file], form)

    assert by_content == by_name
    assert [name for name, (is_it, _) in FORMATS.items() if is_it(TEXTS[form])] == [form]


def test_several_files_of_one_machine_are_one_profile(tmp_path: Path) -> None:
    logs = [written(tmp_path, f"{kind}.log", nccl_tests(kind, ranks, nodes))
            for kind, ranks, nodes in (("all_reduce", 8, 1), ("all_gather", 16, 2))]  # fmt: skip
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(gzip.compress(TRACE.encode()))

    profile, _ = import_profile([*logs, trace])

    assert [link.kind for link in profile.links] == ["all_reduce", "all_gather"]
    assert len(profile.gemms) == 1
    assert (profile.world_size, profile.memory_bytes) == (16, 85 * 10**9)
    for name in ("all_reduce.log", "all_gather.log", "trace.json.gz"):
        assert name in profile.origin


def test_a_cluster_with_the_profile_takes_the_measured_time(tmp_path: Path) -> None:
    file = written(tmp_path, "a.log", nccl_tests(alpha_s=5e-5, bytes_per_s=1.5e11))
    output = tmp_path / "profile.json"

    result = planner("profile import", file, "--output", output)

    assert result.exit_code == 0, result.stderr
    assert (
        "1 link curves (all_reduce of 8) and 0 matrix products measured on NVIDIA" in result.stderr
    )
    assert result.stdout == f"planner recommend MODEL --profile {output} ...\n"
    cluster = apply_profile(load_cluster("dgx-h100"), load_profile(output))
    for size in (2**14, 2**20, 2**26):
        measured_s = seconds(size, 5e-5, 1.5e11)
        found_s = collective_s("all_reduce", size, Group.place(8, 1, cluster), cluster)
        assert found_s == pytest.approx(measured_s, rel=0.01)


def test_what_a_file_holds_beyond_a_profile_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, "system.json", TEXTS["simumax"])

    result = planner("profile import", file, "--output", tmp_path / "profile.json")

    assert f"{file}: the network between nodes is not" in result.stderr
    assert "3 matrix products measured on our_gpu_bf16" in result.stderr


# name, content, more words, what is said
BAD = [
    ("a.log", "hello", "", "none of the formats nccl-tests, simumax, torch-trace; say which"),
    ("a.log", "hello", "--format nccl-tests", "no table of nccl-tests"),
    ("a.log", "hello", "--format xml", "--format: 'xml' is not read; use one of nccl-tests"),
    ("a.log", nccl_tests("all_gather", named=False), "", "add --collective, one of all_reduce"),
    ("a.log", nccl_tests("all_gather"), "--collective all_to_all", "'all_to_all' is no collective"),
    ("a.json.gz", "hello", "", "a.json.gz: cannot be unpacked"),
]


@pytest.mark.parametrize(("name", "text", "more", "said"), BAD)
def test_bad_input_is_said_and_nothing_is_written(
    name: str, text: str, more: str, said: str, tmp_path: Path
) -> None:
    file, output = written(tmp_path, name, text), tmp_path / "profile.json"

    result = planner(f"profile import {more}", file, "--output", output)

    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout
    assert not output.exists()


def test_bad_files_are_named_all_at_once(tmp_path: Path) -> None:
    files = [written(tmp_path, name, "hello") for name in ("a.log", "b.log")]

    with pytest.raises(SpecError) as caught:
        import_profile([*files, tmp_path / "none.log"])

    assert len(caught.value.problems) == 3
    for name in ("a.log", "b.log", "none.log"):
        assert any(name in problem for problem in caught.value.problems)


def test_files_of_two_machines_are_refused(tmp_path: Path) -> None:
    files = [written(tmp_path, f"{device}.log", nccl_tests(device=device)) for device in ("A", "B")]

    with pytest.raises(SpecError, match="files of different devices"):
        import_profile(files)


def test_an_existing_profile_is_kept(tmp_path: Path) -> None:
    file, output = written(tmp_path, "a.log", nccl_tests()), written(tmp_path, "p.json", "mine")

    result = planner("profile import", file, "--output", output)

    assert result.exit_code == 2
    assert "exists; name another file" in result.stderr
    assert output.read_text() == "mine"
