"""MegaScale (NSDI 24): how much of the time trains, how fast, and what each change gives."""

import pytest

from planner.goodput.failures import optimal_interval_s, wall_time
from planner.goodput.operations import Stated, operations
from planner.spec.software import MEGATRON_CORE
from tests.properties.strategies import cluster, gpt

GPT_175B = gpt(96, 12288, 128, vocab=64000)
WEEK_S = 7 * 86400


# section 6.3: over 100 restarts in "several weeks" on 12,288 GPUs
@pytest.mark.parametrize("weeks", [2, 3, 5, 8])
def test_effective_training_time_is_over_90_percent(weeks: int) -> None:
    gpu_hours = weeks * 168 * 12288 / 100
    how = operations(GPT_175B, MEGATRON_CORE, cluster("dgx-a100", 1536), 12288, Stated(gpu_hours))

    wall = wall_time(weeks * WEEK_S, how.interval_s, how.stall_s, how.detect_s, how.restart_s,
                     how.mtbf_s)  # fmt: skip

    assert weeks * WEEK_S / wall.total_s > 0.9
    assert wall.interruptions == pytest.approx(100, rel=0.12)
    # "catches up within 15 minutes": the restart and half an interval of repeated work
    assert how.restart_s + how.interval_s / 2 < 900


def test_checkpoints_every_few_minutes_cost_about_a_percent() -> None:
    """Saving in two stages is what makes that possible: a blocking save costs ten times as much."""
    how = operations(GPT_175B, MEGATRON_CORE, cluster("dgx-a100", 1536), 12288, Stated())
    blocking_s = how.save_s + how.stall_s

    fast = wall_time(WEEK_S, how.interval_s, how.stall_s, 600, 300, how.mtbf_s)
    slow = wall_time(WEEK_S, 3 * 3600, blocking_s, 600, 300, how.mtbf_s)

    assert 120 < how.interval_s < 900
    assert fast.checkpoints_s / WEEK_S == pytest.approx(0.013, abs=0.003)
    assert slow.repeated_s > 10 * fast.repeated_s
    best_s = optimal_interval_s(blocking_s, how.mtbf_s)
    assert best_s > how.interval_s


# The Llama 3 Herd of Models, section 3.3.4: 54 days, 419 unexpected interruptions, over 90 %
def test_llama_3_405b() -> None:
    llama = operations(GPT_175B, MEGATRON_CORE, cluster("dgx-h100", 2048), 16384, Stated())
    wall = wall_time(49 * 86400, llama.interval_s, llama.stall_s, llama.detect_s, llama.restart_s,
                     llama.mtbf_s)  # fmt: skip

    assert wall.total_s / 86400 == pytest.approx(54, rel=0.01)
    assert wall.interruptions == pytest.approx(419, rel=0.01)
    assert 49 * 86400 / wall.total_s > 0.9


# arXiv 2410.21680: 1.8 h between failures projected at 16,384 GPUs of RSC-1
def test_time_between_failures_of_a_large_cluster() -> None:
    how = operations(GPT_175B, MEGATRON_CORE, cluster("dgx-a100", 2048), 16384, Stated())

    assert how.mtbf_s / 3600 == pytest.approx(1.8, rel=0.01)
