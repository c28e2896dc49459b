import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.units import (
    GB,
    GIB,
    format_bytes,
    format_count,
    format_s,
    parse_bytes,
    parse_count,
    parse_flops,
    parse_rate,
    parse_seconds,
)

READ = [
    (parse_bytes, "80 GB", 80e9),
    (parse_bytes, "64GiB", 64 * 2**30),
    (parse_bytes, " 81559 MiB ", 81559 * 2**20),
    (parse_bytes, "1.5e3 kB", 1.5e6),
    (parse_bytes, 123, 123),
    (parse_rate, "450 GB/s", 450e9),
    (parse_rate, "400 Gbit/s", 50e9),
    (parse_rate, "400 Gb/s", 50e9),
    (parse_rate, "400Gbps", 50e9),
    (parse_rate, "3.35 TB/s", 3.35e12),
    (parse_rate, 5e9, 5e9),
    (parse_flops, "989 TFLOP/s", 989e12),
    (parse_flops, "2.25 PFLOPS", 2.25e15),
    (parse_seconds, "5 us", 5e-6),
    (parse_seconds, "1.5 ms", 1.5e-3),
    (parse_seconds, ".5 s", 0.5),
    (parse_seconds, "10 min", 600),
    (parse_seconds, "1.5h", 5400),
    (parse_count, "2T", 2e12),
    (parse_count, "300 B", 300e9),
    (parse_count, "1000", 1000),
    (parse_count, 7, 7),
    (parse_seconds, "-3 us", -3e-6),
]

REFUSED = [
    (parse_bytes, "eighty", "'eighty' is not a size"),
    (parse_bytes, "80", "write a number and a unit"),
    (parse_bytes, "80 GB/s", "'80 GB' or '64 GiB'"),
    (parse_bytes, "80 gb", "did you mean 'GB'?"),
    (parse_bytes, True, "True is not a size"),
    (parse_bytes, [80], "[80] is not a size"),
    (parse_bytes, None, "None is not a size"),
    (parse_rate, "450 GB", "'450 GB/s'"),
    (parse_rate, "400 gb/s", "did you mean 'GB/s' or 'Gb/s'?"),
    (parse_rate, math.inf, "not a finite data rate"),
    (parse_flops, "989 TB/s", "is not a compute rate"),
    (parse_seconds, "5 minutes", "'5 us' or '1.5 ms'"),
    (parse_count, "2 trillion", "'300B' or '2T'"),
    (parse_count, "5m", "did you mean 'M'?"),
    (parse_seconds, math.nan, "not a finite duration"),
]


@pytest.mark.parametrize(("parse", "text", "value"), READ)
def test_reads_what_people_write(
    parse: Callable[[object], float], text: object, value: float
) -> None:
    assert parse(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("parse", "text", "said"), REFUSED)
def test_refuses_and_says_what_is_right(
    parse: Callable[[object], float], text: object, said: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)

    assert said in str(caught.value)


def test_a_bit_is_not_a_byte() -> None:
    assert parse_rate("400 Gb/s") * 8 == parse_rate("400 GB/s")


@given(st.integers(min_value=0, max_value=10**15))
def test_whole_bytes_survive(size: int) -> None:
    assert parse_bytes(size) == size
    assert parse_bytes(f"{size} B") == size


def test_formats() -> None:
    assert format_bytes(80 * GIB) == "80.0 GiB"
    assert format_bytes(80 * GB) == "74.5 GiB"
    assert [format_s(x) for x in (12.345, 0.0123, 4.5e-6, 7e-9, 0.0)] == [
        "12.3 s",
        "12.3 ms",
        "4.5 us",
        "7 ns",
        "0 ns",
    ]
    assert format_s(-2.0) == "-2 s"
    assert [format_count(x) for x in (70.6e9, 1.3e9, 124e6, 671e9, 1e12, 5)] == [
        "70.6B",
        "1.3B",
        "124M",
        "671B",
        "1T",
        "5",
    ]
