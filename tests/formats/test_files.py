"""Whole files or none."""

import os
from pathlib import Path

import pytest

from planner.formats.files import write_whole


def test_text_arrives_unchanged_in_a_new_directory(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a" / "b.txt", "één\nregel\n")

    assert path.read_bytes() == "één\nregel\n".encode()


@pytest.mark.parametrize("executable", [True, False])
def test_permissions_follow_the_umask(executable: bool, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_whole(tmp_path / "run.sh", "", executable)
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == (0o750 if executable else 0o640)


def test_old_file_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", lambda self, target: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        write_whole(path, "new")

    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("plan.json", "old")]
