"""Replay of measured runs: rows carried from public sources, and whole files where given."""

import csv
import itertools
import json
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, median

import pytest

from planner.units import GIB
from planner.validate.cases import read_case, read_rows
from planner.validate.replay import (
    RowEstimate,
    estimate_case,
    estimate_row,
    printed_memory_bytes,
)

Row = dict[str, str]
ROWS = {
    row["id"]: row
    for row in read_rows(Path(__file__).parents[1] / "data" / "validate" / "rows.csv")
}
# id, how far the estimated step time may be from the measured one: the spread of its source
BANDS = [
    ("mbridge-0211", 0.20),  # Llama 3.1 405B, 256 GB200, MXFP8
    ("mbridge-0082", 0.20),  # Llama 3.1 405B, 256 GB300, cp 2
    ("nemo-0027", 0.15),  # Llama 2 70B, 64 H100, FP8
    ("nemo-0038", 0.15),  # GPT-3 175B, 512 H100, FP8
    ("mcore-0002", 0.15),  # Llama 3 70B, 64 H100, FP8
    ("mcore-0001", 0.15),  # Llama 3 8B, 8 H100, FP8, cp 2
    ("dgxc-0317", 0.15),  # Nemotron 340B, 256 GB200, FP8
    ("dgxc-0187", 0.15),  # Nemotron 15B, 32 H100
    ("dgxc-0331", 0.25),  # Grok-1, 512 H100, ep 8
    ("foundry-0054", 0.15),  # MPT-1B, 8 H100, fully sharded
    ("foundry-0035", 0.15),  # MPT-7B, 8 H100, fully sharded
    ("foundry-0251", 0.15),  # MPT-3B, 64 A100
    ("titan-0002", 0.25),  # Llama 3 8B, 8 H100 of 500 W
    ("titan-0005", 0.25),  # Llama 3 8B, 128 H100 of 500 W
    ("nanotron-1243", 0.25),  # 3.6B, 128 H100 on EFA, tp 4
    ("nanotron-0066", 0.25),  # 1.3B, 16 H100 on EFA, tp 2
    ("bigscience-0091", 0.25),  # 181B, 384 A100, pp 24
    ("bigscience-0104", 0.25),  # 181B, 384 A100, tp 4 pp 12
    ("bigscience-0037", 0.25),  # 181B, 384 A100, tp 8 pp 12
    ("megascale-0006", 0.15),  # GPT 175B, 6144 A100
    ("megascale-0012", 0.15),  # GPT 175B, 1024 A100
]
# id, GiB that the source printed, how far the estimate of the same counter may be
MEMORY = [
    ("titan-0002", 77.0, 0.10),
    ("titan-0005", 62.0, 0.10),
    ("nanotron-1243", 66.2, 0.25),
    ("nanotron-0066", 58.7, 0.20),
    ("bigscience-0037", 49.0, 0.20),
]


def cell(row: Row, column: str) -> float | None:
    try:
        return float(row.get(column) or "")
    except ValueError:
        return None


def measured_s(row: Row) -> float | None:
    """Seconds of a step, or what tokens per second make of it."""
    if seconds := cell(row, "step_time_s"):
        return seconds
    speed, batch, seq_len, gpus = (
        cell(row, name) for name in ("tokens_per_s_per_gpu", "gbs", "seq_len", "n_gpus")
    )
    return batch * seq_len / (speed * gpus) if speed and batch and seq_len and gpus else None


@pytest.mark.parametrize(("name", "within"), BANDS)
def test_the_step_time_of_a_measured_run(name: str, within: float) -> None:
    measured, found = measured_s(ROWS[name]), estimate_row(ROWS[name])
    assert measured is not None

    assert found.skipped is None
    assert found.step_time_s == pytest.approx(measured, rel=within)


@pytest.mark.parametrize(("name", "printed_gib", "within"), MEMORY)
def test_the_memory_that_a_source_printed(name: str, printed_gib: float, within: float) -> None:
    assert cell(ROWS[name], "mem_gib_peak_reported") == printed_gib
    assert estimate_row(ROWS[name]).mem_gib_peak == pytest.approx(printed_gib, rel=within)


def test_every_carried_row_is_tested_and_names_its_source() -> None:
    oom = {"bigscience-0089"}

    assert {name for name, _ in BANDS} | oom == set(ROWS)
    assert all(row["source"] for row in ROWS.values())


