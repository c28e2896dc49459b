"""The error table: how far the estimates are from the runs that somebody made.

Errors are absolute percentage errors as fractions, ``|estimate - measured| / measured``; signed
ones keep their sign, so a negative one is an estimate that is too fast or too small. Statistics are
taken over sane rows, those whose source neither doubts nor contradicts them; every row is
estimated. A source is what stands before the first dash or underscore of a row's id.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

from planner.cost.compute import half_precision_peak
from planner.errors import PlannerError
from planner.layout.layout import Recompute
from planner.memory.interval import Verdict
from planner.model.flops import model_flops_per_token
from planner.validate.cases import Case, read_case
from planner.validate.cells import Skip, number
from planner.validate.replay import RowEstimate, estimate_row
from planner.validate.rows import (
    DOUBTFUL,
    TIME_DOUBTFUL,
    Row,
    failed,
    is_sane,
    measured_step_s,
    ran_out_of_memory,
    source,
    states_its_shape,
    sweep,
)

LEAST_IN_SWEEP = 3
TOO_SMALL = -0.02  # a memory estimate below this signed error may promise a fit that is none

YARDSTICK_EFFICIENCY = 0.5
YARDSTICK_EIGHT_BIT = 1.45  # an 8- or 4-bit step ÷ a bf16 step, in speed


@dataclass(frozen=True, slots=True)
class Errors:
    """One line of the table. ``yardstick_median`` is the yardstick's error on the same rows."""

    name: str
    count: int
    median: float
    mean: float
    p90: float
    signed_median: float
    yardstick_median: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Runs that ran out of memory and runs that did not, against the verdict of the estimate."""

    oom_found: int
    oom_missed: int
    fits_found: int
    fits_missed: int

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the two shares found; None while one kind of run is absent."""
        oom, fits = self.oom_found + self.oom_missed, self.fits_found + self.fits_missed
        return (self.oom_found / oom + self.fits_found / fits) / 2 if oom and fits else None


@dataclass(frozen=True, slots=True)
class Inside:
    """Printed peaks against the interval of theirs."""

    count: int
    below: int
    above: int


@dataclass(frozen=True, slots=True)
class Certain:
    """Verdicts without a doubt, and how many of them were wrong."""

    answers: int
    of: int
    ran_called_impossible: int
    oom_called_safe: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well estimates order the layouts of a sweep.

    Regret is what the layout estimated as fastest loses against the fastest measured one, as a
    fraction; ``median_layout_regret`` is what a layout picked at random would lose.
    """

    sweeps: int
    tau_mean: float
    tau_median: float
    regret_mean: float
    regret_median: float
    regret_p90: float
    median_layout_regret: float


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Everything ``planner validate`` prints. ``None`` where the rows say nothing about it."""

    rows: int
    estimated: int
    stating: tuple[int, int]
    skipped: tuple[tuple[str, str, int], ...]
    sources: tuple[Errors, ...]
    all_rows: Errors | None
    source_medians: Errors | None
    stated: Errors | None
    assumed: Errors | None
    inside: tuple[int, int]
    memory: tuple[Errors, ...]
    memory_all: Errors | None
    memory_too_small: float | None
    memory_inside: Inside
    fit: Fit
    certain: Certain
    ranking: Ranking | None
    yardstick_ranking: Ranking | None

    @property
    def coverage(self) -> float:
        """Share of rows that were estimated."""
        return self.estimated / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class _Timed:
    """A sane row with a measured and an estimated step time."""

    source: str
    sweep: str
    measured_s: float
    estimate: RowEstimate
    yardstick_s: float | None

    @property
    def estimated_s(self) -> float:
        assert self.estimate.step_time_s is not None
        return self.estimate.step_time_s

    @property
    def signed(self) -> float:
        return self.estimated_s / self.measured_s - 1

    @property
    def error(self) -> float:
        return abs(self.estimated_s - self.measured_s) / self.measured_s

    @property
    def yardstick_error(self) -> float | None:
        if self.yardstick_s is None:
            return None
        return abs(self.yardstick_s - self.measured_s) / self.measured_s


def yardstick_s(case: Case) -> float:
    """Seconds of a step by one constant: every estimate worth its name has to beat it.

    Model FLOPs x recompute x (1 + bubble) ÷ (0.5 x peak), the bubble (pp - 1) ÷ (vpp x
    micro-batches); 8-bit steps count as 1.45 times as fast as bf16.
    """
    layout, job = case.layout, case.job
    tokens = job.global_batch * job.seq_len
    flops = model_flops_per_token(case.model, job.seq_len) * tokens
    again = 4 / 3 if layout.recompute is Recompute.FULL else 1.0
    bubble = (layout.pp - 1) / (layout.vpp * max(1, layout.micro_batches(job.global_batch)))
    eight_bit = "fp8" in job.precision or "fp4" in job.precision
    peak = half_precision_peak(case.cluster.gpu) * (YARDSTICK_EIGHT_BIT if eight_bit else 1.0)
    return flops * again * (1 + bubble) / (layout.gpus * peak * YARDSTICK_EFFICIENCY)


