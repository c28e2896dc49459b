"""Estimated memory against a trace of the launcher itself: no formula of ours on the other side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.oracle import Traced, comparison
from planner.plan import Plan
from tests.oracle.layouts import EXPERTS, LAYOUTS, MODEL
from tests.oracle.traces import ROOT, trace_all

# estimated ÷ traced of the peak
LEAST, MOST = 1.0, 1.03
ROUNDING = 0.003  # blocks of 512 bytes, a step counter per parameter

# layout, rank
RANKS = [(name, 0) for name in LAYOUTS]
RANKS += [("pp4", 1), ("pp4", 2), ("pp4", 3), ("pp2 vpp2", 1), ("pp4 full recompute", 2)]
RANKS += [("pp2 dp2 zero1", 3), ("pp2 tp2 dp2", 7)]

Traces = dict[tuple[str, int], Traced]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traces() -> Traces:
    found = trace_all((LAYOUTS[name], rank) for name, rank in RANKS)
    return dict(zip(RANKS, found, strict=True))


def compared(name: str, traced: Traced) -> dict[str, tuple[float, float]]:
    return {part: (guess, seen) for part, guess, seen in comparison(LAYOUTS[name], traced)}


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_peak(name: str, rank: int, traces: Traces) -> None:
    estimated, seen = compared(name, traces[name, rank])["peak"]

    assert LEAST <= estimated / seen <= MOST


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_masters_and_moments(name: str, rank: int, traces: Traces) -> None:
    """fp32 weights and two fp32 moments are the 12 bytes per parameter of the optimizer."""
    traced = traces[name, rank]
    estimated, seen = compared(name, traced)["optimizer"]

    assert seen == traced.parameters + traced.optimizer
    assert estimated == pytest.approx(seen, rel=ROUNDING)


@pytest.mark.parametrize(("name", "rank"), RANKS)
def test_step_reads_one_fp32_gradient_per_master(name: str, rank: int, traces: Traces) -> None:
    """Whatever waits unsharded during the step, the optimizer sees its own part."""
    traced = traces[name, rank]

    assert traced.gradients == pytest.approx(traced.parameters, rel=ROUNDING)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "pp" in name])
def test_pipeline_keeps_whole_weights_and_gradients(name: str, traces: Traces) -> None:
    rows = compared(name, traces[name, 0])

    estimated, seen = rows["weights"]
    assert estimated == pytest.approx(seen, rel=ROUNDING)
    estimated, seen = rows["gradients"]
    assert estimated == pytest.approx(seen, rel=0.04)


@pytest.mark.parametrize("name", ["pp4", "pp2 vpp2", "pp2 dp2 zero1"])
def test_receive_buffers_are_what_torch_makes(name: str, traces: Traces) -> None:
    estimated, seen = compared(name, traces[name, 0])["buffers"]

    assert 0.85 < estimated / seen <= 1


def test_more_sharding_holds_less(traces: Traces) -> None:
    peaks = [traces[name, 0].peak.size for name in ("zero0", "zero1", "zero2", "zero3")]

    assert peaks == sorted(peaks, reverse=True)


def model_flops(plan: Plan) -> float:
    """Multiplications and additions of one step of all ranks; attention not halved."""
    heads, kv_heads, size = MODEL.heads, MODEL.kv_heads, MODEL.head_dim
    attention = (2 * heads + 2 * kv_heads) * size * MODEL.hidden
    layer = attention + 3 * MODEL.hidden * MODEL.ffn_hidden
    matrices = MODEL.layers * layer + MODEL.hidden * MODEL.vocab
    tokens = plan.job.global_batch * plan.job.seq_len
    scores = 4 * tokens * plan.job.seq_len * heads * size * MODEL.layers
    # forward and twice as much backward; flash attention computes the scores again
    return 6 * matrices * tokens + 3.5 * scores


@pytest.mark.parametrize("name", ["one rank", "zero3", "hsdp", "tp4", "tp4 sp", "tp2 dp4 sp zero3"])
def test_equal_ranks_share_the_flops_of_the_model(name: str, traces: Traces) -> None:
    plan = LAYOUTS[name]

    assert traces[name, 0].flops * len(plan.rank_map) == model_flops(plan)


def test_stages_share_the_flops_of_the_model(traces: Traces) -> None:
    stages = [traces["pp4", rank].flops for rank in range(4)]

    assert sum(stages) == model_flops(LAYOUTS["pp4"])


def test_zigzag_skips_the_keys_that_no_query_sees(traces: Traces) -> None:
    """Chunk ``i`` of ``2 * cp`` reads ``i + 1`` chunks of keys; alone, torch counts all of them."""
    alone, traced = traces["one rank", 0].flops, traces["cp4", 0].flops
    plan = LAYOUTS["cp4"]
    tokens = plan.job.global_batch * plan.job.seq_len
    scores = 3.5 * 4 * tokens * plan.job.seq_len * MODEL.heads * MODEL.head_dim * MODEL.layers

    assert 4 * traced == alone - scores * (1 - 9 / 16)


@pytest.mark.parametrize("name", ["moe ep8 zero1", "moe ep4 zero3", "moe tp2 sp ep4 zero3"])
def test_evenly_used_experts_share_the_flops_of_the_model(name: str, traces: Traces) -> None:
    each = traces["moe", 0].flops * LAYOUTS[name].job.global_batch / 4

    assert traces[name, 0].flops * len(LAYOUTS[name].rank_map) == each


def test_experts_do_the_flops_of_the_experts_chosen(traces: Traces) -> None:
    """Top two of eight 512 wide and a shared one 512 wide: the 1536 columns of the dense MLP."""
    tokens, moe_layers = 4 * 1024, MODEL.layers - 1
    router = 6 * tokens * MODEL.hidden * EXPERTS.experts * moe_layers

    assert traces["moe", 0].flops == traces["one rank", 0].flops + router


def sent(traced: Traced, operation: str) -> int:
    """Bytes of the larger buffers of one kind of collective."""
    return sum(c["bytes"] for c in traced.collectives if c["operation"] == operation)


def test_sharded_data_parallelism_sends_each_gradient_once_per_micro_batch(traces: Traces) -> None:
    whole = 4 * 8 * traces["zero3", 0].parameters / 4  # fp32, of all eight ranks

    assert sent(traces["zero3", 0], "_reduce_scatter_base_") == pytest.approx(2 * whole, rel=0.001)
    assert sent(traces["zero1", 0], "_reduce_scatter_base_") == pytest.approx(whole, rel=0.001)
    assert sent(traces["zero1", 0], "_allgather_base_") == pytest.approx(whole / 2, rel=0.001)


def test_sequence_parallelism_gathers_twice_and_scatters_twice_per_layer(traces: Traces) -> None:
    hidden = 2 * 2 * 1024 * MODEL.hidden  # bytes of one micro-batch
    passes, around = 2 * 2, 2 * MODEL.layers + 1  # forward and backward; table and head are one
    traced = traces["tp4 sp", 0]

    assert sent(traced, "all_gather_into_tensor") == passes * around * hidden
    assert sent(traced, "reduce_scatter_tensor") == passes * around * hidden


def test_command_prints_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(LAYOUTS["zero3 one micro-batch"].model_dump_json())
    command = [sys.executable, "-m", "benchmarks.oracle", str(file), "--json"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout)
    assert printed["comparison"]["peak"][1] == max(p["size"] for p in printed["phases"].values())