def test_a_run_that_ended_for_lack_of_memory_does_not_fit() -> None:
    row = ROWS["bigscience-0089"]

    assert row["status"] == "oom"
    assert estimate_row(row).fits is False


@pytest.mark.parametrize("name", ROWS)
def test_the_interval_holds_the_estimate(name: str) -> None:
    found = estimate_row(ROWS[name])
    times = [found.step_time_low_s, found.step_time_s, found.step_time_high_s]

    assert [t for t in times if t] == sorted(set(times), key=lambda t: t or 0)


def test_most_carried_runs_lie_inside_their_interval() -> None:
    inside = 0
    for name, _ in BANDS:
        found, measured = estimate_row(ROWS[name]), measured_s(ROWS[name])
        inside += (found.step_time_low_s or 0) <= (measured or 0) <= (found.step_time_high_s or 0)

    assert inside / len(BANDS) >= 0.8


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_data_of_the_agreed_keys(name: str) -> None:
    written = json.loads(json.dumps(estimate_row(ROWS[name]).as_json()))

    assert {
        "id",
        "skipped",
        "step_time_s",
        "step_time_low_s",
        "step_time_high_s",
        "mem_gib_peak",
        "fits",
    } <= written.keys()
    assert (written["id"], written["skipped"]) == (name, None)
    assert isinstance(written["fits"], bool)


def test_a_skipped_row_has_its_reason_and_no_numbers() -> None:
    row = ROWS["nemo-0027"] | {"gpu": "TPU v5"}
    written = estimate_row(row).as_json()

    assert written.pop("id") == "nemo-0027"
    assert "GPU 'TPU v5' is not shipped" in str(written.pop("skipped"))
    assert set(written.values()) == {None, ()}


def test_a_row_that_breaks_a_rule_of_its_schedule_is_skipped() -> None:
    row = ROWS["nemo-0038"] | {"gbs": "160", "mbs": "1", "vpp": "2"}  # 10 micro-batches, pp 8
    found = estimate_row(row)

    assert found.skipped is not None
    assert "micro-batches" in found.skipped


@pytest.mark.parametrize("name", ROWS)
def test_the_id_never_matters(name: str) -> None:
    found = estimate_row(ROWS[name]).as_json()
    renamed = estimate_row(ROWS[name] | {"id": "x", "source": "", "sweep_id": ""}).as_json()

    assert renamed | {"id": name} == found


@pytest.mark.parametrize("name", ROWS)
def test_what_was_measured_never_matters(name: str) -> None:
    answers = ("step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu_reported", "mfu_reported")
    blank = ROWS[name] | dict.fromkeys((*answers, "mem_gib_peak_reported", "status", "flags"), "")

    assert estimate_row(blank) == estimate_row(ROWS[name])


def test_the_order_of_rows_never_matters() -> None:
    forward = [estimate_row(row) for row in ROWS.values()]
    backward = [estimate_row(row) for row in reversed(ROWS.values())]

    assert forward == backward[::-1]


@pytest.mark.parametrize("name", ROWS)
def test_an_estimate_is_that_of_its_case(name: str) -> None:
    case = read_case(ROWS[name])
    step, found = estimate_case(case), estimate_row(ROWS[name])

    assert (found.step_time_s, found.assumed) == (step.step_time_s, case.assumed)
    assert found.fits == (step.memory.device <= case.cluster.gpu.memory_bytes)
    assert found.mem_gib_peak == printed_memory_bytes(case, step) / GIB


@pytest.mark.parametrize("name", ROWS)
def test_the_driver_sees_more_than_torch_reserves_and_that_more_than_it_uses(name: str) -> None:
    case = read_case(ROWS[name])
    step = estimate_case(case)
    counters = [
        printed_memory_bytes(replace(case, memory_kind=kind, memory_rank=None), step)
        for kind in ("allocated", "reserved", "device")
    ]

    assert counters == [step.memory.allocated, step.memory.reserved, step.memory.device]
    assert counters == sorted(set(counters))