def estimates(rows: Iterable[dict[str, str]]) -> Iterator[RowEstimate]:
    """Estimate row after row; one that contradicts a rule is skipped with that rule."""
    for row in rows:
        try:
            yield estimate_row(row)
        except PlannerError as error:
            yield RowEstimate(row["id"], error.problems[0])


def yardsticks(rows: Iterable[dict[str, str]]) -> dict[str, float]:
    """Return the yardstick's seconds of every row that can be read, by id."""
    found = {}
    for row in rows:
        try:
            found[row["id"]] = yardstick_s(read_case(row))
        except (Skip, PlannerError):
            continue
    return found


def error_table(
    rows: Sequence[Row],
    estimated: Iterable[RowEstimate],
    yardstick: Mapping[str, float] | None = None,
) -> ErrorTable:
    """Compare the estimates of rows with what was measured."""
    by_id = {estimate.id: estimate for estimate in estimated}
    pairs = [(row, by_id.get(row["id"]) or RowEstimate(row["id"], "absent")) for row in rows]
    skipped = Counter((source(row), e.skipped) for row, e in pairs if e.skipped is not None)
    pairs = [(row, e) for row, e in pairs if e.skipped is None]
    timed = list(_timed(pairs, yardstick or {}))
    groups: dict[str, list[_Timed]] = defaultdict(list)
    for run in timed:
        groups[run.source].append(run)
    sources = tuple(_time_errors(name, groups[name]) for name in sorted(groups))
    memory = _memory(pairs)
    everything = [error for name in memory for error in memory[name]]
    return ErrorTable(
        rows=len(rows),
        estimated=len(pairs),
        stating=_stating(rows, pairs),
        skipped=tuple((name, why or "", n) for (name, why), n in skipped.most_common()),
        sources=sources,
        all_rows=_time_errors("all rows", timed) if timed else None,
        source_medians=_of_medians(sources) if sources else None,
        stated=_split("nothing assumed", [run for run in timed if not run.estimate.assumed]),
        assumed=_split("something assumed", [run for run in timed if run.estimate.assumed]),
        inside=_inside(timed),
        memory=tuple(_errors(name, memory[name]) for name in sorted(memory)),
        memory_all=_errors("all rows", everything) if everything else None,
        memory_too_small=(
            sum(error < TOO_SMALL for error in everything) / len(everything) if everything else None
        ),
        memory_inside=_memory_inside(pairs),
        fit=_fit(pairs),
        certain=_certain(pairs),
        ranking=_ranking((run.sweep, run.measured_s, run.estimated_s) for run in timed),
        yardstick_ranking=_ranking(
            (run.sweep, run.measured_s, run.yardstick_s) for run in timed if run.yardstick_s
        ),
    )


def _timed(
    pairs: Iterable[tuple[Row, RowEstimate]], yardstick: Mapping[str, float]
) -> Iterator[_Timed]:
    for row, estimate in pairs:
        measured = measured_step_s(row)
        pretraining = row.get("task", "pretrain") in ("", "pretrain")
        if measured and estimate.step_time_s and pretraining and is_sane(row):
            yield _Timed(source(row), sweep(row), measured, estimate, yardstick.get(row["id"]))


def _p90(errors: Iterable[float]) -> float:
    return _quantile(sorted(errors), 0.9)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value at ``share`` of an ordered list, without interpolation."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _errors(name: str, signed: Sequence[float], yardstick: float | None = None) -> Errors:
    sizes = [abs(error) for error in signed]
    return Errors(
        name, len(sizes), median(sizes), fmean(sizes), _p90(sizes), median(signed), yardstick
    )


def _time_errors(name: str, runs: Sequence[_Timed]) -> Errors:
    sizes = [run.error for run in runs]
    against = [error for run in runs if (error := run.yardstick_error) is not None]
    return Errors(
        name,
        len(runs),
        median(sizes),
        fmean(sizes),
        _p90(sizes),
        median(run.signed for run in runs),
        median(against) if against else None,
    )


def _split(name: str, runs: Sequence[_Timed]) -> Errors | None:
    return _time_errors(name, runs) if runs else None


