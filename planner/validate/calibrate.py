"""Fit a few physical factors to measured runs, as many as the runs support.

Residuals are logarithms of estimated ÷ measured. For a set of factors the estimate is linearised
(Gauss-Newton) and the sum of absolute residuals made least (iteratively reweighted), so that a few
odd runs do not move the fit. Factors are added one at a time, each time the one that helps most,
judged by runs that were left out of the fit; one that does not help clearly is not added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.layout.stages import Split
from planner.simulate.step import estimate_step
from planner.spec.calibration import (
    FACTORS,
    LEAST,
    MOST,
    calibrated_cluster,
    calibrated_software,
)
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

FloatArray = NDArray[np.float64]

RUNS_PER_FACTOR = 5
MOST_FACTORS = 3
LEAST_GAIN = 0.001  # in left-out error; a factor that helps less is not added
STEP = 0.05  # of a logarithm, for derivatives
ROUNDS = 4
SMALL = 0.01  # residuals below this count as squares
# Pull of each logarithm towards 0: residuals of 5 %, factors within 1.35 of 1 (Laplace, normal).
# What runs cannot tell apart then goes to the factor that has to move least.
PRIOR = 0.05 / 0.3**2


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run: what ran where, and the seconds of its step."""

    name: str
    model: ModelSpec
    cluster: ClusterSpec
    job: JobSpec
    layout: Layout
    measured_s: float
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Factors, and the errors ``|estimated - measured| / measured`` of each run.

    ``left_out``: each run estimated by factors fitted to all others; empty for a single run.
    """

    factors: dict[str, float]
    before: tuple[float, ...]
    after: tuple[float, ...]
    left_out: tuple[float, ...]


def errors(runs: Sequence[Run], factors: dict[str, float]) -> tuple[float, ...]:
    """Return ``|estimated - measured| / measured`` of each run."""
    return tuple(_relative(_log_ratios(runs, factors)))


def most_factors(runs: int) -> int:
    """Return how many factors so many runs can support: one, and one more for every five."""
    return min(MOST_FACTORS, max(1, runs // RUNS_PER_FACTOR))


def calibrate(runs: Sequence[Run], most: int | None = None) -> Fit:
    """Fit at most ``most`` factors (default: what the runs support) to at least one run.

    Without a second run nothing can be left out: ``compute_speed`` is fitted, unchecked.
    """
    before = _log_ratios(runs, {})
    best = _Candidate((), np.zeros(0), before, before)
    limit = most_factors(len(runs)) if most is None else most
    if len(runs) == 1 and limit:
        best = _candidate(runs, ("compute_speed",), before)
        return _fit(best, before, checked=False)
    while len(best.names) < limit:
        tried = [
            _candidate(runs, (*best.names, name), before)
            for name in FACTORS
            if name not in best.names
        ]
        found = min(tried, key=lambda candidate: candidate.score)
        if not found.clearly_better(best):
            break
        best = found
    return _fit(best, before, checked=True)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A set of factors fitted to all runs, with what is left of each run, in and left out."""

    names: tuple[str, ...]
    logs: FloatArray
    inside: FloatArray
    left_out: FloatArray

    @property
    def score(self) -> float:
        """Mean left-out residual, and the prior."""
        return float(np.abs(self.left_out).mean()) + _prior(self.logs) / len(self.left_out)

    def clearly_better(self, than: "_Candidate") -> bool:
        """Whether the mean gain of left-out runs exceeds its standard error.

        Gains are taken run by run, so what no factor explains in a run does not count.
        """
        gains = np.abs(than.left_out) - np.abs(self.left_out)
        doubt = float(gains.std(ddof=1)) / math.sqrt(len(gains))
        return than.score - self.score > max(doubt, LEAST_GAIN)


def _fit(found: _Candidate, before: FloatArray, checked: bool) -> Fit:
    left_out = _relative(found.left_out) if checked else []
    return Fit(
        _factors(found.names, found.logs),
        tuple(_relative(before)),
        tuple(_relative(found.inside)),
        tuple(left_out),
    )


