"""The error table against its definitions, written a second time in the plainest way."""

import csv
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planner.layout.layout import Layout, Recompute
from planner.memory.interval import Verdict
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.validate import table
from planner.validate.cases import Case, read_rows
from planner.validate.replay import RowEstimate
from planner.validate.table import Errors, error_table, kendall_tau

ROOT = Path(__file__).parents[2]
RUNS = Path(os.environ.get("PLANNER_RUNS", "unset"))
real_runs = pytest.mark.skipif(
    not (RUNS / "frameworks.csv").exists(),
    reason="PLANNER_RUNS names no folder with frameworks.csv",
)


def row(name: str, **cells: object) -> dict[str, str]:
    """Return a row with these cells."""
    return {"id": name} | {key: str(value) for key, value in cells.items()}


def timed(name: str, seconds: float, *assumed: str) -> RowEstimate:
    """Return an estimate of step time alone."""
    return RowEstimate(name, None, seconds, assumed=assumed)


@pytest.mark.parametrize(
    ("name", "source"), [("sc21-0001", "sc21"), ("vtrain_0_1", "vtrain"), ("lab", "lab")]
)
def test_source_is_the_prefix(name: str, source: str) -> None:
    assert table.source(row(name)) == source


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ({"sweep_id": "a"}, "a"),
        ({"notes": "kind=step; sweep=b; x"}, "b"),
        ({"sweep_id": "a", "notes": "sweep=b"}, "a"),
        ({"sweep_id": "", "notes": "swept"}, ""),
        ({}, ""),
    ],
)
def test_sweep(cells: dict[str, str], name: str) -> None:
    assert table.sweep(row("x", **cells)) == name


@pytest.mark.parametrize(
    ("flags", "sane", "sane_memory"),
    [
        ("", True, True),
        ("shape_told_by_mfu", True, True),
        ("noisy_40pct", False, True),
        ("other; ci_run", False, True),
        ("proxy_layers;noisy_40pct", False, False),
        ("batch_does_not_multiply", False, False),
    ],
)
def test_sane_rows(flags: str, sane: bool, sane_memory: bool) -> None:
    doubted = row("x", flags=flags)

    assert table.is_sane(doubted) is sane
    assert table.is_sane(doubted, table.DOUBTFUL - table.TIME_DOUBTFUL) is sane_memory


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        ({"step_time_s": "2.5"}, 2.5),
        ({"step_time_s": "2.5", "status": "ok"}, 2.5),
        ({"step_time_s": "2.5", "status": "error"}, None),
        ({"step_time_s": "OOM"}, None),
        ({"status": "oom"}, None),
        ({"step_time_s": ""}, None),
        ({"tokens_per_s_per_gpu": 100, "gbs": 8, "seq_len": 1000, "n_gpus": 4}, 20.0),
        ({"tokens_per_s_per_gpu": 100, "gbs": 8, "seq_len": 1000}, None),
    ],
)
def test_measured_step(cells: dict[str, object], seconds: float | None) -> None:
    assert table.measured_step_s(row("x", **cells)) == seconds


def test_one_source() -> None:
    rows = [row(f"lab-{n}", step_time_s=10) for n in range(3)]
    found = error_table(
        rows,
        [timed("lab-0", 11), timed("lab-1", 8), timed("lab-2", 13, "pp=1")],
        {"lab-0": 15.0, "lab-1": 15.0},
    )

    assert found.sources == (found.all_rows and replace(found.all_rows, name="lab"),)
    line = found.sources[0]
    assert (line.count, line.median) == (3, 0.2)
    assert line.p90 == pytest.approx(0.3)
    assert line.mean == pytest.approx(0.2)
    assert line.signed_median == pytest.approx(0.1)
    assert line.yardstick_median == 0.5
    assert found.assumed is not None
    assert found.stated is not None
    assert (found.assumed.count, found.stated.count) == (1, 2)


def test_every_source_is_one_voice() -> None:
    rows = [row(f"large-{n}", step_time_s=1) for n in range(9)] + [row("small-1", step_time_s=1)]
    guesses = [timed(f"large-{n}", 1.1) for n in range(9)] + [timed("small-1", 1.5)]

    found = error_table(rows, guesses)

    assert found.all_rows is not None
    assert found.source_medians is not None
    assert found.all_rows.median == pytest.approx(0.1)
    assert found.source_medians.median == pytest.approx(0.3)
    assert found.source_medians.count == 2


