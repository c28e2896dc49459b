"""The space of legal layouts: complete, legal, without repetition."""

import pytest

from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.limits import Limits
from planner.layout.rules import layout_problems
from planner.layout.rules_torch import torch_target_problems
from planner.layout.space import MICRO_BATCHES, MIN_CONTEXT_TOKENS, layouts
from planner.spec.software import MEGATRON_2022, MEGATRON_CORE, TORCH_FSDP
from tests.properties.strategies import cluster, job, layout_with, legal_layouts, model, software

SPACES = [
    ("small", "dgx-h100", 2),
    ("small-moe", "dgx-h100", 4),
    ("llama-3-8b", "dgx-a100", 1),
    ("mixtral-8x7b", "dgx-h100", 2),
]


@pytest.mark.parametrize(("name", "machine", "nodes"), SPACES)
def test_every_layout_is_legal_and_uses_all_gpus(name: str, machine: str, nodes: int) -> None:
    found = legal_layouts(name, machine, nodes)
    gpus = 8 * nodes

    for layout in found:
        assert layout_problems(model(name), cluster(machine, nodes), job(), layout) == []
        assert layout.tp * layout.cp * layout.dp * layout.pp == gpus
        assert layout.etp * layout.ep * layout.edp * layout.pp == gpus
        assert layout.micro_batches(32) * layout.dp * layout.micro_batch == 32


@pytest.mark.parametrize(("name", "machine", "nodes"), SPACES)
def test_no_layout_comes_twice(name: str, machine: str, nodes: int) -> None:
    found = legal_layouts(name, machine, nodes)

    assert len(set(found)) == len(found) > 50


@pytest.mark.parametrize(("name", "machine", "nodes"), SPACES)
def test_limits_of_what_is_worth_trying(name: str, machine: str, nodes: int) -> None:
    for layout in legal_layouts(name, machine, nodes):
        assert layout.micro_batch in MICRO_BATCHES
        assert layout.cp == 1 or 4096 // layout.cp >= MIN_CONTEXT_TOKENS
        assert layout.sequence_parallel == (layout.tp > 1)
        assert layout.etp in (1, layout.tp)
        assert layout.recompute is not Recompute.FULL


@pytest.mark.parametrize(("name", "machine", "nodes"), SPACES)
def test_shards_divide_the_data_parallel_ranks(name: str, machine: str, nodes: int) -> None:
    for layout in legal_layouts(name, machine, nodes):
        shard, ranks = layout.shard, layout.dp * layout.cp
        assert shard.weights <= shard.gradients <= shard.optimizer
        assert all(ranks % size == 0 for size in (shard.weights, shard.gradients, shard.optimizer))
        assert layout.pp == 1 or shard.gradients == 1


# model, nodes of eight H100, global batch, layouts that people run or papers found best
KNOWN = [
    ("llama-3-70b", 8, 128, layout_with(1, tp=8, pp=4, vpp=5, dp=2)),
    ("llama-3-70b", 8, 128, layout_with(1, tp=4, pp=4, vpp=5, dp=4)),
    ("llama-3-70b", 8, 128, layout_with(3, dp=64, micro_batch=2)),
    ("llama-3-8b", 1, 64, layout_with(3, dp=8, micro_batch=4)),
    ("llama-3-8b", 1, 128, layout_with(1, tp=1, cp=2, dp=4)),
    ("mixtral-8x22b", 16, 256, layout_with(1, tp=2, pp=8, dp=8, ep=8)),  # folding paper, table 3
    ("mixtral-8x22b", 16, 256, layout_with(1, tp=2, pp=8, dp=8, ep=4)),
    ("mixtral-8x7b", 1, 64, layout_with(1, tp=2, dp=4, ep=8)),
    ("mixtral-8x7b", 1, 64, layout_with(1, tp=2, dp=4, ep=4, etp=2)),
    ("llama-3-70b", 8, 128, Layout(dp=64, shard=Shard(8, 8, 8))),  # HSDP over each node
]


@pytest.mark.parametrize(
    ("name", "nodes", "batch", "layout"),
    KNOWN,
    ids=[f"{case[0]} {case[3].label()}" for case in KNOWN],
)
def test_known_layouts_are_in_the_space(name: str, nodes: int, batch: int, layout: Layout) -> None:
    # where one context rank would hold 4096 tokens
    length = 8192 if layout.cp > 1 else 4096
    found = layouts(model(name), cluster("dgx-h100", nodes), job(batch, length))

    assert layout in found


# software, kinds of recompute besides the full recompute that memory adds
RECOMPUTES = [
    (MEGATRON_CORE, {"none"}),
    (MEGATRON_2022, {"none", "selective"}),
    (TORCH_FSDP, {"none", "selective"}),
    (software(TORCH_FSDP, selective_recomputes_products=False), {"none"}),
]


@pytest.mark.parametrize(("stack", "kinds"), RECOMPUTES, ids=lambda it: getattr(it, "name", ""))
def test_selective_recompute_only_where_it_is_something(stack: object, kinds: set[str]) -> None:
    found = layouts(model("small"), cluster("dgx-h100"), job(software=stack))

    assert {str(layout.recompute) for layout in found} == kinds


def test_a_target_leaves_fewer() -> None:
    every = layouts(model("small"), cluster("dgx-h100"), job())
    torch = layouts(model("small"), cluster("dgx-h100"), job(), torch_target_problems)

    assert set(torch) < set(every)
    assert all(layout.micro_batches(32) >= layout.pp for layout in torch)
    assert {layout.cp for layout in torch} == {1, 2}


def test_one_gpu_has_no_degrees() -> None:
    found = layouts(model("small"), cluster("workstation"), job(4))

    assert [layout.micro_batch for layout in found] == [1, 2, 4]
    assert {layout.gpus for layout in found} == {1}


def test_interleaving_needs_whole_rounds() -> None:
    found = [layout for layout in legal_layouts("small", "dgx-h100", 2) if layout.vpp > 1]

    assert found
    assert all(layout.micro_batches(32) % layout.pp == 0 for layout in found)
    assert all(16 % (layout.pp * layout.vpp) == 0 for layout in found)


def test_context_parallelism_only_for_long_sequences() -> None:
    short = layouts(model("small"), cluster("dgx-h100"), job(seq_len=2048))
    long = layouts(model("small"), cluster("dgx-h100"), job(seq_len=16384))

    assert {layout.cp for layout in short} == {1}
    assert {layout.cp for layout in long} == {1, 2, 4, 8}


def test_without_folding_experts_lie_inside_data_parallelism() -> None:
    """MoE Parallel Folding, 2.2: etp = tp, ep divides dp, and context ranks are not covered."""
    asked = (model("small-moe"), cluster("dgx-h100", 2), job(seq_len=8192))
    folded = layouts(*asked, limits=Limits())
    plain = layouts(*asked, limits=Limits(folding=False))

    inside = {one for one in folded if one.etp == one.tp and one.dp % one.ep == 0}
    assert set(plain) == {one for one in inside if one.cp == 1 or one.ep == 1}
    assert {one.cp for one in plain} == {1, 2, 4}


def test_a_dense_model_has_nothing_to_fold() -> None:
    asked = (model("small"), cluster("dgx-h100"), job())

    assert layouts(*asked, limits=Limits(folding=False)) == layouts(*asked)
