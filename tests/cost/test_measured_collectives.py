"""The collectives benchmark on public nccl-tests curves, found beside PLANNER_RUNS."""

import os
from pathlib import Path
from statistics import median

import pytest

from benchmarks.collectives import Curve, large, left_out, own, read_curves
from planner.cost.collectives import collective_s
from planner.spec.machine import apply_profile

FITS = Path(os.environ.get("PLANNER_RUNS", "unset")).parent / "hardware" / "comm_fits.csv"
measured = pytest.mark.skipif(
    not FITS.is_file(),
    reason="no hardware/comm_fits.csv beside the folder that PLANNER_RUNS names: its sources "
    "state several licences, so it is not shipped",
)


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    return read_curves(FITS)


@measured
def test_own_curve_as_profile_within_4_percent(curves: list[Curve]) -> None:
    assert len(curves) == 166
    assert median(median(map(abs, own(curve))) for curve in curves) <= 0.04


@measured
@pytest.mark.parametrize(
    ("kind", "most"),
    [("all_reduce", 0.21), ("all_gather", 0.1), ("reduce_scatter", 0.1), ("all_to_all", 0.13)],
)
def test_topology_alone(curves: list[Curve], kind: str, most: float) -> None:
    chosen = [curve for curve in curves if curve.kind == kind]

    assert median(median(map(abs, left_out(curve, curves))) for curve in chosen) <= most


@measured
def test_topology_alone_over_all_curves_within_20_percent(curves: list[Curve]) -> None:
    assert median(median(map(abs, left_out(curve, curves))) for curve in curves) <= 0.2


@measured
@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_large_messages_over_nodes_within_5_percent(kind: str) -> None:
    runs = large(FITS.parent / "large_message_check.csv")[kind]

    assert median(abs(error) for _, error in runs) <= 0.05


def test_a_curve_over_nodes_comes_back_from_its_own_profile() -> None:
    """Points on a curve that the parameters of a network cannot follow."""
    sizes = [2**exponent for exponent in range(10, 34, 2)]
    points = tuple((size, 200e-6 + size / 90e9 + 5e-9 * size**0.5) for size in sizes)
    curve = Curve("H100-SXM-8", "8x400G EFA", "", "all_reduce", 32, 4, points)
    profiled = apply_profile(curve.machine[1], curve.profile())

    assert max(map(abs, own(curve))) < 0.02
    wider = Curve("H100-SXM-8", "8x400G EFA", "", "all_reduce", 64, 8, points)
    assert collective_s("all_reduce", 2**30, wider.group, profiled) > 0


def test_the_profile_of_a_hardware_does_not_reach_its_left_out_estimate() -> None:
    """Ten times slower points change nothing where their hardware is left out."""
    points = tuple((2**exponent, 1e-4 + 2**exponent / 3e11) for exponent in range(10, 34, 4))
    slow = tuple((size, 10 * seconds) for size, seconds in points)
    fast_curve, slow_curve = (
        Curve("H100-SXM-8", "8x400G EFA", "", "all_reduce", 32, 4, each) for each in (points, slow)
    )
    estimates = [
        [(1 + error) * seconds for error, (_, seconds) in zip(errors, curve.points, strict=True)]
        for curve in (fast_curve, slow_curve)
        for errors in [left_out(curve, [fast_curve, slow_curve])]
    ]

    assert estimates[0] == pytest.approx(estimates[1])
