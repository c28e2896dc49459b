"""Times that cannot be are doubted; processes that torchrun did not start are told so."""

import math
import os
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from planner.errors import SpecError
from planner.profiler.host import BLOCK_BYTES, drive_rates
from planner.profiler.watch import stalled
from planner.profiler.worker import Clock, DoubtfulError, Readings, Worker, checked_s, joined


@pytest.mark.parametrize("seconds", [0.0, -1e-6, math.nan, math.inf, -math.inf])
def test_times_that_no_clock_shows(seconds: float) -> None:
    with pytest.raises(DoubtfulError, match="no time can be that"):
        checked_s(seconds)


def test_rates_that_no_device_reaches() -> None:
    with pytest.raises(DoubtfulError, match=r"1e-09 s: 1e\+21 FLOP/s is more than any device"):
        checked_s(1e-9, flops=1e12)
    with pytest.raises(DoubtfulError, match=r"1e-06 s: 1e\+15 bytes/s is more than any link"):
        checked_s(1e-6, moved_bytes=1e9)


# the fastest measured so far: 5 PFLOP/s of an FP8 product, 7 TB/s of bus bandwidth
@pytest.mark.parametrize(
    ("seconds", "flops", "moved_bytes"), [(1e-3, 5e12, 0), (1e-3, 0, 7e9), (1e-6, 0, 0)]
)
def test_real_times_pass(seconds: float, flops: float, moved_bytes: float) -> None:
    assert checked_s(seconds, flops, moved_bytes) == seconds


def test_readings_by_hand() -> None:
    found = Readings(((1.0, 2.0, 3.0, 9.0), (2.0, 1.0, 4.0, 1.0)))

    assert found.slowest == [2.0, 2.0, 4.0, 9.0]
    assert found.seconds == 3.0
    assert found.least_s == 2.0
    assert found.of([1]).slowest == [2.0, 1.0, 4.0, 1.0]
    assert found.spread == pytest.approx((7.75 - 2.0) / 3.0)  # quartiles, exclusive method


def worker(ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return Worker(0, ranks, ranks, torch.device("cpu"), "gloo", None)  # type: ignore[arg-type]


def test_a_thread_that_waits_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    one = worker(2, 1, monkeypatch)

    assert Clock(one).seconds(lambda: time.sleep(0.01), 3) > 0.03
    assert Clock(one, alone=True).seconds(lambda: time.sleep(0.01), 3) < 0.02


def test_ranks_that_share_a_core_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    own, shared = worker(2, 1, monkeypatch), worker(4, 1, monkeypatch)
    assert (own.ranks_per_core, shared.ranks_per_core) == (1.0, 2.0)
    assert 0.02 <= Clock(own, alone=True).seconds(spin, 1) < 0.03
    assert 0.04 <= Clock(shared, alone=True).seconds(spin, 1) < 0.06
    # threads of one rank each have a clock: the wall's counts, on which sharing shows by itself
    several = Clock(worker(4, 2, monkeypatch), alone=True)
    assert several.seconds(lambda: time.sleep(0.01), 1) > 0.01


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(SpecError, match=r"RANK, WORLD_SIZE.* not set: start it with torchrun"):
        joined(1.0).__enter__()


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        ([], "every rank answers, so the call itself hangs"),
        ([3], "rank 3 does not answer"),
        ([1, 2], "ranks 1, 2 do not answer"),
    ],
)
def test_who_is_silent(silent: list[int], said: str) -> None:
    text = stalled("all_reduce", 60.0, silent)

    assert text.startswith("no progress for 60 s in 'all_reduce'")
    assert said in text


def test_a_drive_is_written_and_read_and_left_clean(tmp_path: Path) -> None:
    write, read, direct = drive_rates(tmp_path, 3 * BLOCK_BYTES + 5)

    assert 1e6 < write < 1e12
    assert 1e6 < read < 1e12
    assert direct in (0.0, 1.0)
    assert not list(tmp_path.iterdir())


def test_a_drive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        drive_rates(tmp_path / "absent", BLOCK_BYTES)
