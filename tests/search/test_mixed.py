"""Nodes of several kinds: stages as uneven as the nodes are fast, each in its own memory."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.stages import Split
from planner.memory.estimate import rank_memory
from planner.plan import Plan
from planner.search.answer import NoFit, recommend
from planner.search.mixed import best_split, bound_s, capacities, polished
from planner.search.recommend import Options
from planner.search.targets import TARGETS
from planner.simulate.step import estimate_step
from planner.simulate.waterfall import waterfall
from planner.spec.cluster import ClusterSpec, NodeGroup, load_gpu
from planner.spec.parts import of_groups
from tests.properties.strategies import cluster, job, model, quick, small, small_moe

TARGET = TARGETS["megatron"]
A100, V100 = "A100-SXM-80GB", "V100-SXM-32GB"


def group(gpu: str, nodes: int, **changes: Any) -> NodeGroup:
    return NodeGroup(gpu=load_gpu(gpu), nodes=nodes, **changes)


def mixed(*groups: NodeGroup) -> ClusterSpec:
    return of_groups(cluster("dgx-a100"), groups)


def prices(
    spec: ClusterSpec, what: Any = None, batch: int = 128, precision: str = "fp16"
) -> Prices:
    asked = job(batch, 2048).model_copy(
        update={"software": TARGET.software, "precision": precision}
    )
    return Prices(what or small(), spec, asked)


def split(table: Prices, layout: Layout) -> Split:
    found = best_split(table, layout, TARGET, capacities(table, layout))
    assert found is not None
    return found


PLAIN = [
    Layout(tp=4, pp=4, dp=2),
    Layout(tp=8, pp=2, dp=2, sequence_parallel=True),
    Layout(pp=8, dp=4, shard=Shard.zero(1, 4)),
    Layout(dp=32, shard=Shard.zero(3, 32)),
    Layout(tp=16, pp=2),
]


@pytest.mark.parametrize("layout", PLAIN, ids=Layout.label)
def test_groups_of_like_nodes_are_a_plain_cluster(layout: Layout) -> None:
    plain, grouped = prices(cluster("dgx-a100", 4)), prices(mixed(group(A100, 1), group(A100, 3)))

    assert estimate_step(grouped, layout) == estimate_step(plain, layout)


@pytest.mark.parametrize("layout", PLAIN, ids=Layout.label)
def test_the_parts_of_a_mixed_step_add_up(layout: Layout) -> None:
    table = prices(mixed(group(A100, 2), group(V100, 2)))
    step = estimate_step(table, layout)

    assert sum(step.parts_s.values()) == pytest.approx(step.step_time_s)
    falls = waterfall(table, step)
    assert sum(falls.parts_s.values()) == pytest.approx(step.step_time_s)


@pytest.mark.parametrize("layout", PLAIN, ids=Layout.label)
def test_a_mixed_step_lies_between_those_of_its_kinds(layout: Layout) -> None:
    fast, slow = (prices(mixed(group(gpu, 4))) for gpu in (A100, V100))
    table = prices(mixed(group(A100, 2), group(V100, 2)))

    times = [estimate_step(one, layout).step_time_s for one in (fast, table, slow)]

    assert times == sorted(times)


# kinds, layout: as in Sailor's and Metis' cases, a few nodes of each of two or three GPUs
CASES = [
    ((group(A100, 2), group(V100, 2)), Layout(tp=4, pp=2, dp=4)),
    ((group(A100, 2), group(V100, 2)), Layout(tp=8, pp=4)),
    ((group(V100, 2), group(A100, 2)), Layout(tp=4, pp=2, dp=4)),
    ((group(A100, 3), group(V100, 1)), Layout(tp=2, pp=4, dp=4)),
    ((group(A100, 1, speed=0.7), group(A100, 1)), Layout(tp=4, pp=2, dp=2)),
    ((group("H100-SXM-80GB", 1), group(A100, 1), group(V100, 2)), Layout(tp=4, pp=4, dp=2)),
]


@pytest.mark.parametrize(("groups", "layout"), CASES)
def test_layers_are_in_proportion_to_speed_within_a_layer(
    groups: tuple[NodeGroup, ...], layout: Layout
) -> None:
    what = small(layers=48)
    table = prices(mixed(*groups), what, batch=1024)
    layers = split(table, layout).layers
    size = layout.gpus // layout.pp
    on = [table.on(rank * size, size) for rank in range(layout.pp)]
    layer = [sum(one.layer(layout, False)[i].total for i in (0, 1)) for one in on]
    ends = [0.0] * layout.pp
    ends[0] += sum(on[0].embedding(layout)[i].total for i in (0, 1))
    ends[-1] += sum(on[-1].head(layout)[i].total for i in (0, 1))

    # if layers were a fluid, every stage would take as long
    balanced_s = (48 + sum(end / t for end, t in zip(ends, layer, strict=True))) / sum(
        1 / t for t in layer
    )
    ideal = [(balanced_s - end) / t for end, t in zip(ends, layer, strict=True)]
    stage_s = [count * t + end for count, t, end in zip(layers, layer, ends, strict=True)]
    slowest = max(range(layout.pp), key=stage_s.__getitem__)

    assert sum(layers) == 48
    assert stage_s[slowest] < balanced_s + layer[slowest]
    if layout.pp == 2:
        assert all(abs(count - share) < 1 for count, share in zip(layers, ideal, strict=True))


@pytest.mark.parametrize(("groups", "layout"), CASES)
def test_stages_are_the_best_of_all_by_simulation(
    groups: tuple[NodeGroup, ...], layout: Layout
) -> None:
    table = prices(mixed(*groups), small(layers=9), batch=256)
    every = [
        Split(counts, (0,) * layout.pp)
        for counts in itertools.product(range(1, 9), repeat=layout.pp)
        if sum(counts) == 9
    ]
    best_s = min(estimate_step(table, layout, one).step_time_s for one in every)

    first = estimate_step(table, layout, split(table, layout))
    found_s = polished(table, first, TARGET, 0.0).step_time_s

    assert best_s * (1 - 1e-9) <= found_s <= 1.005 * best_s


def test_each_stage_keeps_to_the_memory_of_its_own_gpu() -> None:
    spec = mixed(group(A100, 1), group("V100-SXM-16GB", 1))
    table = prices(spec, small(layers=36, hidden=3072, heads=24), batch=256)
    layout = Layout(tp=2, pp=4, dp=2, micro_batch=4, shard=Shard.zero(1, 2))
    limits = capacities(table, layout)
    found = split(table, layout)

    used = [
        rank_memory(table.model, table.job, layout, rank, found).device for rank in range(layout.pp)
    ]

    assert limits[0] > 4 * limits[-1]
    assert all(size <= limit for size, limit in zip(used, limits, strict=True))
    assert max(used) > limits[-1], "the larger GPUs are used beyond what the small ones have"


BOUNDED = [*PLAIN[:3], Layout(tp=2, pp=2, dp=8), Layout(pp=4, dp=8, recompute=Recompute.FULL)]


@quick
@given(
    layout=st.sampled_from(BOUNDED),
    slow=st.floats(0.1, 1),
    gpu=st.sampled_from([A100, V100, "L4-24GB"]),
    moe=st.booleans(),
    data=st.data(),
)
def test_no_split_beats_the_bound(
    layout: Layout, slow: float, gpu: str, moe: bool, data: st.DataObject
) -> None:
    table = prices(mixed(group(A100, 2), group(gpu, 2, speed=slow)), small_moe() if moe else None)
    cuts = data.draw(
        st.lists(st.integers(1, 15), min_size=layout.pp - 1, max_size=layout.pp - 1, unique=True)
    )
    edges = [0, *sorted(cuts), 16]
    layers = tuple(b - a for a, b in itertools.pairwise(edges))

    step_s = estimate_step(table, layout, Split(layers)).step_time_s

    assert bound_s(table, layout) <= step_s * (1 + 1e-9)


def answered(spec: ClusterSpec, precision: str = "fp16", name: str = "llama-3-8b") -> Plan:
    asked = job(64, 4096).model_copy(update={"precision": precision})
    found = recommend(model(name), spec, asked, TARGET, Options(budget_s=20))
    assert isinstance(found, Plan)
    return found


def test_two_kinds_together_beat_each_alone_and_say_by_how_much() -> None:
    plan = answered(mixed(group(A100, 1), group(V100, 1)))
    layers = [stage.layers for stage in plan.stages]

    assert plan.layout.pp > 1
    assert sum(layers) == 32
    assert len(plan.cluster.node_groups) == 2
    assert plan.node_choices[0].reason.startswith("fastest, ")
    times = [choice.step_time_s for choice in plan.node_choices]
    assert len(times) == 3
    assert times == sorted(times, key=lambda one: one or float("inf"))
    assert times[0] == plan.estimate.step_time_s
    again = Plan.model_validate_json(plan.model_dump_json())
    own = Prices(again.model, again.cluster, again.job)
    step = estimate_step(own, again.to_layout(), again.to_split())
    assert step.step_time_s == pytest.approx(plan.estimate.step_time_s)


def test_nodes_that_only_slow_the_others_down_are_left_out() -> None:
    slow_net = cluster("dgx-a100").scale_out
    assert slow_net is not None
    slow_net = slow_net.model_copy(update={"nics_per_node": 1, "nic_bytes_per_s": 1e8})
    crawling = group("L4-24GB", 1, speed=0.05, scale_out=slow_net)
    plan = answered(mixed(group(A100, 1, hosts=("fast",)), crawling), "bf16")

    assert plan.cluster.node_groups == ()
    assert plan.cluster.gpu.name == A100
    assert plan.hosts == ("fast",)
    assert plan.node_choices[0].label == f"1 x {A100}, without L4-24GB at 5% speed"
    together = next(one for one in plan.node_choices if "without" not in one.label)
    assert together.step_time_s is None or together.step_time_s > plan.estimate.step_time_s


def test_a_kind_that_cannot_compute_in_the_precision_is_left_out() -> None:
    plan = answered(mixed(group(A100, 1), group(V100, 1)), "bf16")

    assert plan.cluster.gpu.name == A100
    reasons = {choice.reason for choice in plan.node_choices}
    assert f"{V100} cannot compute in bf16" in reasons


def test_where_nothing_fits_the_answer_is_no() -> None:
    spec = mixed(group("V100-SXM-16GB", 1), group("V100-SXM-16GB", 1, speed=0.9))
    asked = job(8, 8192).model_copy(update={"precision": "fp16"})

    found = recommend(model("llama-3-70b"), spec, asked, TARGET)

    assert isinstance(found, NoFit)
    assert found.shortfall_bytes > 0
