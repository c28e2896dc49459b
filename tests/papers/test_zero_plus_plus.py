"""ZeRO++ (arXiv 2306.10209) and three levels of sharding on Frontier (arXiv 2501.04266)."""

from functools import cache

import pytest

from planner.cost.layer import Prices
from planner.cost.sharded import layer_exchanges, step_exchanges
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.local import LocalParameters
from planner.memory.states import state_bytes
from planner.model.parameters import total_parameters
from planner.simulate.step import estimate_step
from planner.spec.software import DEEPSPEED
from tests.properties.strategies import cluster, gpt, job, software

GCDS = 384
FRONTIER = cluster("frontier", 48)
ZERO_3, ZERO_PP, LEVELS = Shard(GCDS, GCDS, GCDS), Shard(GCDS, GCDS, GCDS, 8), Shard(2, 8, GCDS)
PLAIN = software(DEEPSPEED, gradient_bytes=2, overlap_grad_reduce=True)
QUANTISED = software(PLAIN, quantised_weight_gather=True, quantised_gradient_reduction=True)
GPT_10B, GPT_20B = gpt(32, 5120, 64, vocab=50304), gpt(44, 6144, 64, vocab=50304)
ONE = LocalParameters(1e9)


def crossing(shard: Shard, how: object = PLAIN) -> tuple[float, float]:
    """Return what leaves each node per micro-batch and per step, in sizes of the fp16 model."""
    layout = Layout(dp=GCDS, shard=shard)
    each = layer_exchanges(ONE, layout, FRONTIER, how)  # type: ignore[arg-type]
    once = step_exchanges(ONE, layout, FRONTIER, how)  # type: ignore[arg-type]
    return tuple(8 * sum(x.crossing_bytes for x in part) / 2e9 for part in (each, once))  # type: ignore[return-value]


# quantised weights, second shard, quantised gradients: section 3, "3M" down to "0.75M"
VOLUMES = [
    (ZERO_3, {}, 3.0),
    (ZERO_3, {"quantised_weight_gather": True}, 2.0),
    (ZERO_PP, {}, 2.0),
    (ZERO_PP, {"quantised_weight_gather": True}, 1.5),
    (ZERO_3, {"quantised_gradient_reduction": True}, 2.25),
    (ZERO_PP, {"quantised_weight_gather": True, "quantised_gradient_reduction": True}, 0.75),
]


@pytest.mark.parametrize(("shard", "options", "models"), VOLUMES)
def test_volume_across_nodes(shard: Shard, options: dict[str, bool], models: float) -> None:
    each, once = crossing(shard, software(PLAIN, **options))

    # a ring of 384 sends 383/384 of it, an exchange between 48 nodes 47/48
    assert each == pytest.approx(models, rel=0.01)
    assert once == 0


@pytest.mark.parametrize(("how", "models"), [(PLAIN, 2.0), (QUANTISED, 0.75)])
def test_three_levels_cross_nodes_once_per_step(how: object, models: float) -> None:
    each, once = crossing(LEVELS, how)

    assert each == 0
    assert once == pytest.approx(models, rel=0.02)


# bytes per GCD of 20B and 45B: 2/2 + 2/8 + 12/384 per parameter; ZeRO++ 16/384 + 2/8
MEMORY = [(LEVELS, 20e9, 25.6), (LEVELS, 45e9, 57.7), (ZERO_3, 20e9, 0.83), (ZERO_PP, 20e9, 5.83)]


@pytest.mark.parametrize(("shard", "parameters", "gigabytes"), MEMORY)
def test_memory_of_each_gcd(shard: Shard, parameters: float, gigabytes: float) -> None:
    states = state_bytes(LocalParameters(parameters), Layout(dp=GCDS, shard=shard), PLAIN)

    assert states.total / 1e9 == pytest.approx(gigabytes, abs=0.06)


@cache
def step_s(model_number: int, shard: Shard, quantised: bool, seq_len: int) -> float:
    """Seconds of a step of 8 micro-batches of one sequence on each GCD."""
    how = QUANTISED if quantised else PLAIN
    layout = Layout(dp=GCDS, micro_batch=1, shard=shard, recompute=Recompute.FULL)
    model = (GPT_10B, GPT_20B)[model_number]
    prices = Prices(model, FRONTIER, job(8 * GCDS, seq_len, software=how))
    return estimate_step(prices, layout).step_time_s


@pytest.mark.parametrize("number", [0, 1])
def test_models_of_10_and_20_billion(number: int) -> None:
    assert total_parameters((GPT_10B, GPT_20B)[number]) / 1e9 == pytest.approx(
        10 * (number + 1), rel=0.04
    )


# The batch is not printed, so ratios are met in size only. Printed for 10B to 20B: three levels
# 1.71 over ZeRO++ (ours 1.53 and 1.37 with 1,024 tokens, 1.25 and 1.16 with 2,048) and up to 2.40
# over ZeRO-3 (2.4 to 2.8, 1.6 to 1.8), ZeRO++ 1.41 over ZeRO-3 (1.7 to 1.9, 1.4 to 1.5).
@pytest.mark.parametrize("number", [0, 1])
def test_gains_on_384_gcds(number: int) -> None:
    gains = {}
    for seq_len in (1024, 2048):
        zero_3 = step_s(number, ZERO_3, False, seq_len)
        zero_pp = step_s(number, ZERO_PP, True, seq_len)
        levels = step_s(number, LEVELS, True, seq_len)
        assert levels < zero_pp < zero_3
        gains[seq_len] = (zero_pp / levels, zero_3 / zero_pp, zero_3 / levels)

    assert gains[1024][0] == pytest.approx(1.71, rel=0.21)
    assert gains[2048][1] == pytest.approx(1.41, rel=0.1)
    assert gains[2048][2] < 2.40 < 1.02 * gains[1024][2]
    assert all(few > many for few, many in zip(gains[1024], gains[2048], strict=True))


def test_the_printed_gains_are_of_one_run_and_zero_plus_plus_is_what_differs() -> None:
    """1.405 times 1.707 is 2.398. With 20B and 1,024 tokens ours is that, split otherwise.

    ZeRO++ is priced 19 % too fast: its conversions at the rate of the memory, as if of one kernel
    each, and all of its gathers as if prefetched.
    """
    zero_3, zero_pp = step_s(1, ZERO_3, False, 1024), step_s(1, ZERO_PP, True, 1024)
    levels = step_s(1, LEVELS, True, 1024)

    assert pytest.approx(2.398, abs=0.001) == 1.405 * 1.707
    assert zero_3 / levels == pytest.approx(2.398, rel=0.05)
    assert zero_pp / (zero_3 / 1.405) == pytest.approx(0.81, abs=0.02)


def test_with_one_micro_batch_three_levels_gain_nothing() -> None:
    """Refreshing weights after the step takes what gathering them once would."""
    layout = {shard: Layout(dp=GCDS, shard=shard, recompute=Recompute.FULL)
              for shard in (ZERO_PP, LEVELS)}  # fmt: skip
    prices = Prices(GPT_20B, FRONTIER, job(GCDS, 2048, software=QUANTISED))
    seconds = {shard: estimate_step(prices, one).step_time_s for shard, one in layout.items()}

    assert seconds[LEVELS] > seconds[ZERO_PP]
