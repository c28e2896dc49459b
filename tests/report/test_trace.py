"""The trace of a simulated step against the format of torch's profiler."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.report.trace import trace, trace_bytes
from planner.simulate.timeline import Timeline, step_timeline
from tests.properties.strategies import cluster, job, small, software

LAYOUT = Layout(tp=2, pp=4, dp=2, sequence_parallel=True, schedule="zb_h1")


@pytest.fixture(scope="module", params=["", "zb_h1", "zb_v"])
def timeline(request: pytest.FixtureRequest) -> Timeline:
    table = Prices(
        small(), cluster("dgx-h100", 2), job(32, software=software(overlap_pipeline=True))
    )
    chunks = 2 if request.param == "zb_v" else 1
    return step_timeline(table, replace(LAYOUT, schedule=request.param, vpp=chunks))


def events(timeline: Timeline, phase: str) -> list[dict[str, Any]]:
    document = trace(timeline, "a step")
    found = document["traceEvents"]
    assert isinstance(found, list)
    return [event for event in found if event["ph"] == phase]


def test_one_process_for_each_pipeline_rank(timeline: Timeline) -> None:
    names = {e["pid"]: e["args"]["name"] for e in events(timeline, "M") if
             e["name"] == "process_name"}  # fmt: skip

    assert names == {pid: f"rank {pid}" for pid in (0, 4, 8, 12)}
    labels = [e["args"]["labels"] for e in events(timeline, "M") if e["name"] == "process_labels"]
    assert labels[1] == "stage 1, as 5 to 7"


def test_every_row_is_named(timeline: Timeline) -> None:
    named = {(e["pid"], e["tid"]) for e in events(timeline, "M") if e["name"] == "thread_name"}

    assert {(e["pid"], e["tid"]) for e in events(timeline, "X")} == named


def test_events_of_a_row_do_not_cross(timeline: Timeline) -> None:
    rows = defaultdict(list)
    for event in events(timeline, "X"):
        rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))

    for row in rows.values():
        assert all(b[0] >= a[1] for a, b in pairwise(sorted(row)))


@pytest.mark.parametrize("to_ns", [int, round])
def test_a_viewer_that_keeps_whole_nanoseconds_sees_the_same(
    timeline: Timeline, to_ns: Callable[[float], int]
) -> None:
    """Perfetto turns ``ts`` and ``dur`` into integers one by one, and binds arrows after that."""
    rows = defaultdict(list)
    for event in events(timeline, "X"):
        start = to_ns(1000 * event["ts"])
        rows[event["pid"], event["tid"]].append((start, start + to_ns(1000 * event["dur"])))

    for row in rows.values():
        assert all(b[0] >= a[1] for a, b in pairwise(sorted(row)))
    for event in events(timeline, "s") + events(timeline, "f"):
        moment, row = to_ns(1000 * event["ts"]), rows[event["pid"], event["tid"]]
        assert sum(start <= moment < end for start, end in row) == 1


def test_the_trace_ends_with_the_step(timeline: Timeline) -> None:
    end_us = max(e["ts"] + e["dur"] for e in events(timeline, "X"))

    assert end_us == pytest.approx(1e6 * max(piece.end_s for piece in timeline.slices), abs=0.07)
    passes = [e for e in events(timeline, "X") if e["args"]["kind"] in ("F", "B", "W")]
    assert {e["name"][:2] for e in passes} >= {"F ", "B "}
    assert all("micro_batch" in e["args"] and "chunk" in e["args"] for e in passes)


def test_arrows_bind_to_slices_of_the_critical_path(timeline: Timeline) -> None:
    slices = defaultdict(list)
    for event in events(timeline, "X"):
        if "critical path" in event["args"]:
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    starts, ends = events(timeline, "s"), events(timeline, "f")

    assert [e["id"] for e in starts] == [e["id"] for e in ends] == list(range(len(starts)))
    assert starts
    assert all(e["bp"] == "e" for e in ends)
    for event in starts + ends:
        row = slices[event["pid"], event["tid"]]
        assert any(low <= event["ts"] < high for low, high in row)
    assert all(a["ts"] <= b["ts"] for a, b in zip(starts, ends, strict=True))


def test_a_file_is_compressed_by_its_name(timeline: Timeline) -> None:
    plain, packed = (trace_bytes(timeline, "t", Path(name)) for name in ("a.json", "a.json.gz"))

    assert gzip.decompress(packed) == plain
    assert json.loads(plain)["traceName"] == "t"
    assert packed == trace_bytes(timeline, "t", Path("b.json.gz"))


@pytest.mark.slow
def test_keys_are_those_of_torchs_profiler(timeline: Timeline, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(8, 8).mm(torch.ones(8, 8))
    profiler.export_chrome_trace(str(tmp_path / "torch.json"))
    theirs = json.loads((tmp_path / "torch.json").read_text())
    ours = trace(timeline, "t")

    assert set(ours) <= set(theirs)
    for phase in "XM":
        keys = set().union(*(set(e) for e in theirs["traceEvents"] if e["ph"] == phase))
        assert all(set(event) <= keys for event in events(timeline, phase))
    names = {e["name"] for e in theirs["traceEvents"] if e["ph"] == "M"}
    assert {e["name"] for e in events(timeline, "M")} <= names