@pytest.mark.parametrize(
    "cells",
    [
        {"step_time_s": 1, "flags": "ci_run"},
        {"step_time_s": 1, "task": "lora"},
        {"step_time_s": 1, "status": "error"},
        {"step_time_s": "OOM"},
        {},
    ],
)
def test_rows_that_time_is_not_judged_by(cells: dict[str, object]) -> None:
    assert error_table([row("lab-1", **cells)], [timed("lab-1", 2)]).all_rows is None


def test_coverage_and_reasons() -> None:
    rows = [row("a-1"), row("a-2"), row("b-1"), row("b-2")]
    skips = [RowEstimate("a-1", "why"), RowEstimate("a-2", "why"), RowEstimate("b-1", None)]

    found = error_table(rows, skips)

    assert found.coverage == 0.25
    assert found.skipped == (("a", "why", 2), ("b", "absent", 1))


def test_interval() -> None:
    rows = [row(f"a-{n}", step_time_s=1) for n in range(3)]
    guesses = [
        RowEstimate("a-0", None, 1.1, 0.9, 1.3),
        RowEstimate("a-1", None, 2.0, 1.6, 2.5),
        RowEstimate("a-2", None, 2.0),
    ]

    assert error_table(rows, guesses).inside == (1, 2)


def test_memory_keeps_slow_runs_and_drops_failed_ones() -> None:
    rows = [
        row("a-1", mem_gib_peak_reported=10, flags="ci_run"),
        row("a-2", mem_gib_peak_reported=10, status="oom"),
        row("b-1", mem_gib_peak_reported=20),
        row("b-2"),
    ]
    guesses = [RowEstimate(one["id"], None, mem_gib_peak=11.0) for one in rows]

    found = error_table(rows, guesses)

    assert [(line.name, line.count) for line in found.memory] == [("a", 1), ("b", 1)]
    assert found.memory[0].signed_median == pytest.approx(0.1)
    assert found.memory[1].signed_median == pytest.approx(-0.45)
    assert found.memory_too_small == 0.5


def test_fit() -> None:
    rows = [
        row("a-1", status="oom"),
        row("a-2", status="oom"),
        row("a-3", step_time_s=1),
        row("a-4", step_time_s="OOM"),
        row("a-5", status="crash_or_oom"),  # says nothing of memory
        row("a-6", step_time_s=1, flags="ci_run"),  # ran, so it fits
        row("a-7", step_time_s=1),
    ]
    verdicts = [False, True, True, False, False, False, None]
    guesses = [
        RowEstimate(one["id"], None, 1.0, fits=fits)
        for one, fits in zip(rows, verdicts, strict=True)
    ]

    found = error_table(rows, guesses).fit

    assert (found.oom_found, found.oom_missed, found.fits_found, found.fits_missed) == (2, 1, 1, 1)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_no_balance_with_one_kind_alone() -> None:
    found = error_table([row("a-1", step_time_s=1)], [RowEstimate("a-1", None, fits=True)])

    assert found.fit.balanced_accuracy is None


def test_certain_verdicts_that_were_wrong() -> None:
    rows = [row(f"a-{n}", step_time_s=1) for n in range(3)]
    rows += [row(f"a-{n}", status="oom") for n in range(3, 6)]
    said = [Verdict.FITS, Verdict.TOO_CLOSE, Verdict.DOES_NOT_FIT] * 2
    guesses = [
        RowEstimate(one["id"], None, 1.0, verdict=verdict)
        for one, verdict in zip(rows, said, strict=True)
    ]

    found = error_table(rows, guesses).certain

    assert (found.answers, found.of) == (4, 6)
    assert (found.ran_called_impossible, found.oom_called_safe) == (1, 1)


@pytest.mark.parametrize(
    ("measured", "flags", "below", "above"),
    [
        (10, "", 0, 0),
        (8.9, "", 1, 0),
        (12.1, "", 0, 1),
        (12.1, "ci_run", 0, 1),  # a slow run's memory is as good as any
        (12.1, "shape_unknown", 0, 0),
    ],
)
def test_printed_peaks_against_their_interval(
    measured: float, flags: str, below: int, above: int
) -> None:
    rows = [row("a-1", step_time_s=1, mem_gib_peak_reported=measured, flags=flags)]
    guess = RowEstimate("a-1", None, 1.0, mem_gib_peak=10, mem_gib_low=9, mem_gib_high=12)

    found = error_table(rows, [guess]).memory_inside

    assert (found.below, found.above) == (below, above)