def _relative(ratios: FloatArray) -> list[float]:
    return [float(size) for size in np.abs(np.expm1(ratios))]


def _factors(names: Sequence[str], logs: FloatArray) -> dict[str, float]:
    return {name: math.exp(log) for name, log in zip(names, logs, strict=True)}


def _log_ratios(runs: Sequence[Run], factors: dict[str, float]) -> FloatArray:
    """Return the logarithm of estimated ÷ measured of each run under ``factors``."""
    prices: dict[tuple[ModelSpec, ClusterSpec, JobSpec], Prices] = {}
    found = []
    for run in runs:
        key = (run.model, run.cluster, run.job)
        if key not in prices:
            software = calibrated_software(run.job.software, factors)
            job = run.job.model_copy(update={"software": software})
            prices[key] = Prices(run.model, calibrated_cluster(run.cluster, factors), job)
        step = estimate_step(prices[key], run.layout, run.split)
        found.append(math.log(step.step_time_s / run.measured_s))
    return np.array(found)


def _candidate(runs: Sequence[Run], names: tuple[str, ...], before: FloatArray) -> _Candidate:
    """Fit ``names`` to all runs, and estimate each run by a fit without it."""
    logs, ratios = np.zeros(len(names)), before
    slopes = np.zeros((len(runs), len(names)))
    best = (_objective(ratios, logs), logs, ratios)
    for _ in range(ROUNDS):
        slopes = _slopes(runs, names, logs, ratios)
        logs = _bounded(logs + _least_absolute(slopes, ratios, logs))
        ratios = _log_ratios(runs, _factors(names, logs))
        value = _objective(ratios, logs)
        converged = best[0] - value < 1e-3 * best[0]
        best = min(best, (value, logs, ratios), key=lambda one: one[0])
        if converged:
            break
    _, logs, ratios = best
    return _Candidate(names, logs, ratios, _without_each(runs, names, logs, ratios, slopes))


def _without_each(
    runs: Sequence[Run],
    names: tuple[str, ...],
    logs: FloatArray,
    ratios: FloatArray,
    slopes: FloatArray,
) -> FloatArray:
    """Return the residual of each run under factors fitted to the others, ``[runs]``.

    The others are fitted on the linearised estimates; the run itself is estimated in full.
    """
    found = []
    for index, run in enumerate(runs):
        others = np.arange(len(runs)) != index
        own = _bounded(logs + _least_absolute(slopes[others], ratios[others], logs))
        found.append(_log_ratios([run], _factors(names, own))[0])
    return np.array(found)


def _slopes(
    runs: Sequence[Run], names: tuple[str, ...], logs: FloatArray, ratios: FloatArray
) -> FloatArray:
    """Return how each residual moves with the logarithm of each factor, ``[runs, factors]``."""
    columns = []
    for index in range(len(names)):
        moved = logs + STEP * (np.arange(len(names)) == index)
        columns.append((_log_ratios(runs, _factors(names, moved)) - ratios) / STEP)
    return np.stack(columns, axis=1)


def _least_absolute(slopes: FloatArray, ratios: FloatArray, logs: FloatArray) -> FloatArray:
    """Return the change of ``logs`` that makes the linearised objective least."""
    pull = PRIOR * np.eye(slopes.shape[1])
    change: Any = np.zeros(slopes.shape[1])
    for _ in range(25):
        weights = 1 / np.maximum(np.abs(ratios + slopes @ change), SMALL)
        matrix = slopes.T @ (weights[:, None] * slopes) + pull
        change = np.linalg.solve(matrix, -(slopes.T @ (weights * ratios) + pull @ logs))
    return np.asarray(change)


def _objective(ratios: FloatArray, logs: FloatArray) -> float:
    return float(np.abs(ratios).sum()) + _prior(logs)


def _prior(logs: FloatArray) -> float:
    return float(PRIOR / 2 * np.square(logs).sum())


def _bounded(logs: FloatArray) -> FloatArray:
    return np.clip(logs, math.log(LEAST), math.log(MOST))
