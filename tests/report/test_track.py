"""Memory through the step, as the page draws it."""

import numpy as np
import pytest

from planner.memory.estimate import rank_memory
from planner.report.page.document import html_page
from planner.report.page.facts import facts
from planner.report.page.track import COLUMNS, envelope
from planner.report.words import gib
from planner.simulate.memory import MemoryTrack
from tests.report.pages import plan


@pytest.mark.parametrize("name", ["tiny", "interleaved", "zb_v", "mixed", "offload"])
def test_the_drawing_holds_the_peak_and_never_more(name: str) -> None:
    found = facts(plan(name)).timeline
    for track in found.memory:
        least, most = envelope(track, found.step_time_s)
        column = min(COLUMNS - 1, int(track.peak_s / found.step_time_s * COLUMNS))

        assert (least <= most).all()
        assert most.max() == most[max(0, column - 1) : column + 2].max() == track.peak.allocated
        lasting = track.at_s < found.step_time_s * (1 - 1e-9)
        assert least.min() == track.allocated_bytes[lasting].min()


def test_a_column_without_a_change_keeps_what_was_held_before() -> None:
    one = plan("tiny")
    peak = rank_memory(one.model, one.job, one.to_layout(), 0)
    track = MemoryTrack(np.array([0.0, 0.5]), np.array([3.0, 7.0]), 0.5, peak)

    least, most = envelope(track, 1.0)

    half = COLUMNS // 2
    assert least.tolist() == most.tolist() == [3.0] * half + [7.0] * half


def test_the_page_says_when_the_fullest_rank_peaks() -> None:
    one = plan("interleaved")
    tracks = facts(one).timeline.memory
    rank = max(range(len(tracks)), key=lambda place: tracks[place].peak.allocated)

    page = html_page(one)

    size = gib(tracks[rank].peak.allocated)
    assert f"Rank {rank} through the step: {size} GiB allocated at most" in page
    assert page.count("<polygon") == 2
