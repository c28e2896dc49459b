"""A simulated step as a trace: the JSON that torch's profiler writes, for Perfetto and Chrome.

Trace Event Format: complete events (``X``), names of rows (``M``), flow arrows (``s``, ``f``),
counters (``C``); times in microseconds. One process is one rank, one thread one of its streams.

Viewers keep whole nanoseconds: they cut or round start and length of a slice on their own, so that
it may seem to reach into the next one (Perfetto drops such a slice) or lose its arrow. So all times
are whole ticks of 125 ns: an eighth of a microsecond is exact in binary and in nanoseconds.
"""

import gzip
import heapq
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from planner.simulate.slices import STREAMS, Slice
from planner.simulate.timeline import Timeline
from planner.units import GIB

Event = dict[str, object]
FIRST_STREAM = 7  # torch numbers its first compute stream so
PATH = "critical path"
MEMORY = "allocated memory"
TICKS_PER_US = 8  # what is shorter than half a tick is not drawn
LANES = 10  # numbers of one stream: what runs at once on it needs rows of its own
Places = dict[int, tuple[int, int]]  # process and thread of each slice that is drawn


def trace(timeline: Timeline, title: str) -> dict[str, object]:
    """Return the trace of a step; ``title`` names it."""
    places = _places(timeline)
    return {
        "schemaVersion": 1,
        "deviceProperties": [],
        "displayTimeUnit": "ms",
        "traceName": title,
        "traceEvents": [
            *_rows(timeline, places),
            *_events(timeline, places),
            *_arrows(timeline, places),
            *_memory(timeline),
        ],
    }


def trace_bytes(timeline: Timeline, title: str, path: Path) -> bytes:
    """Return the file's content, compressed where ``path`` ends in ``.gz``, always the same."""
    text = json.dumps(trace(timeline, title), separators=(",", ":")).encode()
    return gzip.compress(text, mtime=0) if path.suffix == ".gz" else text


def _ticks(moment_s: float) -> int:
    return round(1e6 * TICKS_PER_US * moment_s)


def _span(piece: Slice) -> tuple[int, int]:
    """Return start and end of a slice in ticks."""
    return _ticks(piece.start_s), _ticks(piece.end_s)


def _places(timeline: Timeline) -> Places:
    """Return process and thread of each slice long enough to be drawn.

    The process is the first GPU of the pipeline rank (rank order tp-cp-dp-pp). Viewers want slices
    of one thread not to cross, so a transfer that begins before another has ended gets a lane.
    """
    alike = timeline.layout.gpus // timeline.layout.pp
    slices = timeline.slices + timeline.details
    spans = [_span(piece) for piece in slices]
    drawn = [place for place, (start, end) in enumerate(spans) if end > start]
    lanes: dict[tuple[int, str], list[tuple[int, int]]] = {}
    found = {}
    for place in sorted(drawn, key=lambda place: spans[place][0]):
        piece, (start, end) = slices[place], spans[place]
        used = lanes.setdefault((piece.rank, piece.stream), [])
        if used and used[0][0] <= start:
            lane = used[0][1]
            heapq.heapreplace(used, (end, lane))
        else:
            lane = len(used)
            heapq.heappush(used, (end, lane))
        stream = LANES * STREAMS.index(piece.stream) + lane
        found[place] = piece.rank * alike, FIRST_STREAM + stream
    return found


def _rows(timeline: Timeline, places: Places) -> Iterator[Event]:
    """Yield names and order of the rows that have slices."""
    alike = timeline.layout.gpus // timeline.layout.pp
    for pid in sorted({pid for pid, _ in places.values()}):
        others = f", as {pid + 1} to {pid + alike - 1}" if alike > 1 else ""
        yield _named("process_name", pid, 0, {"name": f"rank {pid}"})
        yield _named("process_labels", pid, 0, {"labels": f"stage {pid // alike}{others}"})
        yield _named("process_sort_index", pid, 0, {"sort_index": pid})
    for pid, tid in sorted(set(places.values())):
        stream = STREAMS[(tid - FIRST_STREAM) // LANES]
        yield _named("thread_name", pid, tid, {"name": f"stream {tid} {stream}"})
        yield _named("thread_sort_index", pid, tid, {"sort_index": tid})


def _named(name: str, pid: int, tid: int, args: Event) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _events(timeline: Timeline, places: Places) -> Iterator[Event]:
    """Yield every slice that is drawn."""
    on_path, slices = set(timeline.path), timeline.slices + timeline.details
    for place, (pid, tid) in sorted(places.items()):
        piece = slices[place]
        start, end = _span(piece)
        args: Event = {"device": pid, "stream": tid, "kind": piece.kind}
        if piece.micro_batch >= 0:
            args |= {"micro_batch": piece.micro_batch, "chunk": piece.chunk}
        parts = timeline.parts_s.get((piece.rank, piece.chunk, piece.kind), {})
        args |= {f"{part} ms": round(1e3 * seconds, 4) for part, seconds in parts.items()}
        if place in on_path:
            args[PATH] = True
        yield {
            "ph": "X",
            "cat": "kernel",
            "name": piece.name,
            "pid": pid,
            "tid": tid,
            "ts": start / TICKS_PER_US,
            "dur": (end - start) / TICKS_PER_US,
            "args": args,
        }


def _memory(timeline: Timeline) -> Iterator[Event]:
    """Yield what each rank has allocated, a counter beside its rows."""
    alike = timeline.layout.gpus // timeline.layout.pp
    for rank, track in enumerate(timeline.memory):
        for at_s, held in zip(track.at_s.tolist(), track.allocated_bytes.tolist(), strict=True):
            yield {
                "ph": "C",
                "cat": "memory",
                "name": MEMORY,
                "pid": rank * alike,
                "ts": _ticks(at_s) / TICKS_PER_US,
                "args": {"GiB": round(held / GIB, 4)},
            }


def _arrows(timeline: Timeline, places: Places) -> Iterator[Event]:
    """Yield an arrow from each slice of the critical path to the next."""
    path = [place for place in timeline.path if place in places]
    for number, ends in enumerate(pairwise(path)):
        before, after = (_span(timeline.slices[place]) for place in ends)
        # an arrow binds to the slice around its point, so it leaves a tick before the end
        for phase, place, moment in zip(("s", "f"), ends, (before[1] - 1, after[0]), strict=True):
            pid, tid = places[place]
            yield {
                "ph": phase,
                "cat": PATH,
                "name": PATH,
                "id": number,
                "pid": pid,
                "tid": tid,
                "ts": moment / TICKS_PER_US,
            } | ({"bp": "e"} if phase == "f" else {})
