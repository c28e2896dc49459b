import pytest

from planner.goodput.energy import COMPUTE, MEMORY, WAITING, server_w_per_gpu, training_use
from planner.goodput.operations import Stated, gpu_hours_per_interruption, operations, reliability
from planner.goodput.run import Prices, RunCost, run_cost
from planner.plan import Plan
from planner.spec.gpu import gpu_names
from planner.spec.job import SoftwareSpec
from tests.formats.plans import build_plan
from tests.properties.strategies import cluster, model

NEVER = Stated(1e15, 0.0, 0.0, stall_s=1e-9, interval_s=1e6, slow_node_share=0.0)


def plan_of(step_time_s: float = 2.0, power_w: float = 0.0, **parts_s: float) -> Plan:
    """Return a plan on 8 GPUs whose step has 8 sequences of 16 tokens."""
    plan = build_plan(dp=8)
    gpu = plan.cluster.gpu.model_copy(update={"power_w": power_w})
    estimate = {
        "step_time_s": step_time_s,
        "step_time_low_s": 0.9 * step_time_s,
        "step_time_high_s": 1.5 * step_time_s,
        "parts_s": parts_s or {"compute": step_time_s},
    }
    return plan.model_copy(
        update={
            "cluster": plan.cluster.model_copy(update={"gpu": gpu}),
            "estimate": plan.estimate.model_copy(update=estimate),
        }
    )


def cost_of(plan: Plan, tokens: float = 128e6, stated: Stated = NEVER, **prices: float) -> RunCost:
    return run_cost(plan, tokens, stated, Prices(**prices))


def test_a_run_without_failures_is_steps_times_step_time() -> None:
    cost = cost_of(plan_of(step_time_s=0.864), per_gpu_hour=2.0)

    assert cost.steps == 1_000_000
    assert cost.days == pytest.approx(10, rel=1e-5)
    assert cost.gpu_hours == pytest.approx(8 * 240, rel=1e-5)
    assert cost.money == pytest.approx(2 * 8 * 240, rel=1e-5)
    assert cost.effective == pytest.approx(1, rel=1e-5)


def test_a_step_that_is_begun_is_paid() -> None:
    assert cost_of(plan_of(), tokens=129).steps == 2


def test_the_interval_of_the_step_is_that_of_the_run() -> None:
    cost = cost_of(plan_of())

    assert cost.low_s == pytest.approx(0.9 * cost.wall.total_s)
    assert cost.high_s == pytest.approx(1.5 * cost.wall.total_s)


def test_energy_of_a_server_by_hand() -> None:
    """8 GPUs of 700 W for 10 days at 0.15 + 0.85 * 0.8 + 0.41 of 700 W, and what is around it."""
    plan = plan_of(step_time_s=0.864, power_w=700)
    cost = cost_of(plan, grid_gco2_per_kwh=400, pue=1.2)

    kwh = 8 * 0.7 * (0.15 + 0.85 * 0.8 + 0.41) * 1.125 * 1.2 * 240
    assert cost.energy_kwh == pytest.approx(kwh, rel=1e-5)
    assert cost.co2_kg == pytest.approx(kwh * 0.4, rel=1e-5)


@pytest.mark.parametrize(("stated_w", "expected"), [(None, None), (350.0, 0.5)])
def test_power_is_known_or_stated_or_nothing_is_said(
    stated_w: float | None, expected: float | None
) -> None:
    base = cost_of(plan_of(power_w=700)).energy_kwh
    assert base is not None

    found = run_cost(plan_of(), 128e6, NEVER, Prices(gpu_power_w=stated_w)).energy_kwh

    assert found == (pytest.approx(expected * base) if expected else None)


def test_waiting_draws_less_than_computing() -> None:
    assert training_use({"compute": 3.0, "pipeline": 1.0}) == pytest.approx(
        (3 * COMPUTE + WAITING) / 4
    )
    assert training_use({"optimizer": 1.0, "pipeline": -0.1}) == MEMORY
    assert server_w_per_gpu(700, WAITING) < server_w_per_gpu(700, COMPUTE)


# 8-GPU servers: rated watts of a card, its mean share in use, watts of the server, and ours
SERVERS = [
    ("A100 tf32, FlagPerf", 400, (383 / 400 - 0.15) / 0.85, 4368, 0.05),
    ("A100 bf16, FlagPerf", 400, (338 / 400 - 0.15) / 0.85, 3354, 0.21),
    ("H100 training, arXiv 2506.14551", 700, COMPUTE, 0.76 * 10200, 0.12),
]


@pytest.mark.parametrize(("name", "rated_w", "use", "measured_w", "within"), SERVERS)
def test_measured_servers(
    name: str, rated_w: float, use: float, measured_w: float, within: float
) -> None:
    assert 8 * server_w_per_gpu(rated_w, use) == pytest.approx(measured_w, rel=within)


def test_more_gpus_fail_more_often_and_save_more_often() -> None:
    few, many = (
        operations(model("llama-3-70b"), SoftwareSpec(), cluster("dgx-h100", nodes), 8 * nodes,
                   Stated())
        for nodes in (64, 1024)
    )  # fmt: skip

    assert few.mtbf_s == pytest.approx(16 * many.mtbf_s)
    assert few.interval_s > many.interval_s >= many.save_s
    assert few.restart_s > many.restart_s > 300
    assert few.straggling < many.straggling < 0.7 / 59


def test_a_checkpoint_that_storage_cannot_take_sooner_sets_the_interval() -> None:
    one = operations(
        model("llama-3-70b"), SoftwareSpec(), cluster("dgx-h100"), 8, Stated(1000.0, stall_s=1.0)
    )

    assert one.interval_s == one.save_s > 1000


@pytest.mark.parametrize(
    ("gpu", "hours"),
    [
        ("H100-SXM-80GB", 50677),
        ("H200-SXM-141GB", 22853),
        ("A100-SXM-80GB", 29538),
        ("B200-SXM-180GB", 29538),
    ],
)
def test_interruptions_of_the_same_family(gpu: str, hours: float) -> None:
    assert gpu in gpu_names()
    assert gpu_hours_per_interruption(gpu) == hours


def test_records_agree_with_themselves() -> None:
    for record in reliability().clusters:
        if record.interruptions is not None:
            hours = record.gpus * record.days * 24 / record.interruptions
            assert hours == pytest.approx(record.gpu_hours_per_interruption, rel=0.01)