def _of_medians(sources: Sequence[Errors]) -> Errors:
    """Return the distribution of the sources' medians, so that a large source is one voice."""
    medians = [line.median for line in sources]
    against = [line.yardstick_median for line in sources if line.yardstick_median is not None]
    return Errors(
        "median of sources",
        len(medians),
        median(medians),
        fmean(medians),
        _p90(medians),
        median(line.signed_median for line in sources),
        median(against) if against else None,
    )


def _inside(runs: Iterable[_Timed]) -> tuple[int, int]:
    """Return (runs inside their interval, runs that have one)."""
    answers = [
        low <= run.measured_s <= high
        for run in runs
        if (low := run.estimate.step_time_low_s) and (high := run.estimate.step_time_high_s)
    ]
    return sum(answers), len(answers)


def _memory(pairs: Iterable[tuple[Row, RowEstimate]]) -> dict[str, list[float]]:
    """Return signed memory errors by source; a slow run's memory is as good as any."""
    found: dict[str, list[float]] = defaultdict(list)
    for row, estimate in pairs:
        measured = number(dict(row), "mem_gib_peak_reported")
        usable = not failed(row) and is_sane(row, DOUBTFUL - TIME_DOUBTFUL)
        if measured and estimate.mem_gib_peak and usable:
            found[source(row)].append((estimate.mem_gib_peak - measured) / measured)
    return found


def _memory_inside(pairs: Iterable[tuple[Row, RowEstimate]]) -> Inside:
    sides: Counter[int] = Counter()
    for row, estimate in pairs:
        measured = number(dict(row), "mem_gib_peak_reported")
        low, high = estimate.mem_gib_low, estimate.mem_gib_high
        if measured and low and high and not failed(row) and is_sane(row, DOUBTFUL - TIME_DOUBTFUL):
            sides[(measured > high) - (measured < low)] += 1
    return Inside(sides.total(), sides[-1], sides[1])


def _certain(pairs: Iterable[tuple[Row, RowEstimate]]) -> Certain:
    seen: Counter[tuple[bool, Verdict]] = Counter()
    for row, estimate in pairs:
        oom = ran_out_of_memory(row)
        if estimate.verdict is not None and (oom or measured_step_s(row)):
            seen[oom, estimate.verdict] += 1
    close = seen[True, Verdict.TOO_CLOSE] + seen[False, Verdict.TOO_CLOSE]
    ran, failed_safe = seen[False, Verdict.DOES_NOT_FIT], seen[True, Verdict.FITS]
    return Certain(seen.total() - close, seen.total(), ran, failed_safe)


def _stating(rows: Iterable[Row], pairs: Iterable[tuple[Row, RowEstimate]]) -> tuple[int, int]:
    """Return (rows estimated, rows) of those that state their shape."""
    return sum(states_its_shape(row) for row, _ in pairs), sum(map(states_its_shape, rows))


def _fit(pairs: Iterable[tuple[Row, RowEstimate]]) -> Fit:
    seen: Counter[tuple[bool, bool]] = Counter()
    for row, estimate in pairs:
        oom = ran_out_of_memory(row)
        if estimate.fits is not None and (oom or measured_step_s(row)):
            seen[oom, estimate.fits] += 1
    return Fit(seen[True, False], seen[True, True], seen[False, True], seen[False, False])


def _ranking(runs: Iterable[tuple[str, float, float | None]]) -> Ranking | None:
    """Rank inside every sweep of three runs or more, given (sweep, measured, estimated)."""
    sweeps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, measured, estimated in runs:
        if name and estimated is not None:
            sweeps[name].append((measured, estimated))
    taus, regrets, medians = [], [], []
    for members in sweeps.values():
        if len(members) < LEAST_IN_SWEEP:
            continue
        if (tau := kendall_tau(members)) is not None:
            taus.append(tau)
        best = min(measured for measured, _ in members)
        picked = min(members, key=lambda member: member[1])[0]
        regrets.append(picked / best - 1)
        medians.append(median(measured for measured, _ in members) / best - 1)
    if not taus:
        return None
    return Ranking(
        len(taus),
        fmean(taus),
        median(taus),
        fmean(regrets),
        median(regrets),
        _p90(regrets),
        fmean(medians),
    )


def kendall_tau(members: Sequence[tuple[float, float]]) -> float | None:
    """Return (agreeing - disagreeing) ÷ ordered pairs; None when every pair is a tie."""
    agree = disagree = 0
    for (measured, estimated), (other, other_estimated) in combinations(members, 2):
        order = (measured - other) * (estimated - other_estimated)
        agree += order > 0
        disagree += order < 0
    return (agree - disagree) / (agree + disagree) if agree + disagree else None
