import csv
import json
from pathlib import Path

import pytest

from tests.cli.command import planner
from tests.validate.test_table import plain_row


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rows = [
        plain_row("lab-1", step_time_s=3, sweep_id="s", mem_gib_peak_reported=20),
        plain_row("lab-2", tp=4, pp=1, step_time_s=4, sweep_id="s"),
        plain_row("lab-3", tp=1, pp=1, step_time_s=2, sweep_id="s"),
        plain_row("other-1", gbs=""),
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    file = tmp_path / "runs.csv"
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_prints_the_error_table(runs: Path) -> None:
    result = planner("validate", runs)

    assert result.exit_code == 0
    assert result.stdout.startswith(
        "4 rows, 3 estimated (75.0%); 100.0% of the 3 that state their shape, "
    )
    assert "gbs is not stated" in result.stdout
    assert "Ranking: 1 sweeps" in result.stdout
    assert "yardstick" in result.stdout
    assert result.stderr == ""


def test_writes_the_estimate_of_every_row(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"

    result = planner("validate", runs, "--json", file)

    rows = json.loads(file.read_text())["rows"]
    assert [row["id"] for row in rows] == ["lab-1", "lab-2", "lab-3", "other-1"]
    assert rows[3]["skipped"] == "gbs is not stated"
    assert rows[0]["skipped"] is None
    assert rows[0]["step_time_low_s"] < rows[0]["step_time_s"] < rows[0]["step_time_high_s"]
    assert rows[0]["mem_gib_peak"] > 0
    assert rows[0]["fits"] is True
    assert "cp=1" in rows[0]["assumed"]
    assert f"estimates written to {file}" in result.stderr


def test_several_files_make_one_table(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "more.csv"
    other.write_text(runs.read_text().replace("lab-", "site-"))

    result = planner("validate", runs, other)

    assert result.stdout.startswith("8 rows, 6 estimated (75.0%)")
    assert "  lab " in result.stdout
    assert "  site " in result.stdout


def test_an_existing_file_is_kept(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.write_text("mine")

    refused = planner("validate", runs, "--json", file)
    forced = planner("validate", runs, "--json", file, "--force")

    assert refused.exit_code == 2
    assert "exists; name another file, or add --force" in refused.stderr
    assert forced.exit_code == 0
    assert "rows" in json.loads(file.read_text())


def test_an_empty_file_may_be_filled(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.touch()

    assert planner("validate", runs, "--json", file).exit_code == 0
