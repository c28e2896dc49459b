"""What an interrupted run leaves: read again by the same machine, refused by another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.profiler import journal
from planner.profiler.journal import Journal, journal_path
from planner.profiler.progress import Progress, duration

MACHINE = {"device": "TestGPU", "world_size": 2}


def test_results_are_there_again(tmp_path: Path) -> None:
    output = tmp_path / "profile.json"
    first = Journal(output, MACHINE)
    first.add("a", {"gemms": [{"m": 1}]})
    first.add("b", {})

    again = Journal(output, MACHINE)

    assert again.results == {"a": {"gemms": [{"m": 1}]}, "b": {}}
    again.close()
    assert not journal_path(output).exists()


def test_restart_forgets(tmp_path: Path) -> None:
    Journal(tmp_path / "p", MACHINE).add("a", {})

    assert Journal(tmp_path / "p", MACHINE, restart=True).results == {}


def test_another_machine_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "p", MACHINE)

    with pytest.raises(SpecError, match=r"begun with world_size 2, here 4; .* --restart"):
        Journal(tmp_path / "p", MACHINE | {"world_size": 4})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 1', '{"version": 1, "machine": 5}'])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str) -> None:
    journal_path(tmp_path / "p").write_text(text)

    with pytest.raises(SpecError, match="not what the profiler writes; remove it or add --restart"):
        Journal(tmp_path / "p", MACHINE)


def test_what_another_profiler_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAIT_S", 0.2)
    Journal(tmp_path / "p", MACHINE)
    file = journal_path(tmp_path / "p")
    data: dict[str, Any] = json.loads(file.read_text())
    code = "import time; time.sleep(60)  # planner.profiler"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        data["writer"]["pid"] = other.pid
        file.write_text(json.dumps(data))
        with pytest.raises(SpecError, match=rf"process {other.pid} is still writing it"):
            Journal(tmp_path / "p", MACHINE)
        other.kill()
    Journal(tmp_path / "p", MACHINE)  # its end frees the file


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (-3, "0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_counts_and_scales(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("planner.profiler.progress.time.monotonic", lambda: now)
    progress = Progress(True, 4, 20.0)
    progress.begin(1)
    progress.done(10.0)
    now += 25.0  # twice the guess, the start counted in
    progress.on("the rest")

    assert progress.left_s() == pytest.approx(10.0 * 30 / 15)
    err = capsys.readouterr().err
    assert "4 measurements, 1 of them measured before, about 20 s" in err
    assert "[############............] 2/4, 20 s left: the rest" in err
