"""Groups of copies, gradient reduction in buckets, and the optimizer."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.collectives import Group, collective_s
from planner.cost.data_parallel import Sync, between, shares, sync, tied_table_s, update_s
from planner.cost.imbalance import slow_node_stall_s
from planner.cost.overlap import lost_share
from planner.layout.layout import Layout, Shard
from planner.layout.local import LocalParameters
from planner.layout.ranks import groups, stride
from planner.spec.job import JobSpec
from planner.spec.software import MEGATRON_CORE, NANOTRON
from tests.properties.strategies import cluster, layouts_of, quick, small, software

DGX = cluster("dgx-h100", 16)
LOCAL = LocalParameters(1e9, 2e9)
WHOLE = float("inf")
JOB = JobSpec(global_batch=64, seq_len=4096, software=MEGATRON_CORE)


def adam_s(local: LocalParameters, layout: Layout) -> float:
    return update_s(local, layout, JOB, small(), DGX)


# layout, dense group, expert group
PLACED = [
    (Layout(dp=16), Group(16, 8, 2), Group(16, 8, 2)),
    (Layout(tp=8, dp=16), Group(16, 1, 16), Group(128, 8, 16)),
    (Layout(tp=2, dp=8), Group(8, 4, 2), Group(16, 8, 2)),
    (Layout(tp=2, cp=2, dp=4), Group(8, 4, 2), Group(16, 8, 2)),
    (Layout(dp=16, ep=8), Group(16, 8, 2), Group(2, 1, 2)),
    (Layout(tp=2, dp=8, ep=4, etp=2), Group(8, 4, 2), Group(2, 1, 2)),
]


@pytest.mark.parametrize(("layout", "dense", "expert"), PLACED, ids=lambda it: str(it)[:40])
def test_groups_of_copies(layout: Layout, dense: Group, expert: Group) -> None:
    parts = shares(LOCAL, layout, DGX)

    assert (parts.dense_group, parts.expert_group) == (dense, expert)
    assert (parts.dense, parts.expert) == (LOCAL.dense, LOCAL.expert)


@quick
@given(layouts_of("small-moe", "dgx-h100", 4))
def test_groups_are_those_of_the_rank_grids(layout: Layout) -> None:
    parts = shares(LOCAL, layout, cluster("dgx-h100", 4))

    assert parts.dense_group.ranks == len(groups(layout, ("cp", "dp"))[0])
    assert parts.expert_group.ranks == len(groups(layout, "edp")[0])
    assert stride(layout, "cp") == layout.tp
    assert stride(layout, "edp") == layout.ep * layout.etp


def test_a_sharding_over_fewer_ranks_takes_the_innermost() -> None:
    layout = Layout(tp=2, dp=32)

    assert shares(LOCAL, layout, DGX, 4).dense_group == Group(4, 4, 1)
    assert shares(LOCAL, layout, DGX, 8).dense_group == Group(8, 4, 2)
    assert shares(LOCAL, layout, DGX, 999).dense_group == shares(LOCAL, layout, DGX).dense_group


def test_hybrid_sharding_reduces_the_shards_across_nodes() -> None:
    parts = between(LOCAL, Layout(dp=64, shard=Shard(8, 8, 8)), DGX, 8)

    assert parts.dense == LOCAL.dense / 8
    assert parts.dense_group == Group(8, 1, 8)


def test_fully_sharded_tensors_have_no_copies() -> None:
    parts = between(LOCAL, Layout(dp=64), DGX, 64)

    assert parts.dense_group.ranks == 1
    assert sync("all_reduce", parts, 4, 1e8, DGX) == Sync()


def test_one_rank_reduces_nothing() -> None:
    assert sync("all_reduce", shares(LOCAL, Layout(tp=8), DGX), 4, 1e8, DGX).seconds > 0  # experts
    dense = LocalParameters(1e9, 0)
    assert sync("all_reduce", shares(dense, Layout(tp=8), DGX), 4, 1e8, DGX) == Sync()


def test_gradients_travel_in_buckets() -> None:
    dense = LocalParameters(1e9, 0)
    parts = shares(dense, Layout(dp=16), DGX)

    found = sync("all_reduce", parts, 4, 1e9, DGX)

    assert found.one_s == collective_s("all_reduce", 1e9, parts.dense_group, DGX)
    assert found.seconds == pytest.approx(4 * found.one_s)
    assert found.lost == lost_share("all_reduce", 1e9, parts.dense_group, DGX)


@quick
@given(st.floats(1e6, 1e9), st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]))
def test_more_buckets_cost_latency(bucket: float, kind: str) -> None:
    parts = shares(LOCAL, Layout(dp=64), DGX)

    whole = sync(kind, parts, 4, WHOLE, DGX).seconds
    assert sync(kind, parts, 4, bucket, DGX).seconds >= whole * 0.999


@quick
@given(st.sampled_from([2, 4]), st.sampled_from([16, 64]))
def test_fewer_bytes_on_the_wire_are_faster(bytes_each: int, dp: int) -> None:
    parts = shares(LOCAL, Layout(dp=dp), DGX)

    half, whole = (
        sync("all_reduce", parts, each, WHOLE, DGX).seconds for each in (bytes_each / 2, bytes_each)
    )
    assert whole / 2 <= half < whole


# the ends of a pipeline inside one node of eight and beyond, and the group they form
@pytest.mark.parametrize(
    ("layout", "group"),
    [(Layout(pp=8), Group(2, 2, 1)), (Layout(tp=2, pp=4), Group(2, 2, 1)),
     (Layout(tp=8, pp=2), Group(2, 1, 2)), (Layout(tp=2, pp=8, dp=2), Group(2, 1, 2)),
     (Layout(pp=16), Group(2, 1, 2))],
    ids=lambda it: str(it)[:40],
)  # fmt: skip
def test_both_copies_of_a_tied_table_are_added_up(layout: Layout, group: Group) -> None:
    tied = small().model_copy(update={"tied_embeddings": True, "vocab": 128_000})
    table = 4.0 * 128_000 * tied.hidden / layout.tp  # 128,000 is 1,000 blocks of 128

    seconds = tied_table_s(tied, JOB, layout, DGX)

    assert seconds == pytest.approx(collective_s("all_reduce", table, group, DGX))


def test_one_table_has_nothing_to_add_up() -> None:
    tied = small().model_copy(update={"tied_embeddings": True})
    adapters = JOB.model_copy(update={"lora_rank": 8})

    assert tied_table_s(tied, JOB, Layout(dp=8), DGX) == 0
    assert tied_table_s(tied, adapters, Layout(pp=8), DGX) == 0
    untied = small().model_copy(update={"tied_embeddings": False})
    assert tied_table_s(untied, JOB, Layout(pp=8), DGX) == 0


def test_adam_is_bound_by_memory() -> None:
    """30 bytes of states and 8 of clipping for each parameter."""
    gpu = DGX.gpu
    rate = gpu.memory_bound_fraction * gpu.hbm_bytes_per_s

    seconds = adam_s(LocalParameters(1e9, 0), Layout())

    assert seconds == pytest.approx(1e9 * (30 + 2 * 4) / rate)


@pytest.mark.parametrize(
    ("name", "moved"), [("adamw-8bit", 18 + 1 / 16), ("sgd", 14), ("lamb", 50)]
)
def test_an_update_takes_the_bytes_it_moves(name: str, moved: float) -> None:
    job = JOB.model_copy(update={"optimizer": name})
    rate = DGX.gpu.memory_bound_fraction * DGX.gpu.hbm_bytes_per_s

    seconds = update_s(LocalParameters(1e9, 0), Layout(), job, small(), DGX)

    assert seconds == pytest.approx(1e9 * (moved + 8) / rate)


def test_muon_pays_for_its_products_and_shares_them() -> None:
    job = JOB.model_copy(update={"optimizer": "muon"})
    matrices, others = LocalParameters(1e9, 0, 1e9), LocalParameters(1e9, 0, 0)
    alone, shared = (Layout(dp=8, shard=Shard.zero(zero, 8)) for zero in (0, 1))
    # small: widths of 2048 and more, so at least 5 * 4 * 2048 FLOPs for each parameter
    least_s = 1e9 * 5 * 4 * 2048 / DGX.gpu.peak_flops["bf16"]

    assert update_s(matrices, alone, job, small(), DGX) > least_s
    assert update_s(others, alone, job, small(), DGX) == adam_s(others, alone)
    assert update_s(matrices, shared, job, small(), DGX) < (
        update_s(matrices, alone, job, small(), DGX) / 2
    )


@quick
@given(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8]))
def test_sharded_optimizers_are_faster(dp: int, ep: int) -> None:
    layout = Layout(dp=8 * dp, ep=ep)
    times = [adam_s(LOCAL, replace(layout, shard=Shard.zero(zero, 8 * dp))) for zero in range(4)]

    assert times == sorted(times, reverse=True)
    assert times[0] > times[1] or dp * 8 == 1


def test_experts_share_their_optimizer_only_over_their_copies() -> None:
    """MoE Parallel Folding: with edp = 1 each rank updates all of its experts."""
    experts = LocalParameters(0, 1e9)
    alone, sharded = Layout(dp=8, ep=8), Layout(dp=8, ep=8, shard=Shard.zero(1, 8))

    assert sharded.edp == 1
    assert adam_s(experts, sharded) == adam_s(experts, alone)


# pp, dp, nodes used: micro-batches x 2 directions x hops x one slow message
STALLS = [
    (1, 512, 0.0),
    (2, 64, 0.0),  # 16 nodes: a slow one is less likely than not
    (2, 256, 8 * 2 * 1 * 0.265),
    (4, 128, 8 * 2 * 2 * 0.265),
    (16, 4, 0.0),  # stages inside a node
]


@pytest.mark.parametrize(("pp", "dp", "seconds"), STALLS)
def test_slow_nodes_stall_pipelines_that_cross_them(pp: int, dp: int, seconds: float) -> None:
    layout = Layout(pp=pp, dp=dp)

    assert slow_node_stall_s(NANOTRON, layout, DGX, 8) == pytest.approx(seconds)
    assert slow_node_stall_s(MEGATRON_CORE, layout, DGX, 8) == 0


def test_no_slow_node_without_a_share() -> None:
    stack = software(NANOTRON, slow_node_share=0.0)

    assert slow_node_stall_s(stack, Layout(pp=4, dp=256), DGX, 8) == 0
