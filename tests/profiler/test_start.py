"""Starting the profiler: real runs of two gloo processes, and everything that can go wrong."""

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.errors import PlannerError, SpecError
from planner.profiler import start
from planner.profiler.start import profile, run_passing_on
from planner.spec.cluster import load_cluster
from planner.spec.machine import apply_profile
from planner.spec.profile import Profile, load_profile


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Return a profile that two processes really measured."""
    output = tmp_path_factory.mktemp("profile") / "profile.json"
    options = ("--quick", "--largest", "64 KiB", "--tp", "2", "--seq-len", "64",
               "--micro-batch", "1")  # fmt: skip
    found = profile(2, "tiny-llama", output, options, timeout_s=240)
    assert load_profile(output) == found
    return found


@pytest.mark.slow
def test_two_processes_measure_every_collective(measured: Profile) -> None:
    kinds = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]

    assert measured.world_size == 2
    assert measured.backend in ("gloo", "nccl")
    # on a machine with other work a curve may be doubted; then it is named
    doubted = [one for one in measured.rejected if "in one domain" in one.what]
    assert [link.kind for link in measured.links] == kinds or doubted
    for link in measured.links:
        assert (link.ranks, link.level, link.ranks_per_node) == (2, "domain", 2)
        assert {size for size, _ in link.points} <= {4096, 16384, 65536}
        assert all(0 < seconds < 10 for _, seconds in link.points)


@pytest.mark.slow
def test_two_processes_measure_the_kernels_of_the_model(measured: Profile) -> None:
    from planner.profiler.agenda import Wish, kernel_tasks
    from planner.profiler.tasks import AttentionTask, KernelTask, Machine, ProductTask
    from planner.spec.huggingface import load_model

    model = load_model("tiny-llama")
    tasks = kernel_tasks(Machine(2, 2, 2, False), model, Wish(model, 64, (1,), tp=(2,)))
    doubted = {one.what for one in measured.rejected}
    wanted = {
        kind: sum(isinstance(task, kind) and task.name not in doubted for task in tasks)
        for kind in (ProductTask, AttentionTask, KernelTask)
    }

    assert len(measured.gemms) == wanted[ProductTask] > 0
    assert len(measured.attention) == wanted[AttentionTask]
    assert all(0 < one.seconds < 10 for one in (*measured.gemms, *measured.attention))


@pytest.mark.slow
def test_the_profile_tells_where_it_is_from(measured: Profile) -> None:
    assert measured.version == 2
    assert measured.hosts
    assert measured.ranks_per_node == 2
    assert measured.driver
    assert measured.library
    assert measured.torch_version
    assert [pair.ranks for pair in measured.pairs] in ([(0, 1), (1, 0)], [])
    assert measured.host is not None
    assert measured.host.copy_bytes_per_s


@pytest.mark.slow
def test_a_cluster_takes_the_profile_over(measured: Profile) -> None:
    cluster = load_cluster("dgx-h100")
    taken = apply_profile(cluster, measured)
    link = measured.links[0]
    curve = next(c for c in taken.gpu.collectives[link.kind] if c.ranks == 2)
    size, seconds = link.points[-1]

    # one curve through noisy points of a shared CPU: the order of magnitude is right
    fitted = curve.alpha_s + size / curve.bytes_per_s + curve.gamma_s_per_sqrt_byte * size**0.5
    assert fitted == pytest.approx(seconds, rel=10)
    assert "measured on" in taken.gpu.sources["collectives"]


@pytest.mark.slow
def test_two_nodes_measure_rails_and_whole_nodes(tmp_path: Path) -> None:
    """Two agents on this machine stand for two nodes of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = tmp_path / "profile.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "2", "--master-addr", "localhost", "--master-port", str(port)]
    options = ["-m", "planner.profiler", "--output", str(output), "--quick", "--largest", "4096"]
    nodes = [
        subprocess.Popen([*torchrun, "--node-rank", node, *options], stderr=subprocess.DEVNULL)
        for node in "01"
    ]
    codes = [node.wait(240) for node in nodes]
    links = load_profile(output).links

    assert codes == [0, 0]
    found = {(link.ranks, link.level, link.ranks_per_node) for link in links}
    assert found == {(2, "domain", 2), (2, "cluster", 1), (4, "cluster", 2)}
    doubted = load_profile(output).rejected
    levels = {link.level for link in links if link.kind == "send_recv"}
    assert levels == {"domain", "cluster"} or doubted


@pytest.mark.slow
def test_what_a_process_finds_wrong_is_raised_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        profile(2, tmp_path / "no-model.json", tmp_path / "profile.json", timeout_s=240)

    assert len(raised.value.problems) == 1
    assert "no-model.json: no such file" in raised.value.problems[0]
    assert not (tmp_path / "profile.json").exists()


@pytest.mark.slow
def test_a_folder_that_is_missing_shows_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such folder .*; make it first"):
        profile(1, None, tmp_path / "absent" / "profile.json", timeout_s=240)


def test_torch_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(SpecError, match=r"pip install 'llm-layout-planner\[run\]'"):
        profile(1, None, tmp_path / "profile.json")


def test_no_processes(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="0 processes cannot measure"):
        profile(0, None, tmp_path / "profile.json")


def test_importing_start_leaves_torch_alone() -> None:
    code = "import sys, planner.profiler.start; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_output_goes_to_stderr_and_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); sys.exit(3)"
    )
    returned, lines = run_passing_on([sys.executable, "-c", code], timeout_s=30)
    out, err = capsys.readouterr()

    assert returned == 3
    assert lines == ["out", "err"]
    assert out == ""
    assert err == "out\nerr\n"


def test_a_timeout_ends_the_whole_group() -> None:
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    code = f"import subprocess; print('working', flush=True); subprocess.run({child!r})"
    begin = time.monotonic()

    with pytest.raises(PlannerError, match=r"more than 1 s and was stopped; it said last: working"):
        run_passing_on([sys.executable, "-c", code], timeout_s=1)
    assert time.monotonic() - begin < 10


REPORTS = [
    (
        ["error: a.json:3: tp: wrong", "error: a.json:3: tp: wrong"],
        SpecError,
        "a.json:3: tp: wrong",
    ),
    (
        ["[rank1]: Traceback (most recent call last):", "[rank1]: RuntimeError: out of memory"],
        PlannerError,
        "the profiler stopped: RuntimeError: out of memory",
    ),
    (
        ["[rank0]: torch.OutOfMemoryError: CUDA out of memory."],
        PlannerError,
        "the profiler stopped: torch.OutOfMemoryError: CUDA out of memory.",
    ),
    (
        [
            "[####....] 3/9, 2 s left: norm of 64 tokens",
            "  rank      : 0 (local_rank: 0)",
            "  exitcode  : -15 (pid: 5)",
            "  rank      : 3 (local_rank: 3)",
            "  exitcode  : -9 (pid: 8)",
        ],
        PlannerError,
        "rank 3 was ended by SIGKILL (often the kernel, out of memory) about 'norm of 64 tokens'",
    ),
    (["Killed"], PlannerError, "the profiler stopped with exit code 9; it said last:\nKilled"),
]


@pytest.mark.parametrize(("lines", "kind", "text"), REPORTS)
def test_reports_of_failures(
    tmp_path: Path, lines: list[str], kind: type[PlannerError], text: str
) -> None:
    error = start._failure(9, lines, tmp_path / "profile.json")

    assert type(error) is kind
    assert error.problems == (text,)
