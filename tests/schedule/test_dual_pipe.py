"""DualPipe and DualPipeV: the published bubble and memory, and torch's own order."""

import numpy as np
import pytest
from torch.distributed.pipelining.schedules import ScheduleDualPipeV, ScheduleZBVZeroBubble

from planner.errors import LayoutError
from planner.schedule.in_flight import peak_chunk_passes
from planner.schedule.orders import order
from planner.schedule.passes import Order, in_flight
from planner.simulate.pipeline import pipeline_time

BOTH = [("dualpipe", 2), ("dualpipe", 4), ("dualpipe", 8), ("dualpipe", 12),
        ("dualpipe_v", 1), ("dualpipe_v", 2), ("dualpipe_v", 3), ("dualpipe_v", 8)]  # fmt: skip


def model_stages(kind: str, ranks: int) -> int:
    """Return the stages of the model: two for each rank of the V, one where pipelines cross."""
    return ranks if kind == "dualpipe" else 2 * ranks


def idle_s(kind: str, ranks: int, seconds: tuple[float, float, float]) -> float:
    count = 2 * ranks
    forward, inputs, weight = (np.full(count, each) for each in seconds)
    hops, batches = np.zeros(count - 1), 6 * ranks
    times = pipeline_time(kind, ranks, 2, batches, forward, inputs, hops, True, weight_s=weight)
    return float((times.total_s - times.per_rank_busy_s).max())


# README of deepseek-ai/DualPipe: (P / 2 - 1) (F&B + B - 3 W), here with F&B = F + B
@pytest.mark.parametrize(("kind", "ranks"), BOTH)
@pytest.mark.parametrize("weight", [0.5, 0.8, 1.0])
def test_bubble_is_the_published_one(kind: str, ranks: int, weight: float) -> None:
    forward, whole = 1.0, 1.0 + weight
    factor = model_stages(kind, ranks) // 2 - 1
    bubble = factor * ((forward + whole) + whole - 3 * weight)

    assert idle_s(kind, ranks, (forward, 1.0, weight)) == pytest.approx(bubble, abs=1e-9)


@pytest.mark.parametrize("seconds", [(1.2, 1.3, 0.7), (1.3, 1.0, 0.7), (1.0, 1.1, 0.9)])
def test_bubble_where_forward_and_input_gradient_differ(
    seconds: tuple[float, float, float],
) -> None:
    forward, inputs, weight = seconds

    assert idle_s("dualpipe", 8, seconds) == pytest.approx(3 * (2 * forward + inputs - weight))


@pytest.mark.parametrize(("kind", "ranks"), BOTH)
@pytest.mark.parametrize("times", [2, 4])
def test_every_rank_keeps_one_pass_more_than_stages(kind: str, ranks: int, times: int) -> None:
    batches = times * ranks + (2 if kind == "dualpipe" else 1)
    kept = in_flight(order(kind, ranks, batches, 2))

    assert kept.tolist() == [model_stages(kind, ranks) + 1] * ranks
    assert peak_chunk_passes(ranks, 2, batches, 0, schedule=kind) == kept[0]


def actions(made: Order, rank: int) -> list[str]:
    """Return a rank's tasks as torch writes them: I and W, or B for both, pairs in brackets."""
    stages, written = made.virtual_stage()[rank].tolist(), []
    for place, stage in enumerate(stages):
        what = "W" if made.weight[rank, place] else "I" if made.backward[rank, place] else "F"
        action = f"{stage}{what}{made.micro_batch[rank, place]}"
        if not made.joined[rank, place]:
            written.append(action)
        elif what == "W":
            written[-1] = "B".join(written[-1].rsplit("I", 1))
        else:
            written[-1] += f";{action}"
    return [f"({task})OVERLAP_F_B" if ";" in task else task for task in written]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("more", [0, 1, 5, 16])
def test_dual_pipe_v_is_the_order_of_torch(ranks: int, more: int) -> None:
    theirs = object.__new__(ScheduleDualPipeV)
    theirs.pp_group_size, theirs._n_microbatches = ranks, 2 * ranks + more
    made = order("dualpipe_v", ranks, 2 * ranks + more, 2)

    for rank in range(ranks):
        expected = theirs._calculate_single_rank_operations(rank)
        assert actions(made, rank) == [str(action) for action in expected]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("more", [0, 1, 5, 16])
def test_zb_v_is_the_order_of_torch(ranks: int, more: int) -> None:
    batches = 2 * ranks - 1 + more
    theirs = object.__new__(ScheduleZBVZeroBubble)
    theirs.pp_group_size, theirs.num_stages = ranks, 2 * ranks
    theirs._n_microbatches, theirs._stages = batches, []
    made = order("zb_v", ranks, batches, 2)

    for rank in range(ranks):
        expected = [str(one) for one in theirs._calculate_single_rank_operations(rank) if one]
        ours = [task.replace("B", "I") for task in actions(made, rank)]
        assert ours == [task.replace("B", "I") for task in expected]


def test_directions_mirror_each_other() -> None:
    made = order("dualpipe", 6, 16, 2)

    assert (made.chunk[:3] == 1 - made.chunk[:2:-1]).all()
    assert (made.micro_batch == made.micro_batch[::-1]).all()
    assert made.stage.tolist() == [[0, 1, 2, 3, 4, 5], [11, 10, 9, 8, 7, 6]]
    sender, receiver, boundary = made.transfers()
    assert 5 not in boundary  # the last stage of one direction is not the first of the other
    assert len(sender) == len(receiver) == 2 * 10 * 8


@pytest.mark.parametrize(("stages", "batches"), [(3, 8), (4, 7)])
def test_odd_numbers_have_no_two_directions(stages: int, batches: int) -> None:
    with pytest.raises(LayoutError, match="needs an even number of stages and of micro-batches"):
        order("dualpipe", stages, batches, 2)
