"""Memory with the optimizer on the host, against a trace of the launcher.

A CPU is host and device in one, so the trace shows both: masters, their gradients and moments,
which FSDP keeps on the host, are taken from every moment of it.
"""

import pytest

from benchmarks.oracle import Moment, Traced
from planner.memory.estimate import rank_memory
from planner.memory.working import WORKSPACE_BYTES
from tests.oracle.layouts import HOSTED
from tests.oracle.traces import trace_all

LEAST, MOST = 1.0, 1.03  # estimated / traced of the peak
ON_HOST = ("parameters", "gradients", "optimizer")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traces() -> dict[str, Traced]:
    found = trace_all((plan, 0) for plan in HOSTED.values())
    return dict(zip(HOSTED, found, strict=True))


def on_gpu(moment: Moment) -> int:
    return moment.size - sum(moment.parts[part] for part in ON_HOST)


@pytest.mark.parametrize("name", HOSTED)
def test_peak_of_the_gpu(name: str, traces: dict[str, Traced]) -> None:
    plan = HOSTED[name]
    memory = rank_memory(plan.model, plan.job, plan.to_layout(), 0, plan.to_split())
    seen = max(map(on_gpu, traces[name].phases.values()))

    assert LEAST <= (memory.allocated - WORKSPACE_BYTES) / seen <= MOST


@pytest.mark.parametrize("name", HOSTED)
def test_bytes_of_the_host(name: str, traces: dict[str, Traced]) -> None:
    """Master, gradient and two moments of each parameter, 16 bytes."""
    plan, traced = HOSTED[name], traces[name]
    memory = rank_memory(plan.model, plan.job, plan.to_layout(), 0, plan.to_split())

    assert memory.host == pytest.approx(2 * traced.parameters + traced.optimizer, rel=0.003)
