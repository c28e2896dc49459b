"""DualPipe: micro-batches enter at both ends, and a forward pass runs beside a backward pass.

DeepSeek-V3 (arXiv 2412.19437, 3.2.1) and the table of github.com/deepseek-ai/DualPipe. Each of
``p`` ranks holds two stages, one for each direction: stage ``i`` and stage ``p - 1 - i``.
``dualpipe_v`` cuts that in half: ``p`` ranks hold the ``2 p`` stages of a V, and one direction is
left. With ``P`` stages (``p`` or ``2 p``) both keep ``P + 1`` passes and have a bubble of
``(P / 2 - 1) (F&B + B - 3 W)``, B being a whole backward pass and F&B both passes side by side: so
the README, where F is as long as the input gradient. Where it is not, this order leaves
``(P / 2 - 1) (F&B + F - 2 W)`` as long as W is the shortest of the three.
"""

from collections import deque

from planner.schedule.kinds import CROSSED, kind_of, stage_of
from planner.schedule.listed import BACKWARD, FORWARD, WEIGHT, code, counted
from planner.schedule.passes import Order

NEAR, FAR = 0, 1  # the direction whose first stages are on this half of the ranks, and the other
Step = tuple[str, int]  # F, B (whole), I (input gradient), W (oldest held back) or F&B; direction


def dual_pipe(kind: str, stages: int, micro_batches: int) -> Order:
    """Return ``dualpipe`` or ``dualpipe_v``, made for as many micro-batches as fill it.

    Of fewer than twice the ranks, some are left out.
    """
    crossed = kind_of(kind).placement == CROSSED
    halves = stages // 2 if crossed else stages
    count = micro_batches // kind_of(kind).pipelines
    planned, codes, joined = max(count, 2 * halves), [], []
    for rank in range(stages):
        turned = crossed and rank >= halves
        steps = _steps(stages - 1 - rank if turned else rank, halves, planned)
        tasks = _tasks(steps, (FAR, NEAR) if turned else (NEAR, FAR))
        codes.append([one for task in tasks for one in task])
        joined.append([number > 0 for task in tasks for number in range(len(task))])
    return counted(kind, stage_of(kind, stages, 2), count, codes, joined)


def _steps(rank: int, halves: int, count: int) -> list[Step]:
    """Return what a rank runs, counted from the outside: ``count`` micro-batches each way."""
    inner, outer = rank + 1, halves - rank - 1
    both: list[Step] = [("F&B", NEAR), ("F&B", FAR)]
    main = both * (count - 2 * halves + inner)
    if outer == 0:  # the two innermost ranks begin with the passes one after the other
        main[:1] = [("F", NEAR), ("B", FAR)]
    # the second half of the last backward passes holds its weight gradients back
    last: list[Step] = [("B", FAR if number % 2 == 0 else NEAR) for number in range(2 * inner)]
    last[inner:] = [("I", direction) for _, direction in last[inner:]]
    return [
        *[("F", NEAR)] * (2 * outer),
        *[("F", NEAR), ("F", FAR)] * inner,
        *[("I", FAR), ("W", FAR), ("F", FAR)] * outer,
        *main,
        *[("B", FAR), ("F&B", FAR)] * outer,
        *last,
        *[("W", FAR), ("I", NEAR)] * outer,
        *[("W", FAR)] * inner,
    ]


def _tasks(steps: list[Step], chunk_of: tuple[int, int]) -> list[list[int]]:
    """Return the codes of each task; ``chunk_of`` says which chunk is near and which is far."""
    found: list[list[int]] = []
    held: deque[int] = deque()
    for what, direction in steps:
        chunk, other = chunk_of[direction], chunk_of[1 - direction]
        if what == "F":
            found.append([code(FORWARD, chunk)])
        elif what == "W":
            found.append([code(WEIGHT, held.popleft())])
        elif what == "I":
            held.append(chunk)
            found.append([code(BACKWARD, chunk)])
        elif what == "B":
            found.append([code(BACKWARD, chunk), code(WEIGHT, chunk)])
        else:
            found.append([code(FORWARD, chunk), code(BACKWARD, other), code(WEIGHT, other)])
    return found
