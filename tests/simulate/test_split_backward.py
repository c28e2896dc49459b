"""Layouts that name a schedule: the split of the backward pass, its laws, its memory."""

from dataclasses import replace

import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute
from planner.layout.stages import StageLayers
from planner.memory.estimate import peak_memory, rank_memory
from planner.model.backward import backward, is_weight_gradient
from planner.schedule.kinds import SCHEDULES, V_SHAPED, schedule_name
from planner.simulate.held_back import weight_share
from planner.simulate.step import estimate_step, stage_cost
from tests.properties.strategies import cluster, gpt, job, small, small_moe, software

BATCH = 32
PP4 = Layout(pp=4, dp=4, micro_batch=1)
NAMED = [name for name in SCHEDULES if name not in ("1f1b", "interleaved_1f1b")]


def prices(**changes: object) -> Prices:
    return Prices(small(), cluster("dgx-h100", 2), job(4 * BATCH, software=software(**changes)))


def named(name: str) -> Layout:
    return replace(PP4, schedule=name, vpp=2 if name in V_SHAPED else 1)


@pytest.mark.parametrize("block", ["dense", "embedding", "head"])
@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("tp", [1, 4])
def test_both_halves_are_the_backward_pass(block: str, recompute: Recompute, tp: int) -> None:
    """Compute is split, nothing is lost; a hidden all-reduce has nothing to hide behind."""
    table, layout = prices(), Layout(tp=tp, dp=8 // tp, sequence_parallel=tp > 1)
    if block != "dense":
        recompute = Recompute.NONE
    whole = {"embedding": table.embedding, "head": table.head}.get(
        block, lambda layout: table.layer(layout, False, recompute)
    )(layout)
    halves = table.split_backward(block, layout, recompute)

    assert halves.forward == whole.forward
    assert halves.backward.compute + halves.weight.compute == pytest.approx(whole.backward.compute)
    assert halves.backward.tp >= whole.backward.tp
    assert halves.weight.tp == 0
    assert (halves.weight.compute == 0) == (block == "embedding")


def test_experts_have_weight_gradients_too() -> None:
    table = Prices(small_moe(), cluster("dgx-h100", 2), job(BATCH))
    layout = Layout(ep=4, dp=8)
    halves = table.split_backward("moe", layout, Recompute.NONE)

    assert halves.weight.compute > 0
    assert halves.weight.ep == 0
    assert halves.backward.ep == pytest.approx(table.layer(layout, True).backward.ep)


def test_products_of_activations_have_no_weight_gradient() -> None:
    operations, core = prices(flash_attention=False).operations("dense", PP4)
    settings = software(flash_attention=False)
    kinds = {
        operation.name: [is_weight_gradient(part) for part in backward(operation, settings)]
        for operation in operations
    }

    assert core
    assert not any(any(kinds[operation.name]) for operation in core)
    assert sum(any(found) for found in kinds.values()) == 4  # qkv, projection, both of the MLP


def test_weight_share_is_that_of_the_paper() -> None:
    """Table 1 of Qi et al.: 32 sbh for W, 34 sbh and 5 a s / h more for the whole pass."""
    model = gpt(16, 2048, 16)
    table = Prices(
        model,
        cluster("dgx-h100", 2),
        job(BATCH, 1024, software=software(flash_attention=False, dropout=True)),
    )

    assert weight_share(table, PP4) == pytest.approx(32 / (34 + 5 * 16 * 1024 / 2048), rel=0.01)


@pytest.mark.parametrize("overlap", [True, False])
def test_zero_bubble_schedules_wait_less(overlap: bool) -> None:
    table = prices(overlap_pipeline=overlap)
    waiting = {
        name: estimate_step(table, named(name)).parts_s["pipeline"]
        for name in ("", "zb_h1", "zb_h2", "zb_2p", "zb_v")
    }

    assert waiting["zb_2p"] <= waiting["zb_h2"] < waiting["zb_h1"] < waiting[""]
    assert waiting["zb_v"] < waiting["zb_h1"]


@pytest.mark.parametrize("name", NAMED)
def test_parts_add_up_and_work_stays(name: str) -> None:
    usual, step = (estimate_step(prices(), layout) for layout in (PP4, named(name)))

    assert sum(step.parts_s.values()) == pytest.approx(step.step_time_s)
    assert step.parts_s["compute"] == pytest.approx(usual.parts_s["compute"], rel=0.25)
    assert step.layout.label().endswith(name)
    assert schedule_name(step.layout) == name


def test_a_stage_keeps_its_compute() -> None:
    whole, halves = (
        stage_cost(prices(), layout, StageLayers(4, 0, head=True))
        for layout in (PP4, named("zb_h1"))
    )

    assert halves.backward_s + halves.weight.total == pytest.approx(whole.backward_s)


def activations(name: str, rank: int) -> float:
    table = prices()
    return rank_memory(table.model, table.job, named(name), rank).activations


def test_memory_follows_the_published_counts() -> None:
    """1F1B keeps p - i micro-batches, H1 p, H2 2 p - 1, V p, GPipe all of them."""
    for rank in range(4):
        one = activations("", rank) / (4 - rank)
        found = [activations(name, rank) / one for name in ("zb_h1", "zb_h2", "zb_2p", "gpipe")]
        assert found == pytest.approx([4, 7, 7, BATCH])
    assert activations("zb_v", 1) == pytest.approx(activations("zb_h1", 1))


def test_v_half_keeps_half_of_1f1b() -> None:
    """``(p + 2) // 2`` micro-batches of ``p``; rank 1 holds neither embedding nor head."""
    assert activations("v_half", 1) == pytest.approx(activations("zb_h1", 1) * 3 / 4)


def test_crossed_pipelines_hold_two_stages_each() -> None:
    """DualPipe: twice the weights, one stage's activations of ``p + 1`` micro-batches."""
    table = prices()
    for rank in range(4):
        both = rank_memory(table.model, table.job, named("dualpipe"), rank)
        one, other = (
            rank_memory(table.model, table.job, named("zb_h1"), held) for held in (rank, 3 - rank)
        )
        assert both.weights == pytest.approx(one.weights + other.weights)
        assert both.activations == pytest.approx(one.activations * 5 / 4)


def test_both_copies_of_a_stage_share_their_gradients() -> None:
    """Without data parallelism 1F1B reduces nothing; DualPipe adds up its two copies."""
    table = prices()
    usual, both = (
        estimate_step(table, replace(named(name), dp=1, tp=4)).parts_s for name in ("", "dualpipe")
    )

    assert usual["data_parallel"] == 0
    assert both["data_parallel"] > 0


def test_the_fullest_rank_is_looked_for_among_all() -> None:
    """With the head on its first rank, a V is fullest there; the others are not left out."""
    table = prices()
    ranks = [rank_memory(table.model, table.job, named("zb_v"), rank) for rank in range(4)]

    peak = peak_memory(table.model, table.job, named("zb_v"))
    assert peak.device == max(memory.device for memory in ranks)


def test_the_first_rank_of_a_v_holds_the_head() -> None:
    table = prices()
    first, last = (
        rank_memory(table.model, table.job, named(name), 0) for name in ("zb_v", "zb_h1")
    )
    head = 2 * table.model.vocab * table.model.hidden

    assert first.weights - last.weights == pytest.approx(head, rel=0.01)
