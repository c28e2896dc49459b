"""Exchange of DeepSeek-V3's experts, microseconds (report on Megatron-Core MoE, H100 and GB200).

Hidden 7168, top 8 of 256, four of eight groups, 4,096 tokens of each rank in bf16. The report's
"A2A" is NCCL's all-to-all, HybridEP a dispatcher that sends a row once to each node and rank.
"""

import pytest

from planner.cost.collectives import Group, Rows, collective_s
from planner.model.operations import Collective, Shape, moe_operations
from planner.spec.huggingface import load_model
from planner.spec.software import MEGATRON_CORE
from tests.properties.strategies import cluster

MODEL = load_model("deepseek-v3")
TOKENS = 4096
ONCE = MEGATRON_CORE.model_copy(update={"moe_sends_once": True})

# cluster, ranks, sends once, operation, measured; the tolerance is what we find, rounded up
MEASURED = [
    ("dgx-h100", 8, False, "dispatch", 1265, 0.05),
    ("dgx-h100", 8, True, "dispatch", 661, 0.16),
    ("dgx-h100", 64, False, "dispatch", 9164, 0.07),
    ("dgx-h100", 64, True, "dispatch", 4626, 0.06),
    ("dgx-h100", 64, False, "combine", 8727, 0.12),
    ("dgx-h100", 64, True, "combine", 4398, 0.02),
    ("gb200-nvl72", 64, False, "dispatch", 930, 0.10),
    ("gb200-nvl72", 64, True, "dispatch", 675, 0.10),
]


def exchange_s(name: str, ranks: int, once: bool, operation: str) -> float:
    """Return the seconds of one exchange of a layer's rows."""
    machine = cluster(name, -(-ranks // cluster(name).gpus_per_node))
    shape = Shape(micro_batch=1, seq_len=TOKENS, tp=1, cp=1, ep=ranks, etp=1)
    operations = moe_operations(MODEL, shape, ONCE if once else MEGATRON_CORE)
    (found,) = (one for one in operations if one.name == operation)
    assert isinstance(found, Collective)
    rows = Rows(found.copies, found.open_share)
    return collective_s(
        found.kind, found.message_bytes, Group.place(ranks, 1, machine), machine, rows
    )


@pytest.mark.parametrize(("name", "ranks", "once", "operation", "us", "tolerance"), MEASURED)
def test_measured_exchange(
    name: str, ranks: int, once: bool, operation: str, us: float, tolerance: float
) -> None:
    seconds = exchange_s(name, ranks, once, operation)

    assert 1e6 * seconds == pytest.approx(us, rel=tolerance)


@pytest.mark.parametrize(("ranks", "least", "measured"), [(8, 1.5, 1.91), (64, 1.8, 1.98)])
def test_sending_once_halves_the_exchange(ranks: int, least: float, measured: float) -> None:
    """1.91 times on one node, where rows for the same rank merge; 1.98 on eight."""
    every, once = (exchange_s("dgx-h100", ranks, one, "dispatch") for one in (False, True))

    assert least < every / once < 1.25 * measured


def test_one_rack_is_ten_times_faster_than_eight_nodes() -> None:
    """930 against 9,164 us: why experts stay inside NVL72."""
    rack, nodes = (exchange_s(name, 64, False, "dispatch") for name in ("gb200-nvl72", "dgx-h100"))

    assert nodes / rack == pytest.approx(9164 / 930, rel=0.5)
