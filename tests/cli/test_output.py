import io
import os
import re
import sys
import time
from pathlib import Path

import pytest
from typer.testing import Result

from planner.cli import output, recommend
from planner.errors import SpecError
from planner.progress import listening, tell
from planner.units import parse_seconds
from tests.cli.command import TINY, planner

ROWS = Path(__file__).parents[1] / "data" / "validate" / "rows.csv"


def test_option_names_itself() -> None:
    with pytest.raises(SpecError, match="--budget: 'soon' is not a duration"):
        output.option("--budget", parse_seconds, "soon")


def test_an_empty_file_holds_nothing_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.touch()

    output.check_free(file, force=False)
    output.save(file, "text")

    assert file.read_text() == "text"


def test_nothing_to_check_without_a_file() -> None:
    output.check_free(None, force=False)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device file")
def test_a_device_is_written_to_and_stays_one() -> None:
    output.save(Path(os.devnull), "text")

    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("columns", [80, 160])
def test_no_line_of_an_answer_ends_in_blanks(columns: int) -> None:
    layout = "explain memory llama-3-8b --cluster dgx-h100 --nodes 1 --global-batch 64"
    for command in (TINY, f"{layout} --seq-len 8192 --tp 2", "gpus", "models"):
        lines = planner(command, columns=columns).stdout.splitlines()
        assert [line for line in lines if line != line.rstrip()] == []
        assert len(lines) > 5


def test_colours_stay_where_blanks_went(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=12, force_terminal=True, color_system="standard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "console", lambda: console)
        with console.capture() as shown:
            output.show(Text("red words that wrap", style="red"))

    lines = shown.get().splitlines()
    assert lines == ["\x1b[31mred words\x1b[0m", "\x1b[31mthat wrap\x1b[0m"]


def test_progress_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.working("searching"):
        pass
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.working("searching"):
        pass
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_counts_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")

    with output.working("searching", 60):
        tell("layouts simulated", 3, 8)
        time.sleep(0.3)  # three times as long as the screen takes to be drawn again

    drawn = screen.getvalue()
    assert re.search(r"searching.*0:00:00.*of at most 60 s", drawn)
    assert re.search(r"3/8.*layouts simulated.*left", drawn)


def test_a_search_and_a_table_of_errors_say_how_far_they_are(tmp_path: Path) -> None:
    said: dict[str, tuple[int, int]] = {}
    with listening(lambda what, done, total: said.update({what: (done, total)})):
        assert planner(TINY).exit_code == 0
        assert planner("validate", ROWS).exit_code == 0

    done, total = said.pop("layouts simulated, at most")
    assert 0 < done <= total
    assert set(said) == {
        "grids, which layouts are legal",
        "layouts, does each fit",
        "layouts given their best stages",
        "rows",
    }
    assert all(done == total > 0 for done, total in said.values())


def test_interrupt_ends_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recommend, "check_free", interrupted)

    result: Result = planner(TINY)

    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"
