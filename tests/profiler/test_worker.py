"""Times that cannot be are refused by name; processes that torchrun did not start are told so."""

import math

import pytest

from planner.errors import SpecError
from planner.profiler.links import ladder
from planner.profiler.worker import checked_s, joined


@pytest.mark.parametrize("seconds", [0.0, -1e-6, math.nan, math.inf, -math.inf])
def test_times_that_no_clock_shows(seconds: float) -> None:
    with pytest.raises(SpecError, match="all_reduce of 4096 bytes took"):
        checked_s("all_reduce of 4096 bytes", seconds)


def test_rates_that_no_device_reaches() -> None:
    with pytest.raises(SpecError, match=r"qkv took 1e-09 s: 1e\+21 FLOP/s is more than any device"):
        checked_s("qkv", 1e-9, flops=1e12)
    with pytest.raises(SpecError, match=r"ring took 1e-06 s: 1e\+15 bytes/s is more than any link"):
        checked_s("ring", 1e-6, moved_bytes=1e9)


# the fastest measured so far: 5 PFLOP/s of an FP8 product, 7 TB/s of bus bandwidth
@pytest.mark.parametrize(
    ("seconds", "flops", "moved_bytes"), [(1e-3, 5e12, 0), (1e-3, 0, 7e9), (1e-6, 0, 0)]
)
def test_real_times_pass(seconds: float, flops: float, moved_bytes: float) -> None:
    assert checked_s("real", seconds, flops, moved_bytes) == seconds


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(SpecError, match=r"RANK, WORLD_SIZE.* not set: start it with torchrun"):
        joined(1.0).__enter__()


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (4096,)), (4096, (4096,)), (16384, (4096, 16384)), (70_000, (4096, 16384, 65536))],
)
def test_ladder_of_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert ladder(largest) == sizes
