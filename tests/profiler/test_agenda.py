"""What is measured: every pair once, the model's own shapes, and nothing twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.model.operations import Shape
from planner.profiler.agenda import Wish, kernel_tasks, ladder, rounds, tasks_of, total_s
from planner.profiler.options import agenda
from planner.profiler.tasks import (
    AttentionTask,
    CurveTask,
    Effort,
    KernelTask,
    LaunchTask,
    Machine,
    PairsTask,
    ProductTask,
    Task,
)
from planner.spec.huggingface import load_model
from planner.units import format_size

LLAMA = load_model("llama-3-8b")  # hidden 4096, 32 heads, 8 kv heads of 128, ffn 14336
ONE = Machine(1, 1, 1, True)


def products(tasks: list[Task]) -> list[ProductTask]:
    return [task for task in tasks if isinstance(task, ProductTask)]


def forward(tasks: list[Task]) -> set[tuple[int, int, int]]:
    return {(one.m, one.n, one.k) for one in products(tasks) if one.pass_ == "forward"}


@given(st.integers(0, 24))
def test_rounds_hold_every_pair_once_and_no_player_twice(count: int) -> None:
    found = rounds(count)

    assert Counter(pair for pairs in found for pair in pairs) == Counter(
        (a, b) for b in range(count) for a in range(b)
    )
    assert all(len({p for pair in pairs for p in pair}) == 2 * len(pairs) for pairs in found)
    assert len(found) <= max(0, count - 1 + count % 2)


@pytest.mark.parametrize(
    ("tp", "expected"),
    [
        (1, {(2048, 6144, 4096), (2048, 4096, 4096), (2048, 28672, 4096), (2048, 4096, 14336)}),
        (4, {(2048, 1536, 4096), (2048, 4096, 1024), (2048, 7168, 4096), (2048, 4096, 3584)}),
    ],
)
def test_a_dense_layer_has_four_products_and_the_head(
    tp: int, expected: set[tuple[int, int, int]]
) -> None:
    machine = Machine(4, 4, 4, True)
    wish = Wish(LLAMA, 2048, (1,), tp=(tp,), cp=(1,))
    head = {(2048, 128256 // tp, 4096)}

    assert forward(kernel_tasks(machine, LLAMA, wish)) == expected | head


def test_backward_products_swap_the_dimensions() -> None:
    found = products(kernel_tasks(ONE, LLAMA, Wish(LLAMA, 2048, (1,))))

    # y (2048, 6144) = x (2048, 4096) w: dx = dy w^T over 6144, dw = x^T dy over 2048
    assert ProductTask(2048, 4096, 6144, "dgrad") in found
    assert ProductTask(4096, 6144, 2048, "wgrad") in found
    work = {
        pass_: sorted({one.flops for one in found if one.pass_ == pass_})
        for pass_ in ("forward", "dgrad", "wgrad")
    }
    assert work["forward"] == work["dgrad"] == work["wgrad"]


def test_experts_are_one_grouped_call_balanced_and_skewed() -> None:
    mixtral = load_model("mixtral-8x7b")  # 8 experts, 2 of them for each token, ffn 14336
    wish = Wish(mixtral, 4096, (1,), tp=(2,), cp=(1,), ep=(2,))
    found = products(kernel_tasks(Machine(2, 2, 2, True), mixtral, wish))

    # 4096 / 2 tokens of a rank are routed twice, evenly over 4 experts of each of 2 ranks
    up = ProductTask(1024, 28672, 4096, "forward", copies=4)
    assert up in found
    assert ProductTask(up.m, up.n, up.k, "forward", copies=4, skewed=True) in found


def test_degrees_are_those_that_the_search_may_choose() -> None:
    wish = Wish(LLAMA, 4096, (1,))
    found = [t for t in kernel_tasks(Machine(8, 8, 4, True), LLAMA, wish)
             if isinstance(t, AttentionTask)]  # fmt: skip

    # tp up to the domain of 4, cp up to what is left of 8 ranks
    assert {task.heads for task in found} == {32, 16, 8}
    assert {task.seq_q for task in found if task.heads == 8} == {4096, 2048}
    assert {task.seq_q for task in found if task.heads == 32} == {4096, 2048, 1024, 512}
    assert {task.seq_kv for task in found} == {4096}


def test_memory_bound_kernels_have_two_sizes_each() -> None:
    found = [t for t in kernel_tasks(ONE, LLAMA, Wish(LLAMA, 1024, (1, 4)))
             if isinstance(t, KernelTask)]  # fmt: skip

    assert {task.tokens for task in found} == {1024, 4096}
    for name in ("norm", "residual", "rotary", "swiglu", "embedding", "loss"):
        sizes = {(t.backward, t.tokens) for t in found if t.operation == name}
        assert sizes == {(way, count) for way in (False, True) for count in (1024, 4096)}


# ranks, model, and the degrees whose layers are issued: what heads, length and ranks divide by
LAUNCHED = [
    (1, "llama-3-8b", {1}),
    (4, "llama-3-8b", {1, 2, 4}),
    (6, "llama-3-8b", {1, 2}),
    (8, "tiny-llama", {1, 2, 4}),  # 4 heads of keys
    (4, "mixtral-8x7b", {1}),  # experts are no plain layer
]


@pytest.mark.parametrize(("ranks", "name", "degrees"), LAUNCHED)
def test_a_layer_is_issued_whole_and_split(ranks: int, name: str, degrees: set[int]) -> None:
    machine = Machine(ranks, ranks, ranks, False)
    wish = Wish(load_model(name), 1024, (1, 2, 4))
    found = [t for t in kernel_tasks(machine, load_model(name), wish) if isinstance(t, LaunchTask)]

    assert {task.tp for task in found} == degrees
    assert {(task.batch, task.seq_len) for task in found} == {(1, 1024), (4, 1024)}
    whole = max(task.kernels for task in found if task.tp == 1)
    assert all(task.kernels > whole for task in found if task.tp > 1)  # collectives are issued


@given(
    nodes=st.integers(1, 4), per_node=st.sampled_from([1, 2, 4, 8]), gpu=st.booleans(),
    name=st.sampled_from(["tiny-llama", "llama-3-8b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2"]),
)  # fmt: skip
def test_every_task_has_a_name_of_its_own_and_a_time(
    nodes: int, per_node: int, gpu: bool, name: str
) -> None:
    machine = Machine(nodes * per_node, per_node, per_node, gpu)
    tasks = tasks_of(machine, Wish(load_model(name), 256, (1,), largest_bytes=2**20))

    assert len({task.name for task in tasks}) == len(tasks)
    assert all(task.seconds(machine, Effort()) > 0 and task.needed_bytes > 0 for task in tasks)
    assert total_s(tasks, machine, Effort()) == sum(t.seconds(machine, Effort()) for t in tasks)
    curves = sum(isinstance(task, CurveTask) for task in tasks)
    assert (curves > 0) == (machine.world_size > 1)
    across = [task for task in tasks if isinstance(task, PairsTask) and task.level == "cluster"]
    assert sum(len(task.pairs) for task in across) == nodes * (nodes - 1) // 2


def test_a_dry_run_needs_no_process() -> None:
    lines, seconds = agenda(["--output", "-", "--model", "tiny-llama", "--seq-len", "64"], 2)

    assert any("all_reduce, 2 ranks" in line for line in lines)
    assert 0 < seconds < 600


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (4096,)), (4096, (4096,)), (16384, (4096, 16384)), (70_000, (4096, 16384, 65536))],
)
def test_ladder_of_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert ladder(largest) == sizes


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5 B"), (4096, "4 KiB"), (2**21, "2 MiB"), (1.5 * 2**30, "1.5 GiB")]
)
def test_sizes_in_words(size: float, text: str) -> None:
    assert format_size(size) == text


def test_shapes_stay_within_the_ranks() -> None:
    from planner.profiler.agenda import shapes

    for shape in shapes(Machine(4, 4, 4, True), LLAMA, Wish(LLAMA, 4096, (1, 2))):
        assert isinstance(shape, Shape)
        assert shape.tp * shape.cp <= 4