def test_of_one_rank_its_own_memory_is_compared() -> None:
    case = read_case(next(row for row in ROWS.values() if int(row["pp"] or 1) > 1))
    step = estimate_case(case)

    sizes = [
        printed_memory_bytes(replace(case, memory_rank=rank), step)
        for rank in range(case.layout.pp)
    ]

    assert len(set(sizes)) > 1
    assert max(sizes) == pytest.approx(
        printed_memory_bytes(replace(case, memory_rank=None), step), rel=0.02
    )


def test_an_unknown_counter_is_an_error() -> None:
    case = replace(read_case(ROWS["titan-0002"]), memory_kind="resident")

    with pytest.raises(KeyError):
        printed_memory_bytes(case, estimate_case(case))


# --- whole files of measured runs: PLANNER_RUNS names the folder

FILES = ("frameworks", "frameworks_failed", "papers", "megatron_ci_golden")
RUNS = os.environ.get("PLANNER_RUNS", "")
whole_files = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUNS, reason="PLANNER_RUNS names no folder of measured runs"),
]
# a source's own doubt about a row
DOUBTS = {
    "pathologically_slow",
    "noisy_40pct",
    "shape_unknown",
    "layout_product_not_n_gpus",
    "layout_does_not_divide_n_gpus",
    "source_dp_inconsistent",
    "batch_does_not_multiply",
    "untuned_sanity_run",
    "ci_run",
    "proxy_layers",
}


@dataclass(frozen=True)
class Run:
    """A sane finished pretraining run and its estimate."""

    source: str
    sweep: str
    measured_s: float
    estimated_s: float

    @property
    def error(self) -> float:
        return abs(self.estimated_s - self.measured_s) / self.measured_s


@cache
def whole() -> tuple[tuple[str, Row, RowEstimate], ...]:
    csv.field_size_limit(10**7)
    found = []
    for name in FILES:
        with (Path(RUNS) / f"{name}.csv").open(newline="") as file:
            found += [(name, row, estimate_row(row)) for row in csv.DictReader(file)]
    return tuple(found)


@cache
def runs() -> tuple[Run, ...]:
    found = []
    for name, row, estimate in whole():
        finished = name != "frameworks_failed" and row["step_time_s"] != "OOM"
        flags = {flag.strip() for flag in (row.get("flags") or "").split(";")}
        pretrained = row.get("task", "pretrain") in ("", "pretrain")
        measured = measured_s(row) if finished and pretrained and not flags & DOUBTS else None
        if measured and estimate.step_time_s:
            sweep = re.search(r"sweep=([^;\s]+)", row["notes"])
            key = row.get("sweep_id") or (sweep[1] if sweep else "")
            source = re.split(r"[-_]", row["id"])[0]
            found.append(Run(source, key, measured, estimate.step_time_s))
    return tuple(found)


def grouped(attribute: str) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs():
        groups[getattr(run, attribute)].append(run)
    return groups


class TestWholeFiles:
    pytestmark = whole_files

    def test_three_of_four_rows_are_estimated(self) -> None:
        estimated = [estimate for _, _, estimate in whole() if estimate.skipped is None]

        assert len(estimated) / len(whole()) >= 0.75

    def test_every_reason_for_a_skip_is_short_and_human(self) -> None:
        reasons = {estimate.skipped for _, _, estimate in whole() if estimate.skipped}

        assert all(5 < len(text) < 200 and "\n" not in text for text in reasons), reasons

    def test_a_hundred_rows_a_second(self) -> None:
        sample = list(itertools.islice(whole(), 0, None, 10))
        started = time.perf_counter()
        for _, row, _ in sample:
            estimate_row(row)

        assert len(sample) / (time.perf_counter() - started) >= 100

    def test_the_median_source_is_within_14_percent(self) -> None:
        medians = [median(run.error for run in own) for own in grouped("source").values()]

        assert len(medians) >= 15
        assert median(medians) < 0.14

    def test_the_median_row_is_within_30_percent(self) -> None:
        assert median(run.error for run in runs()) < 0.30

    def test_the_layout_picked_in_a_sweep_loses_less_than_15_percent(self) -> None:
        regrets = []
        for name, own in grouped("sweep").items():
            if name and len(own) >= 3:
                picked = min(own, key=lambda run: run.estimated_s)
                regrets.append(picked.measured_s / min(run.measured_s for run in own) - 1)

        assert len(regrets) >= 50
        assert fmean(regrets) < 0.15
