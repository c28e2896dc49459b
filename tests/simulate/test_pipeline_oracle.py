"""Every schedule against the longest path that networkx finds in a graph written down here."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.kinds import SCHEDULES, SPLIT
from planner.schedule.orders import order
from planner.schedule.passes import FloatArray, Order
from planner.simulate.pipeline import pipeline_time, pipeline_trace

Pass = tuple[str, int, int]  # F, B or W; virtual stage; micro-batch
Task = tuple[Pass, ...]
TWO_CHUNKS = ("zb_v", "v_half", "v_min", "dualpipe", "dualpipe_v")


def rank_tasks(made: Order) -> list[list[Task]]:
    """Return the tasks of each rank in order, with their virtual stage counted here again."""

    def stage(rank: int, chunk: int) -> int:
        back = made.kind in TWO_CHUNKS and chunk == 1
        return chunk * made.stages + (made.stages - 1 - rank if back else rank)

    ranks = []
    for rank in range(made.stages):
        tasks: list[list[Pass]] = []
        columns = (made.backward, made.weight, made.joined, made.micro_batch, made.chunk)
        for b, w, joined, micro_batch, chunk in zip(
            *(column[rank].tolist() for column in columns), strict=True
        ):
            if not joined:
                tasks.append([])
            tasks[-1].append(("W" if w else "B" if b else "F", stage(rank, chunk), micro_batch))
        ranks.append([tuple(task) for task in tasks])
    return ranks


def longest_path_s(made: Order, seconds: dict[str, FloatArray], send_s: FloatArray) -> float:
    """Return the length of the longest path: an edge weighs its head and the transfer on it."""
    graph, count = nx.DiGraph(), made.stages * made.chunks
    ranks = rank_tasks(made)
    task_of = {one: task for tasks in ranks for task in tasks for one in task}
    pipeline = count // 2 if made.kind == "dualpipe" else count  # stages of one direction

    def edge(tail: Task | str, head: Task, lag: float = 0.0) -> None:
        own = sum(float(seconds[kind][stage]) for kind, stage, _ in head)
        before = graph.get_edge_data(tail, head, {"weight": 0.0})["weight"]
        graph.add_edge(tail, head, weight=max(before, lag + own))

    for tasks in ranks:
        for tail, head in zip(["start", *tasks], tasks, strict=False):
            edge(tail, head)
    for one, task in task_of.items():
        kind, stage, batch = one
        if kind == "F" and stage % pipeline > 0:
            edge(task_of["F", stage - 1, batch], task, float(send_s[stage - 1]))
        if kind == "B" and (stage + 1) % pipeline > 0:
            edge(task_of["B", stage + 1, batch], task, float(send_s[stage]))
        earlier = {"B": "F", "W": "B"}.get(kind)
        if earlier and task_of[earlier, stage, batch] != task:
            edge(task_of[earlier, stage, batch], task)
    return float(nx.dag_longest_path_length(graph))


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(SCHEDULES), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32))
def test_the_step_is_the_longest_path(
    kind: str, stages: int, micro_batches: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if kind == "dualpipe":
        stages, micro_batches = 2 * (stages // 2 + 1), 2 * micro_batches
    chunks, group = 2 if kind in TWO_CHUNKS else 1, None
    if kind == "interleaved_1f1b":
        group = micro_batches
        chunks = int(rng.integers(1, 4)) if stages > 1 else 1
    delay = int(rng.integers(0, 12)) if kind == "zb_2p" else None
    seconds = {name: rng.random(stages * chunks) for name in "FBW"}
    send_s = rng.random(stages * chunks - 1) * rng.integers(0, 2)
    weight_s = seconds["W"] if kind in SPLIT else None
    made = order(kind, stages, micro_batches, chunks, group, delay)
    given_ = (kind, stages, chunks, micro_batches, seconds["F"], seconds["B"], send_s, True, group)

    expected = longest_path_s(made, seconds, send_s)
    times = pipeline_time(*given_, weight_s, delay)
    trace = pipeline_trace(*given_, weight_s, delay)
    start_s, end_s = trace.start_s, trace.end_s

    assert times.total_s == pytest.approx(expected)
    assert end_s.max() == pytest.approx(expected)
    assert (start_s[:, 1:] >= end_s[:, :-1] - 1e-9).all()
    work = sum(seconds[name].sum() for name in ("FBW" if weight_s is not None else "FB"))
    assert times.per_rank_busy_s.sum() == pytest.approx(made.micro_batches * work)
    assert times.first_forward_start_s == pytest.approx(start_s[:, 0])
    first = made.backward.argmax(axis=1)
    assert times.first_backward_s == pytest.approx(start_s[np.arange(stages), first])
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
