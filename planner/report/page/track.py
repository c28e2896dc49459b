"""Memory of the fullest pipeline rank through the step, drawn without a script."""

import numpy as np

from planner.report.page.facts import Facts
from planner.report.page.markup import Markup, details, join, number, percent_of, table, tag
from planner.report.simulated import running
from planner.report.words import gib, seconds
from planner.schedule.passes import FloatArray
from planner.simulate.memory import MemoryTrack

COLUMNS = 320  # of the drawing: within one, memory moves between its least and its most
ROOM = 1.04  # above the peak


def track_parts(facts: Facts) -> Markup:
    """Return the memory that the fullest rank allocates over the step, and when each rank peaks."""
    found = facts.timeline
    rank = max(range(found.layout.pp), key=lambda one: found.memory[one].peak.allocated)
    track = found.memory[rank]
    said = (
        f"Rank {rank} through the step: {gib(track.peak.allocated)} GiB allocated at most, first "
        f"at {seconds(track.peak_s)}{_while(facts, rank)}"
    )
    drawn = _drawn(track, found.step_time_s, said)
    hint = tag("p", "Lighter: what comes and goes with the passes of that time.", class_="hint")
    return join(tag("h3", said), drawn, hint, _peaks(facts))


def envelope(track: MemoryTrack, total_s: float) -> tuple[FloatArray, FloatArray]:
    """Return the least and the most bytes in each of ``COLUMNS`` parts of the step."""
    edges = np.linspace(0.0, total_s, COLUMNS + 1)
    first = np.searchsorted(track.at_s, edges[:-1], side="right") - 1
    last = np.searchsorted(track.at_s, edges[1:], side="left")
    parts = [
        track.allocated_bytes[start : max(end, start + 1)]
        for start, end in zip(first, last, strict=True)
    ]
    least, most = ([pick(part) for part in parts] for pick in (np.min, np.max))
    return np.array(least), np.array(most)


def _while(facts: Facts, rank: int) -> str:
    moment, piece = facts.timeline.memory[rank].peak.moment, running(facts.timeline, rank)
    return f", {moment} ({piece})" if piece else f", {moment}"


def _drawn(track: MemoryTrack, total_s: float, said: str) -> Markup:
    scale = ROOM * track.peak.allocated
    shapes = [
        tag("polygon", points=_area(bytes_, scale), class_=name)
        for name, bytes_ in zip(("least", "most"), envelope(track, total_s), strict=True)
    ]
    picture = tag("svg", *reversed(shapes), viewBox=f"0 0 {COLUMNS} 100",
                  preserveAspectRatio="none", role="img", aria_label=said)  # fmt: skip
    left = percent_of(track.peak_s, total_s)
    peak = tag("i", class_="peak", style=f"left:{left};bottom:{percent_of(1, ROOM)}")
    ticks = [
        *(tag("span", seconds(total_s * part) if part else "0 s", class_="tick x",
              style=f"left:{100 * part:.0f}%") for part in (0.0, 0.5, 1.0)),
        *(tag("span", gib(track.peak.allocated * part), class_="tick y",
              style=f"bottom:{percent_of(part, ROOM)}") for part in (0.0, 0.5, 1.0)),
    ]  # fmt: skip
    area = tag("div", picture, peak, *ticks, class_="area")
    return tag("div", tag("span", "allocated by torch, GiB", class_="name y"), area, class_="track")


def _area(bytes_: FloatArray, scale: float) -> str:
    """Return the outline of columns as high as ``bytes_``, from the bottom and back to it."""
    tops = 100 * (1 - bytes_ / scale)
    steps = [f"{x},{top:.1f} {x + 1},{top:.1f}" for x, top in enumerate(tops)]
    return f"0,100 {' '.join(steps)} {COLUMNS},100"


def _peaks(facts: Facts) -> Markup:
    rows = [
        [str(rank), number(track.peak.allocated, gib(track.peak.allocated)),
         number(track.peak_s, seconds(track.peak_s)), running(facts.timeline, rank),
         track.peak.moment]
        for rank, track in enumerate(facts.timeline.memory)
    ]  # fmt: skip
    titles = ["rank", "allocated GiB", "first at", "while", "moment"]
    return details("When each rank peaks", table("Peak of allocated memory", titles, rows))
