"""What is legal, and what a message offers instead."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Shard
from planner.layout.rules import divisors, layout_problems
from planner.spec.model import ModelSpec
from tests.properties.strategies import cluster, job, quick, small, small_moe


def problems(layout: Layout, spec: ModelSpec | None = None, **changes: Any) -> list[str]:
    return layout_problems(spec or small(), cluster("dgx-h100", 8), job(**changes), layout)


@pytest.mark.parametrize("number", [1, 2, 12, 36, 97, 360])
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


LEGAL = [
    Layout(),
    Layout(tp=8, dp=8, sequence_parallel=True),
    Layout(tp=2, pp=4, vpp=2, dp=4),
    Layout(tp=16, dp=4),  # twice the key/value heads: each is held twice
    Layout(cp=2, dp=32),
    Layout(dp=4, offload_optimizer=0.5, delayed_update=True),
    Layout(pp=5, dp=4),  # 16 layers on 5 stages: unequal, but legal
    Layout(pp=4, vpp=3),  # unequal chunks
    Layout(pp=2, vpp=9),  # embedding and head in chunks of their own
]


@pytest.mark.parametrize("layout", LEGAL, ids=Layout.label)
def test_legal_layouts(layout: Layout) -> None:
    assert problems(layout) == []


# layout, the beginning of what is wrong with it
ILLEGAL = [
    (Layout(tp=8, dp=16), "the layout needs 128 GPUs, the cluster has 64"),
    (Layout(dp=3), "dp*micro_batch=3 does not divide global_batch=32; try dp*micro_batch 2 or 4"),
    (
        Layout(dp=8, micro_batch=3),
        "dp*micro_batch=24 does not divide global_batch=32; try dp*micro_batch 16 or 32",
    ),
    (Layout(tp=3), "tp=3 does not divide heads=16; try tp 2 or 4"),
    (Layout(tp=5), "tp=5 does not divide ffn_hidden=8192; try tp 4 or 8"),
    (Layout(tp=3), "tp=3 neither divides kv_heads=8 nor is a multiple of it"),
    (Layout(cp=3), "2*cp=6 does not divide seq_len=4096; try 2*cp 4 or 8"),
    (Layout(pp=17), "pp*vpp=17 stages are more than layers=16"),
    (Layout(vpp=2), "vpp=2 needs pp > 1"),
    (Layout(pp=4, vpp=5), "pp*vpp=20 stages are more than layers=16"),
    (Layout(pp=8, vpp=2, dp=8), "vpp > 1 needs the 4 micro-batches to be a multiple of pp=8"),
    (Layout(ep=2, dp=2), "ep=2 needs a model with experts"),
    (Layout(offload_optimizer=1.5), "offload_optimizer=1.5 is no share; use 0 to 1"),
    (Layout(offload_weights=True), "offload_weights needs the whole optimizer on the host"),
    (
        Layout(dp=4, offload_optimizer=1, offload_weights=True),
        "offload_weights with shard weights=1 over 4 ranks: each would fetch all of them",
    ),
    (
        Layout(pp=2, offload_optimizer=1, offload_weights=True),
        "offload_weights excludes a pipeline",
    ),
    (Layout(delayed_update=True), "delayed_update needs an optimizer on the host"),
]


@pytest.mark.parametrize(("layout", "start"), ILLEGAL, ids=lambda case: str(case)[:24])
def test_illegal_layouts(layout: Layout, start: str) -> None:
    assert [message for message in problems(layout) if message.startswith(start)]


EXPERTS = [
    (Layout(ep=3, dp=3), "ep=3 does not divide experts=16; try ep 2 or 4"),
    (Layout(etp=3, dp=6), "etp=3 does not divide moe ffn_hidden=1024; try etp 2 or 4"),
    (Layout(ep=16, dp=8), "ep*etp=16 does not divide the 8 ranks of a stage"),
    (
        Layout(tp=2, ep=2, dp=2),
        "experts with tp > 1 need sequence_parallel (Megatron-LM, arguments.py)",
    ),
    (
        Layout(tp=2, dp=2),
        "experts with tp > 1 need sequence_parallel (Megatron-LM, arguments.py)",
    ),
]


@pytest.mark.parametrize(("layout", "message"), EXPERTS, ids=lambda case: str(case)[:24])
def test_illegal_expert_layouts(layout: Layout, message: str) -> None:
    assert message in problems(layout, small_moe())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(dp=4, ep=2), "ep=2 needs a model with experts"),
        (Layout(dp=4, etp=2), "etp=2 needs a model with experts"),
        (
            Layout(dp=8, shard=Shard(3, 3, 3)),
            "shard weights=3 does not divide the 8 ranks that hold the same layers; try 2 or 4",
        ),
        (
            Layout(dp=8, shard=Shard(8, 8, 8, 8)),
            "shard secondary=8 is none of the group sizes below weights=8 that divide 8; try 4",
        ),
        (
            Layout(dp=8, shard=Shard(8, 4, 2)),
            "shard must rise from weights over gradients to optimizer (ZeRO 1, 2, 3)",
        ),
    ],
)
def test_illegal_grids_and_shards(layout: Layout, message: str) -> None:
    assert any(problem.startswith(message) for problem in problems(layout, small()))


def test_sequence_shards_must_be_equal() -> None:
    layout = Layout(tp=4, cp=1, sequence_parallel=True)

    assert problems(layout, seq_len=4098)[0].startswith("tp=4 does not divide tokens per rank=4098")


def test_everything_wrong_is_said_at_once_and_once() -> None:
    found = problems(Layout(tp=3, cp=3, pp=17, ep=2, dp=5))

    assert len(found) >= 6
    assert len(set(found)) == len(found)


@quick
@given(st.integers(1, 70), st.integers(1, 40))
def test_every_number_offered_is_legal(tp: int, dp: int) -> None:
    for message in problems(Layout(tp=tp, dp=dp)):
        found = re.match(r"(.+)=(\d+) does not divide (.+)=(\d+); try \S+ (.*)", message)
        assert found or "does not divide" not in message or "; try" not in message
        if found:
            near = [int(value) for value in found[5].split(" or ")]
            assert all(int(found[4]) % value == 0 for value in near)
            assert near == sorted(set(near))
