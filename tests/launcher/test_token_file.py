"""A file of tokens and the learning rate of each step: what ranks read, and what they refuse."""

import math
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from planner.launcher.learning_rate import LearningRate
from planner.launcher.main import main
from planner.launcher.saved import file_problems
from planner.launcher.token_file import TokenFile
from tests.formats.plans import build_plan
from tests.launcher.test_checkpoint import command, events

SEQ = 16
ENVIRON = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def write(path: Path, tokens: list[int], token_bytes: int = 2) -> Path:
    path.write_bytes(struct.pack(f"<{len(tokens)}{'H' if token_bytes == 2 else 'i'}", *tokens))
    return path


def opened(path: Path, token_bytes: int = 2, seed: int = 0, vocab: int = 1000) -> TokenFile:
    return TokenFile(path, token_bytes, SEQ, vocab, seed)


@pytest.mark.parametrize("token_bytes", [2, 4])
@pytest.mark.parametrize("count", [SEQ + 1, 5 * SEQ, 5 * SEQ + 1, 100 * SEQ + 7])
def test_an_epoch_reads_every_window_once(token_bytes: int, count: int, tmp_path: Path) -> None:
    file = opened(write(tmp_path / "t", [n % 997 for n in range(count)], token_bytes), token_bytes)

    rows = file.rows(0, file.windows)

    assert file.windows == (count - 1) // SEQ
    starts = sorted(file.window(row) * SEQ for row in range(file.windows))
    assert starts == list(range(0, file.windows * SEQ, SEQ))
    for row in range(file.windows):
        start = file.window(row) * SEQ
        assert rows[row].tolist() == [n % 997 for n in range(start, start + SEQ + 1)]


def test_rows_do_not_depend_on_who_asks(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "t", list(range(900))))

    assert torch.equal(file.rows(0, 8), torch.cat([file.rows(first, 2) for first in (0, 2, 4, 6)]))
    assert torch.equal(file.rows(60, 4), opened(tmp_path / "t").rows(60, 4))


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [n % 900 for n in range(64 * SEQ + 1)])
    first, second = (
        [opened(path).window(row) for row in range(start, start + 64)] for start in (0, 64)
    )
    other = [opened(path, seed=1).window(row) for row in range(64)]

    assert sorted(first) == sorted(second) == sorted(other)
    assert len({tuple(first), tuple(second), tuple(other), tuple(sorted(first))}) == 4


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "t", [5] * 20 + [700] + [5] * 30), vocab=700)

    with pytest.raises(ValueError, match="token 20 is 700, the model's vocabulary has 700"):
        file.rows(0, file.windows)


# bytes of the file, of a token, and the complaint
WRONG = [
    (33, 2, "33 bytes are no whole number of tokens of 2 bytes; try --token-bytes 4"),
    (2 * SEQ, 2, "holds 16 tokens, a sequence and its last target take 17"),
    (2 * SEQ + 2, 4, "no whole number of tokens of 4 bytes; try --token-bytes 2"),
]


@pytest.mark.parametrize(("size", "token_bytes", "words"), WRONG)
def test_a_file_that_cannot_be_read_is_refused(
    size: int, token_bytes: int, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    path.write_bytes(bytes(size))

    (problem,) = file_problems(path, token_bytes, SEQ)

    assert problem.startswith(f"--data {path}: ")
    assert words in problem
    assert file_problems(tmp_path / "no", 2, SEQ) == [
        f"--data {tmp_path / 'no'}: is no file; name a file of tokens"
    ]


# curve, warm-up, and the rate at steps of a run of 10 with a peak of 1 and a least of 0.2
RATES = [
    ("constant", 0, {1: 1.0, 10: 1.0}),
    ("constant", 4, {1: 0.25, 4: 1.0, 5: 1.0}),
    ("linear", 0, {5: 0.6, 10: 0.2, 12: 0.2}),
    ("linear", 5, {5: 1.0, 10: 0.2, 6: 1 - 0.8 / 5}),
    ("cosine", 0, {5: 0.6, 10: 0.2}),
    ("cosine", 2, {1: 0.5, 2: 1.0, 4: 0.2 + 0.4 * (1 + math.cos(math.pi / 4)), 10: 0.2}),
]


@pytest.mark.parametrize(("curve", "warmup", "expected"), RATES)
def test_the_rate_follows_its_curve(curve: str, warmup: int, expected: dict[int, float]) -> None:
    rate = LearningRate(1.0, curve, warmup, 0.2, 10)

    assert {step: rate.at(step) for step in expected} == pytest.approx(expected)


def test_wrong_arguments_are_said_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(build_plan().model_dump_json())

    words = ["--data", str(tmp_path / "no"), "--warmup", "10", "--least-lr", "2", "--lr", "1"]
    code = main([str(plan), "--check", *words])

    said = capsys.readouterr().err
    assert code == 2
    for part in ("no: is no file", "--warmup 10 must be from 0", "--least-lr 2 must be from 0"):
        assert part in said


@pytest.mark.slow
def test_a_run_reads_the_file_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Tokens that repeat are learned; the second half of a run sees what the whole run saw."""
    data = write(tmp_path / "t", [n % 7 for n in range(200 * SEQ + 1)])
    plan = build_plan(dp=2, zero=3)
    words = ["--data", str(data), "--optimizer", "sgd", "--lr", "0.5", "--warmup", "3"]
    losses = {}
    for name, rounds in {"whole": ["8"], "halves": ["4", "8"]}.items():
        folder = tmp_path / name
        folder.mkdir()
        for steps in rounds:
            subprocess.run(command(plan, folder, *words, "--steps", steps), env=ENVIRON,
                           check=True, capture_output=True, timeout=120)  # fmt: skip
        losses[name] = [one["loss"] for one in events(folder) if one["event"] == "step"]

    assert losses["whole"][-1] < losses["whole"][0] - 0.5
    assert losses["whole"] == losses["halves"]


@pytest.mark.slow
def test_a_dead_rank_ends_the_job_and_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "t", [n % 7 for n in range(3 * SEQ)] + [999] + [0] * SEQ)
    plan = build_plan(dp=2, zero=3, rank_map=(1, 0))

    done = subprocess.run(command(plan, tmp_path, "--data", str(data)), env=ENVIRON, text=True,
                          check=False, capture_output=True, timeout=120)  # fmt: skip

    assert done.returncode == 1
    found = re.search(r"error: rank (\d) \(slot (\d), .*, cpu\) failed:", done.stderr)
    assert found
    assert int(found[1]) == 1 - int(found[2])
    assert f"ValueError: {data}: token 48 is 999, the model's vocabulary has 61" in done.stderr