def test_coverage_of_rows_that_state_their_shape() -> None:
    shape = {"n_layers": 2, "hidden": 64, "seq_len": 128, "gbs": 8, "n_gpus": 8}
    rows = [row("a-1", **shape), row("a-2", **shape), row("a-3", **shape | {"gbs": ""}), row("a-4")]
    guesses = [timed("a-1", 1), RowEstimate("a-2", "no layout is stated"), timed("a-4", 1)]

    assert error_table(rows, guesses).stating == (1, 2)


def test_ranking() -> None:
    rows = [row(f"a-{n}", step_time_s=n, sweep_id="s") for n in (1, 2, 3, 4)]
    guesses = [timed("a-1", 5), timed("a-2", 2), timed("a-3", 6), timed("a-4", 7)]

    found = error_table(rows, guesses).ranking

    assert found is not None
    assert found.sweeps == 1
    assert found.tau_mean == pytest.approx((5 - 1) / 6)
    assert found.regret_mean == found.regret_p90 == 1.0  # picks 2 s where 1 s was possible
    assert found.median_layout_regret == 1.5


def test_small_sweeps_are_not_ranked() -> None:
    rows = [row(f"a-{n}", step_time_s=n, sweep_id="s") for n in (1, 2)]

    assert error_table(rows, [timed("a-1", 1), timed("a-2", 2)]).ranking is None


@pytest.mark.parametrize(
    ("members", "tau"),
    [
        ([(1, 1), (2, 2), (3, 3)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (2, 1), (3, 1)], None),
        ([(1, 1), (1, 2), (2, 3)], 1.0),
    ],
)
def test_kendall_tau(members: list[tuple[float, float]], tau: float | None) -> None:
    assert kendall_tau(members) == tau


def case(layout: Layout, precision: str = "bf16", batch: int = 64) -> Case:
    """Return a run of Llama-3-8B on H100s."""
    job = JobSpec(global_batch=batch, seq_len=4096, precision=precision)
    cluster = load_cluster("dgx-h100")
    return Case(load_model("llama-3-8b"), cluster, job, layout, "device", None, None, ())


def test_yardstick_is_half_of_peak() -> None:
    # 6 x (8.03e9 - embedding) + causal attention, for 64 x 4096 tokens
    parameters = 8_030_261_248 - 128_256 * 4096
    flops = 6 * parameters + 3 * 32 * 2 * (4096 / 2) * 32 * (128 + 128)

    seconds = table.yardstick_s(case(Layout(dp=8)))

    assert seconds == pytest.approx(flops * 64 * 4096 / (8 * 989e12 * 0.5), rel=1e-3)


def test_yardstick_adds_bubble_recompute_and_eight_bit() -> None:
    plain = table.yardstick_s(case(Layout(dp=8)))

    pipeline = table.yardstick_s(case(Layout(pp=4, dp=2)))
    chunks = table.yardstick_s(case(Layout(pp=4, vpp=2, dp=2)))
    again = table.yardstick_s(case(Layout(dp=8, recompute=Recompute.FULL)))
    fp8 = table.yardstick_s(case(Layout(dp=8), "fp8"))

    assert pipeline / plain == pytest.approx(1 + 3 / 32)
    assert chunks / plain == pytest.approx(1 + 3 / 64)
    assert again / plain == pytest.approx(4 / 3)
    assert plain / fp8 == pytest.approx(1.45)


def plain_row(name: str, **cells: object) -> dict[str, str]:
    """Return a complete row of a small run."""
    return row(
        name,
        **{
            "gpu": "A100-80GB", "n_gpus": 8, "framework": "Megatron-LM", "n_layers": 24,
            "hidden": 2048, "n_heads": 16, "seq_len": 2048, "gbs": 64, "mbs": 1, "tp": 2, "pp": 2,
        }
        | cells,
    )  # fmt: skip


def test_rows_are_estimated_in_order() -> None:
    rows = [plain_row("a-1"), plain_row("a-2", gbs=""), plain_row("a-3", tp=1)]

    found = list(table.estimates(rows))

    assert [one.id for one in found] == ["a-1", "a-2", "a-3"]
    assert [one.skipped for one in found] == [None, "gbs is not stated", None]
    assert set(table.yardsticks(rows)) == {"a-1", "a-3"}


