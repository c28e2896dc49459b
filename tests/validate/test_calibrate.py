"""Calibration: factors that made the runs are found again, and no more than the runs support."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.simulate.step import estimate_step
from planner.spec.calibration import FACTORS, calibrated_cluster, calibrated_software
from planner.validate.calibrate import Run, calibrate, errors, most_factors
from planner.validate.cases import read_case, read_rows
from planner.validate.cells import Skip
from planner.validate.rows import is_sane, measured_step_s, source
from tests.properties.strategies import cluster, job, layout_with, model, software

# a host that keeps the GPU of this small model busy
QUICK_HOST = software(cpu_op_s=6e-6)
# layouts that differ in what bounds them: products, tensor and data parallelism, host
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"dp": 16, "zero_stage": 1},
    {"tp": 8, "dp": 2},
    {"dp": 16, "zero_stage": 3},
    {"tp": 4, "dp": 4, "micro_batch": 2},
    {"pp": 4, "dp": 4, "zero_stage": 1},
    {"tp": 2, "dp": 8, "micro_batch": 4, "recompute": Recompute.FULL},
    {"cp": 4, "dp": 4},
    {"tp": 8, "pp": 2, "micro_batch": 2},
    {"dp": 16, "micro_batch": 2, "zero_stage": 1},
    {"tp": 2, "pp": 2, "dp": 4, "recompute": Recompute.FULL},
    {"cp": 2, "tp": 2, "dp": 4},
    {"tp": 4, "pp": 4, "zero_stage": 0},
)


def measured(layout: Layout, factors: dict[str, float], noise: float = 1.0) -> Run:
    """Return a run as long as the estimate under ``factors``, computed without the fit's code."""
    machine, asked = cluster("dgx-h100", 2), job(64, software=QUICK_HOST)
    stack = calibrated_software(asked.software, factors)
    there = calibrated_cluster(machine, factors)
    prices = Prices(model("small"), there, asked.model_copy(update={"software": stack}))
    step_s = estimate_step(prices, layout).step_time_s
    return Run(layout.label(), model("small"), machine, asked, layout, noise * step_s)


@cache
def runs(count: int, noise: float = 0.0, **factors: float) -> list[Run]:
    random = np.random.default_rng(7)
    return [
        measured(layout_with(**degrees), factors, math.exp(random.normal(0, noise)))
        for degrees in LAYOUTS[:count]
    ]


ONE = [
    ("compute_speed", 0.85),
    ("compute_speed", 1.15),
    ("memory_speed", 0.6),
    ("collective_speed", 0.5),
    ("collective_speed", 0.8),
]


@pytest.mark.parametrize(("name", "value"), ONE)
def test_the_factor_that_made_the_runs_is_found(name: str, value: float) -> None:
    fit = calibrate(runs(8, **{name: value}))

    assert fit.factors == {name: pytest.approx(value, rel=0.02)}
    assert max(fit.after) < 0.01
    assert max(fit.left_out) < 0.02
    assert np.median(fit.before) > 0.02


