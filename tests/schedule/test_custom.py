"""Orders in files: what is written is read again, and every kind of mistake is named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.errors import LayoutError, SpecError
from planner.schedule.custom import actions, read_order
from planner.schedule.kinds import CROSSED, KINDS
from planner.schedule.orders import order
from planner.schedule.passes import Order, in_flight
from planner.simulate.pipeline import pipeline_time
from tests.properties.strategies import quick

ONE_WAY = [name for name, kind in KINDS.items() if kind.placement != CROSSED]


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@st.composite
def one_way_orders(draw: st.DrawFn) -> Order:
    kind, stages = draw(st.sampled_from(ONE_WAY)), draw(st.integers(1, 5))
    batches = draw(st.integers(1, 9))
    group = batches if kind == "interleaved_1f1b" else None
    chunks = KINDS[kind].chunks or (draw(st.integers(1, 3)) if stages > 1 else 1)
    return order(kind, stages, batches, chunks, group)


@quick
@given(one_way_orders(), st.booleans())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, made: Order, as_json: bool
) -> None:
    # where every backward pass is whole, a file does not tell B and W apart
    assume(not made.splits_backward or (made.weight & ~made.joined).any())
    rows, folder = actions(made), tmp_path_factory.mktemp("order")
    path = folder / ("order.json" if as_json else "order.csv")
    if as_json:
        path.write_text(json.dumps(rows))
    else:
        write_csv(path, rows)

    read = read_order(path)

    assert (read.stages, read.chunks, read.micro_batches) == (
        made.stages, made.chunks, made.micro_batches,
    )  # fmt: skip
    assert (read.stage == np.sort(made.stage, axis=0)).all()
    for name in ("backward", "weight", "micro_batch", "joined"):
        assert (getattr(read, name) == getattr(made, name)).all()
    assert (read.virtual_stage() == made.virtual_stage()).all()
    assert (in_flight(read) == in_flight(made)).all()


@pytest.mark.parametrize("kind", ONE_WAY)
def test_a_file_takes_as_long_as_the_schedule_it_holds(kind: str, tmp_path: Path) -> None:
    chunks = KINDS[kind].chunks or 2
    rng, count = np.random.default_rng(1), 4 * chunks
    forward, backward, weight = rng.random((3, count))
    given_ = (4, chunks, 8, forward, backward, rng.random(count - 1), True, None)
    weight_s = weight if KINDS[kind].splits else None
    read = read_order(write_csv(tmp_path / "order.csv", actions(order(kind, 4, 8, chunks))))

    named, custom = (pipeline_time(one, *given_, weight_s) for one in (kind, read))

    assert custom.total_s == pytest.approx(named.total_s)
    assert custom.per_rank_busy_s == pytest.approx(named.per_rank_busy_s)
    assert custom.last_backward_end_s == pytest.approx(named.last_backward_end_s)


def test_a_backward_pass_may_be_whole_or_split(tmp_path: Path) -> None:
    rows = [["0F0", "0F1", "0B0", "0B1"], ["1F0", "", "(1F1;1B0)OVERLAP_F_B", "1I1", "1W1"]]
    read = read_order(write_csv(tmp_path / "order.csv", rows))

    assert read.splits_backward
    assert read.joined[0].tolist() == [False, False, False, True, False, True]
    assert read.joined[1].tolist() == [False, False, True, True, False, False]
    assert actions(read) == [rows[0], [cell for cell in rows[1] if cell]]


def test_the_pipeline_must_be_that_of_the_order(tmp_path: Path) -> None:
    read = read_order(write_csv(tmp_path / "order.csv", actions(order("1f1b", 2, 4))))
    ones = [1.0, 1.0]

    with pytest.raises(LayoutError, match="2 ranks of 1 chunks and 4 micro-batches"):
        pipeline_time(read, 2, 1, 8, ones, ones, [0.0], True)


GOOD = [["0F0", "0B0"], ["1F0", "1B0"]]
MISTAKES = [
    ([], "holds no passes"),
    ([["0F0", "0X0"], ["1F0", "1B0"]], "cell 2: '0X0' is no pass; write stage, F, I, W or B"),
    ([["0F0", "0SEND_F0", "0B0"], GOOD[1]], "'0SEND_F0' moves data"),
    ([["(0F0;0F1)OVERLAP_F_B"], GOOD[1]], "does not hold one F and then one B or I"),
    ([["0F0"], GOOD[1]], "stage 0, micro-batch 0 is not whole; write 0B0, or 0I0 and 0W0"),
    ([["0F0", "0I0"], GOOD[1]], "rank 0: the backward pass of stage 0, micro-batch 0 is not whole"),
    ([["0F0", "0B0", "0W0"], GOOD[1]], "is not whole; write 0B0, or 0I0 and 0W0"),
    ([["0B0"], GOOD[1]], "rank 0: 0F0 is missing"),
    ([["0F0", "0F0", "0B0"], GOOD[1]], "rank 0: 0F0 stands twice; remove one"),
    ([["0B0", "0F0"], GOOD[1]], "stage 0, micro-batch 0: backward before forward"),
    ([["0F0", "0W0", "0I0"], GOOD[1]], "0W0 stands before 0I0"),
    ([[*GOOD[0], "1F0", "1B0"], GOOD[1]], "stage 1 stands in the rows of ranks 0, 1"),
    ([GOOD[0], ["2F0", "2B0"]], "stage 1 has no pass; number stages from 0 up"),
    ([[*GOOD[0], "2F0", "2B0"], GOOD[1]], "ranks hold 2, 1 stages"),
    ([["0F0", "0B0", "0F999999999"], GOOD[1]], "number both from 0 up, without gaps"),
    (
        [["0F0", "0B0", "0F1", "0B1"], ["1F0", "1F1", "1B1", "1B0"]],
        "rank 0 waits for ever at 0B0 for 1B0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "text"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_a_mistake_is_named(rows: list[list[str]], text: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "order.csv", rows)

    with pytest.raises(SpecError) as error:
        read_order(path)

    assert text in str(error.value)
    assert all(problem.startswith(str(path)) for problem in error.value.problems)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "order.csv", [["0F0", "zero", "0B0"], ["", ""], ["1F", "1B0"]])

    with pytest.raises(SpecError) as error:
        read_order(path)

    assert [problem.split(" is no pass")[0] for problem in error.value.problems] == [
        f"{path}:1: cell 2: 'zero'",
        f"{path}:3: cell 1: '1F'",
    ]


def test_many_mistakes_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        read_order(write_csv(tmp_path / "order.csv", [["bad"] * 50]))

    assert len(error.value.problems) == 21
    assert error.value.problems[-1].endswith("and 30 more")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ":1: not JSON"),
        ('{"ranks": []}', "not a list of ranks"),
        ("[[1, 2]]", "not a list of ranks"),
    ],
)
def test_json_of_another_form_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    path.write_text(text)

    with pytest.raises(SpecError, match=said):
        read_order(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.csv: cannot be read: No such file"):
        read_order(tmp_path / "none.csv")