def test_a_row_that_breaks_a_rule_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.errors import LayoutError

    def refuses(_: dict[str, str]) -> RowEstimate:
        raise LayoutError(["5 micro-batches over 4 stages", "and more"])

    monkeypatch.setattr(table, "estimate_row", refuses)

    assert next(table.estimates([plain_row("a-1")])).skipped == "5 micro-batches over 4 stages"


# ---------------------------------------------------------------- a second, plain implementation


def _median_line(name: str, signed: list[float]) -> tuple[object, ...]:
    sizes = sorted(abs(error) for error in signed)
    at = min(len(sizes) - 1, int(len(sizes) * 0.9))
    mean = sum(sizes) / len(sizes)
    return name, len(sizes), statistics.median(sizes), pytest.approx(mean), sizes[at]


def _line(errors: Errors) -> tuple[object, ...]:
    return errors.name, errors.count, errors.median, errors.mean, errors.p90


def _synthetic(path: Path, seed: int) -> list[RowEstimate]:
    """Write 300 rows of every kind to a file; return made-up estimates of them."""
    draw = random.Random(seed)
    columns = ["id", "gpu", "n_gpus", "framework", "step_time_s", "tokens_per_s_per_gpu"]
    columns += ["gbs", "seq_len", "status", "task", "flags", "sweep_id", "notes"]
    columns += ["mem_gib_peak_reported"]
    guesses = []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number in range(300):
            name = f"{draw.choice(['alpha', 'beta', 'gamma'])}{draw.choice('-_')}{number}"
            measured = draw.uniform(0.5, 5)
            state = draw.choice(["", "ok", "ok", "ok", "oom", "error", "crash_or_oom"])
            spoken = draw.random() < 0.3
            writer.writerow(
                {
                    "id": name,
                    "gpu": "H100",
                    "n_gpus": 8,
                    "framework": "x",
                    "step_time_s": "" if spoken else draw.choice([f"{measured:.4f}"] * 9 + ["OOM"]),
                    "tokens_per_s_per_gpu": 4096 / measured if spoken else "",
                    "gbs": 8,
                    "seq_len": 4096,
                    "status": state,
                    "task": draw.choice(["", "pretrain", "pretrain", "lora"]),
                    "flags": draw.choice(["", "", "", "ci_run", "proxy_layers; fine", "fine"]),
                    "sweep_id": draw.choice(["", "s1", "s2", "s3"]),
                    "notes": draw.choice(["", "kind=step; sweep=s4", "sweep=s5;"]),
                    "mem_gib_peak_reported": draw.choice(["", f"{draw.uniform(10, 80):.1f}"]),
                }
            )
            guess = measured * draw.uniform(0.6, 1.5)
            skipped = draw.choice([None] * 5 + ["cannot be expressed"])
            estimate = RowEstimate(
                name, skipped, guess, 0.8 * guess, 1.25 * guess, draw.uniform(10, 80),
                draw.choice([True, False]),
            )  # fmt: skip
            guesses.append(RowEstimate(name, skipped) if skipped else estimate)
    return guesses


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_plain_definition(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "runs.csv"
    guesses = _synthetic(path, seed)
    rows = read_rows(path)
    bad = {"ci_run", "proxy_layers"}
    by_id = {guess.id: guess for guess in guesses}
    signed: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    sweeps: dict[str, list[tuple[float, float]]] = {}
    inside, fit = [], {(a, b): 0 for a in (True, False) for b in (True, False)}
    for one in rows:
        guess = by_id[one["id"]]
        if guess.skipped:
            continue
        broken = one["status"] not in ("", "ok") or one["step_time_s"] == "OOM"
        oom = one["status"] == "oom" or one["step_time_s"] == "OOM"
        measured = float(one["step_time_s"] or 4096 / float(one["tokens_per_s_per_gpu"] or 1)) if (
            not broken
        ) else None  # fmt: skip
        flags = {flag.strip() for flag in one["flags"].split(";")}
        name = re.split("[-_]", one["id"])[0]
        assert guess.step_time_s is not None
        assert guess.mem_gib_peak is not None
        if measured and not flags & bad and one["task"] != "lora":
            signed.setdefault(name, []).append((guess.step_time_s - measured) / measured)
            inside.append(0.8 * guess.step_time_s <= measured <= 1.25 * guess.step_time_s)
            noted = re.search(r"sweep=(s\d)", one["notes"])
            key = one["sweep_id"] or (noted[1] if noted else "")
            if key:
                sweeps.setdefault(key, []).append((measured, guess.step_time_s))
        if one["mem_gib_peak_reported"] and not broken and "proxy_layers" not in flags:
            held = float(one["mem_gib_peak_reported"])
            memory.setdefault(name, []).append((guess.mem_gib_peak - held) / held)
        if oom or measured:
            fit[oom, bool(guess.fits)] += 1

    found = error_table(rows, guesses)

    assert [_line(one) for one in found.sources] == [
        _median_line(n, signed[n]) for n in sorted(signed)
    ]
    assert [_line(one) for one in found.memory] == [
        _median_line(n, memory[n]) for n in sorted(memory)
    ]
    everything = list(itertools.chain(*signed.values()))
    assert found.all_rows is not None
    assert found.all_rows.median == statistics.median(abs(error) for error in everything)
    assert found.inside == (sum(inside), len(inside))
    assert fit == {
        (True, False): found.fit.oom_found,
        (True, True): found.fit.oom_missed,
        (False, True): found.fit.fits_found,
        (False, False): found.fit.fits_missed,
    }
    assert found.ranking is not None
    regrets = [
        min(members, key=lambda member: member[1])[0] / min(members)[0] - 1
        for members in sweeps.values()
        if len(members) >= 3
    ]
    assert found.ranking.sweeps == len(regrets)
    assert found.ranking.regret_mean == pytest.approx(statistics.mean(regrets))


# ------------------------------------------------------------------------------------- real runs


@real_runs
@pytest.mark.slow
def test_agrees_with_the_score_of_the_files(tmp_path: Path) -> None:
    """The scorer beside the runs prints the same digits from the raw estimates."""
    scorer = RUNS / "score.py"
    if not scorer.exists():
        pytest.skip("no score.py beside the runs")
    names = [name for name in ("frameworks", "frameworks_failed", "papers", "megatron_ci_golden")
             if (RUNS / f"{name}.csv").exists()]  # fmt: skip
    raw = tmp_path / "raw.json"
    said = subprocess.run(
        [sys.executable, str(scorer), "--planner", f"{sys.executable} -m planner",
         "--files", ",".join(names), "--out", str(raw)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = [one for name in names for one in read_rows(RUNS / f"{name}.csv")]
    found = error_table(rows, [RowEstimate(**one) for one in json.loads(raw.read_text()).values()])

    def line(name: str, errors: Errors) -> str:
        median, mean, p90 = (100 * x for x in (errors.median, errors.mean, errors.p90))
        return (
            f"  {name:34s} n={errors.count:5d} median {median:6.1f}%  "
            f"mean {mean:6.1f}%  p90 {p90:6.1f}%"
        )

    time_part, _, memory_part = said.partition("MEMORY")
    for errors in found.sources:
        assert line(errors.name, errors) in time_part
    for errors in found.memory:
        assert line(errors.name, errors) in memory_part
    assert found.all_rows is not None
    assert found.source_medians is not None
    assert found.memory_all is not None
    assert found.ranking is not None
    assert line("ALL rows", found.all_rows) in time_part
    assert line("ALL, median of sources", found.source_medians) in time_part
    assert line("ALL", found.memory_all) in memory_part
    assert f"rows {found.rows}, estimated {found.estimated} ({100 * found.coverage:.1f}%)" in said
    fit = found.fit
    assert f"oom found {fit.oom_found}/{fit.oom_found + fit.oom_missed} " in said
    assert f"fits found {fit.fits_found}/{fit.fits_found + fit.fits_missed} " in said
    ranking = found.ranking
    assert f"RANKING {ranking.sweeps} sweeps: Kendall tau mean {ranking.tau_mean:.3f}" in said
    assert f"top-1 regret mean {100 * ranking.regret_mean:.1f}%" in said
    assert f"p90 {100 * ranking.regret_p90:.1f}% (median layout" in said
    assert f"would cost {100 * ranking.median_layout_regret:.1f}%)" in said


@real_runs
@pytest.mark.slow
def test_estimates_beat_the_yardstick_on_real_runs() -> None:
    rows = read_rows(RUNS / "frameworks.csv")
    found = error_table(rows, table.estimates(rows), table.yardsticks(rows))

    assert found.coverage > 0.75
    assert found.source_medians is not None
    assert found.source_medians.yardstick_median is not None
    assert found.source_medians.median < found.source_medians.yardstick_median
    assert found.ranking is not None
    assert found.yardstick_ranking is not None
    assert found.ranking.regret_mean < found.yardstick_ranking.regret_mean
