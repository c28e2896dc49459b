"""The trace in Perfetto's own engine: nothing dropped, every row, arrow and counter there."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload, Shard
from planner.report.trace import trace, trace_bytes
from planner.simulate.timeline import Timeline, step_timeline
from tests.properties.strategies import cluster, job, small, small_moe, software
from tests.report.perfetto import TraceProcessor, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

PP4 = Layout(pp=4, dp=4, shard=Shard(1, 1, 4))
LAYOUTS = {
    "fsdp": Layout(dp=16, shard=Shard(16, 16, 16)),
    "interleaved": replace(PP4, tp=2, dp=2, shard=Shard(1, 1, 2), vpp=2, sequence_parallel=True),
    "zb_v": replace(PP4, schedule="zb_v", vpp=2),
    "experts": Layout(ep=4, dp=8, pp=2),
    "ssd": replace(PP4, vpp=2, offload=Offload(0.5, "ssd")),
    "host": replace(PP4, offload=Offload(0.5), offload_optimizer=1.0),
    "2,048 GPUs": Layout(tp=8, pp=8, dp=32, shard=Shard(1, 1, 32), sequence_parallel=True),
}
THREADS = """select process.pid, thread.tid, thread.name, count(*) as slices
  from slice join thread_track on slice.track_id = thread_track.id
  join thread using (utid) join process using (upid) group by 1, 2, 3"""
ARROWS = """select o.ts + o.dur as left_ns, o.dur as dur, i.ts as arrives_ns,
  extract_arg(o.arg_set_id, 'args.critical path') as from_path,
  extract_arg(i.arg_set_id, 'args.critical path') as to_path
  from flow join slice o on o.id = slice_out join slice i on i.id = slice_in"""
COUNTERS = """select process.pid, counter.ts, counter.value from counter
  join process_counter_track on counter.track_id = process_counter_track.id
  join process using (upid) order by 1, 2"""
PROBLEMS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


class Case:
    """One trace: the events written, and the engine that has read them."""

    def __init__(self, layout: Layout, engine: TraceProcessor, events: list[Any]) -> None:
        self.layout, self.engine, self.events = layout, engine, events

    def phase(self, phase: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["ph"] == phase]


def simulated(layout: Layout) -> Timeline:
    """Return a step of a small model with a few micro-batches per rank."""
    model = small_moe() if layout.ep > 1 else small()
    given = job(max(64, 8 * layout.dp), software=software(overlap_pipeline=True))
    return step_timeline(Prices(model, cluster("dgx-h100", layout.gpus // 8), given), layout)


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    timeline = simulated(request.param)
    document: Any = trace(timeline, "a step")
    with TraceProcessor(trace_bytes(timeline, "a step", Path("t.json.gz"))) as engine:
        yield Case(timeline.layout, engine, document["traceEvents"])


def test_nothing_is_lost_on_import(case: Case) -> None:
    assert case.engine.rows(PROBLEMS) == []
    assert case.engine.one("select count(*) as n from slice") == len(case.phase("X"))
    assert case.engine.one("select count(*) as n from slice where depth > 0") == 0


def test_every_rank_has_its_streams(case: Case) -> None:
    written = Counter((event["pid"], event["tid"]) for event in case.phase("X"))
    found = {(row["pid"], row["tid"]): row for row in case.engine.rows(THREADS)}

    assert {place: row["slices"] for place, row in found.items()} == written
    assert len({pid for pid, _ in found}) == case.layout.pp
    names = {row["name"].split(" ", 2)[2] for row in found.values()}
    wanted = {"compute"}
    wanted |= {"pipeline transfers"} if case.layout.pp > 1 else {"sharded weights", "layers"}
    wanted |= {"tensor parallel"} if case.layout.tp > 1 else set()
    wanted |= {"expert parallel"} if case.layout.ep > 1 else set()
    wanted |= {"SSD writes", "SSD reads"} if case.layout.offload.target == "ssd" else set()
    wanted |= {"host CPU", "device to host"} if case.layout.offload_optimizer else set()
    assert wanted <= names


def test_arrows_follow_the_critical_path(case: Case) -> None:
    arrows = case.engine.rows(ARROWS)

    assert len(arrows) == len(case.phase("s")) > 0
    assert all(row["from_path"] and row["to_path"] for row in arrows)
    assert all(row["arrives_ns"] >= row["left_ns"] - 125 for row in arrows)


def test_memory_is_a_counter_of_every_rank(case: Case) -> None:
    rows = case.engine.rows(COUNTERS)
    written = [(e["pid"], round(1000 * e["ts"]), e["args"]["GiB"]) for e in case.phase("C")]

    assert [(r["pid"], r["ts"], pytest.approx(r["value"])) for r in rows] == written
    assert len({row["pid"] for row in rows}) == case.layout.pp