def test_host_time_is_found_where_the_host_sets_the_pace() -> None:
    layouts = [layout_with(dp=16 // tp, tp=tp) for tp in (1, 2, 4)]
    tiny = [
        replace(run, model=model("tiny-llama"), job=job(64, 64, software=QUICK_HOST), layout=layout)
        for run, layout in zip(runs(3), layouts, strict=True)
    ]
    slow = {"host_time": 1.6}
    made = []
    for run in tiny:
        stack = calibrated_software(run.job.software, slow)
        prices = Prices(run.model, run.cluster, run.job.model_copy(update={"software": stack}))
        step_s = estimate_step(prices, run.layout).step_time_s
        made.append(replace(run, measured_s=step_s))

    assert calibrate(made).factors == {"host_time": pytest.approx(1.6, rel=0.02)}


def test_two_factors_are_found_through_noise() -> None:
    truth = {"compute_speed": 0.85, "collective_speed": 0.6}

    fit = calibrate(runs(12, 0.02, **truth))

    assert set(fit.factors) == set(truth)
    for name, value in truth.items():
        assert fit.factors[name] == pytest.approx(value, rel=0.05)
    assert np.median(fit.left_out) < 0.03 < 0.1 < np.median(fit.before)


def test_runs_as_estimated_need_no_factor() -> None:
    assert calibrate(runs(8)).factors == {}
    assert calibrate(runs(12, 0.02)).factors == {}


@pytest.mark.parametrize(("count", "most"), [(1, 1), (4, 1), (9, 1), (10, 2), (15, 3), (500, 3)])
def test_more_runs_support_more_factors(count: int, most: int) -> None:
    assert most_factors(count) == most


def test_few_runs_get_one_factor_whatever_made_them() -> None:
    truth = {"compute_speed": 0.85, "collective_speed": 0.6}

    assert len(calibrate(runs(6, **truth)).factors) == 1
    assert len(calibrate(runs(6, **truth), most=2).factors) == 2


def test_a_single_run_is_fitted_and_not_checked() -> None:
    fit = calibrate(runs(1, compute_speed=0.8))

    assert fit.factors == {"compute_speed": pytest.approx(0.8, rel=0.05)}
    assert fit.left_out == ()


def test_an_odd_run_does_not_move_the_fit() -> None:
    good = runs(9, compute_speed=0.9)
    odd = replace(good[4], measured_s=5 * good[4].measured_s)

    fit = calibrate([*good[:4], odd, *good[5:]])

    assert fit.factors["compute_speed"] == pytest.approx(0.9, rel=0.02)
    assert max(fit.left_out) == pytest.approx(fit.left_out[4])


def test_left_out_runs_are_estimated_without_themselves() -> None:
    """With two runs that disagree, each is estimated by the factor of the other."""
    first, second = runs(1, compute_speed=0.7)[0], runs(1, compute_speed=1.0)[0]

    fit = calibrate([first, replace(second, measured_s=second.measured_s * 0.999)])

    assert fit.left_out[0] > 0.5 * fit.before[0]


def test_errors_are_relative_to_what_was_measured() -> None:
    known: Sequence[Run] = [replace(run, measured_s=2 * run.measured_s) for run in runs(3)]

    assert errors(known, {}) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("index", range(len(LAYOUTS)))
def test_more_speed_is_less_time_and_more_host_time_more(name: str, index: int) -> None:
    layout = layout_with(**LAYOUTS[index])
    values = (0.5, 0.8, 1.0, 1.3)

    seconds = [measured(layout, {name: value}).measured_s for value in values]

    assert seconds == sorted(seconds, reverse=name != "host_time")
    assert name == "host_time" or seconds[0] > seconds[2]


RUNS = os.environ.get("PLANNER_RUNS")


@pytest.mark.slow
@pytest.mark.skipif(RUNS is None, reason="PLANNER_RUNS names no folder of measured runs")
@pytest.mark.parametrize(("name", "share"), [("bigscience", 0.5), ("aleph", 0.75), ("zb", 0.75)])
def test_public_runs_are_estimated_better_with_a_factor_of_their_other_half(
    name: str, share: float
) -> None:
    found = []
    for file in sorted(Path(str(RUNS)).glob("*.csv")):
        for row in read_rows(file):
            measured_s = measured_step_s(row)
            if source(row) != name or not measured_s or not is_sane(row):
                continue
            with suppress(Skip):
                case = read_case(row)
                found.append(Run(row["id"], case.model, case.cluster, case.job, case.layout,
                                 measured_s, case.split))  # fmt: skip
    fitted, tested = found[::2], found[1::2]

    factors = calibrate(fitted, 1).factors

    assert median(errors(tested, factors)) < share * median(errors(tested, {}))
