"""Every schedule against the longest path that networkx finds in a graph written down here."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.orders import SCHEDULES, order
from planner.schedule.passes import FloatArray, Order
from planner.schedule.zero_bubble import SPLIT
from planner.simulate.pipeline import pass_times, pipeline_time

Pass = tuple[str, int, int]  # F, B or W; virtual stage; micro-batch


def rank_passes(made: Order) -> list[list[Pass]]:
    """Return the passes of each rank in order, with their virtual stage counted here again."""

    def stage(rank: int, chunk: int) -> int:
        back = made.kind == "zb_v" and chunk == 1
        return chunk * made.stages + (made.stages - 1 - rank if back else rank)

    return [
        [
            ("W" if w else "B" if b else "F", stage(rank, chunk), micro_batch)
            for b, w, micro_batch, chunk in zip(
                made.backward[rank],
                made.weight[rank],
                made.micro_batch[rank].tolist(),
                made.chunk[rank].tolist(),
                strict=True,
            )
        ]
        for rank in range(made.stages)
    ]


def longest_path_s(made: Order, seconds: dict[str, FloatArray], send_s: FloatArray) -> float:
    """Return the length of the longest path: an edge weighs its head and the transfer on it."""
    graph, last = nx.DiGraph(), made.stages * made.chunks - 1

    def edge(tail: Pass | str, head: Pass, lag: float = 0.0) -> None:
        graph.add_edge(tail, head, weight=lag + float(seconds[head[0]][head[1]]))

    for passes in rank_passes(made):
        for tail, head in zip(["start", *passes], passes, strict=False):
            edge(tail, head)
        for kind, stage, batch in passes:
            if kind == "F" and stage > 0:
                edge(("F", stage - 1, batch), (kind, stage, batch), float(send_s[stage - 1]))
            if kind == "B" and stage < last:
                edge(("B", stage + 1, batch), (kind, stage, batch), float(send_s[stage]))
            if kind != "F":
                edge(("F" if kind == "B" else "B", stage, batch), (kind, stage, batch))
    return float(nx.dag_longest_path_length(graph))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(SCHEDULES), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32))
def test_the_step_is_the_longest_path(
    kind: str, stages: int, micro_batches: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    chunks = {"zb_v": 2, "interleaved_1f1b": int(rng.integers(1, 4))}.get(kind, 1)
    group = None
    if kind == "interleaved_1f1b":
        group = micro_batches
        chunks = chunks if stages > 1 else 1
    delay = int(rng.integers(0, 12)) if kind == "zb_2p" else None
    seconds = {name: rng.random(stages * chunks) for name in "FBW"}
    send_s = rng.random(stages * chunks - 1) * rng.integers(0, 2)
    weight_s = seconds["W"] if kind in SPLIT else None
    made = order(kind, stages, micro_batches, chunks, group, delay)
    given_ = (kind, stages, chunks, micro_batches, seconds["F"], seconds["B"], send_s, True, group)

    expected = longest_path_s(made, seconds, send_s)
    times = pipeline_time(*given_, weight_s, delay)
    _, start_s, end_s = pass_times(*given_, weight_s, delay)

    assert times.total_s == pytest.approx(expected)
    assert end_s.max() == pytest.approx(expected)
    assert (start_s[:, 1:] >= end_s[:, :-1] - 1e-9).all()
    work = sum(seconds[name].sum() for name in ("FBW" if weight_s is not None else "FB"))
    assert times.per_rank_busy_s.sum() == pytest.approx(micro_batches * work)
    assert times.last_backward_end_s == pytest.approx(end_s[:, -1])


@pytest.mark.parametrize(
    ("kind", "weight_s", "text"),
    [
        ("zb_h1", None, "zb_h1 splits the backward pass: weight_s is missing"),
        ("1f1b", [1.0, 1.0], "1f1b does not split the backward pass"),
    ],
)
def test_weight_seconds_belong_to_a_split_backward(
    kind: str, weight_s: list[float] | None, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        pipeline_time(kind, 2, 1, 4, [1, 1], [1, 1], [0], True, weight_s=weight_s)
