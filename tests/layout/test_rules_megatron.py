"""Every rule of Megatron is broken by one case and kept by its neighbour."""

import re
from typing import Any

import pytest

from planner.layout.layout import Recompute
from planner.layout.rule import Facts, broken, divisor, multiple, near
from planner.layout.rules_megatron import RULES, megatron_problems
from tests.properties.strategies import job, layout_with, model

LEGAL: dict[str, Any] = {
    "layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 8, "ffn_hidden": 4096,
    "global_batch": 64, "micro_batch": 1, "seq_len": 4096, "world": 16, "dp": 16,
}  # fmt: skip
EXPERTS = {"experts": 16, "expert_ffn": 512}
FSDP2 = {"no_gradient_fusion": True, "torch_fsdp2": True}

# rule, what breaks it, what is changed to keep it, words of the message
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("M1", {"world": 16, "tp": 8, "pp": 3, "dp": 1}, {"world": 24, "pp": 3}, "try GPUs 24"),
    ("M2", {**EXPERTS, "world": 16, "ep": 8, "etp": 4}, {"etp": 2}, "etp*ep*pp=32"),
    ("M3", {"heads": 12, "tp": 8, "dp": 2, "kv_heads": 0}, {"heads": 16}, "try tp 6 or 12"),
    ("M4", {"heads": 24, "kv_heads": 6, "tp": 4, "dp": 4}, {"kv_heads": 8}, "try tp 3 or 6"),
    ("M5", {"layers": 46, "pp": 4, "dp": 4}, {"stages": (11, 12, 12, 11)}, "try pp 2 or 23"),
    ("M6", {"pp": 4, "vpp": 4, "dp": 4}, {"vpp": 3}, "try vpp 3 or 6"),
    ("M7", {"options": {"chunks": 2, "chunk_layers": 2}}, {"options": {"chunks": 2}}, "only one"),
    ("M8", {"vpp": 2}, {"vpp": 1}, "try pp 2"),
    ("M8", {"pp": 2, "vpp": 2, "dp": 8, "options": {"no_overlap_p2p": True}},
     {"options": {}}, "needs pp > 2"),
    ("M9", {"pp": 4, "vpp": 2, "dp": 4, "global_batch": 24}, {"global_batch": 32},
     "try global_batch 16"),
    ("M10", {"micro_batch": 3}, {"micro_batch": 2}, "try global_batch 48 or 96"),
    ("M11", {"cp": 4, "dp": 4, "seq_len": 4100}, {"seq_len": 4104}, "try seq_len 4096 or 4104"),
    ("M12", {"cp": 4, "dp": 4, "options": {"cp_comm_type": "a2a+p2p"}},
     {"options": {"cp_comm_type": "a2a+p2p", "cp_sizes": "2 2"}}, "product cp=4"),
    ("M13", {"tp": 8, "dp": 2, "sequence_parallel": True, "seq_len": 1004}, {"seq_len": 1008},
     "try seq_len 1000 or 1008"),
    ("M14", {"tp": 2, "dp": 8, "options": {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}},
     {"options": {}}, "MAX_CONNECTIONS=1"),
    ("M14b", {"options": {"megatron_fsdp": True, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}},
     {"options": {"megatron_fsdp": True}}, "remove the export"),
    ("M15", {"options": {"granularity": "full"}},
     {"options": {"granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}},
     "--recompute-method"),
    ("M15b", {"options": {"granularity": "selective", "recompute_method": "block"}},
     {"options": {"granularity": "selective"}}, "excludes"),
    ("M16", {"tp": 2, "dp": 8, "sequence_parallel": True, "options": {"distribute_saved": True}},
     {"sequence_parallel": False}, "excludes"),
    ("M17", {"recompute": Recompute.FULL, "options": {"offload_layers": 2}},
     {"recompute": Recompute.NONE}, "excludes"),
    ("M18", {"options": {"offload_modules": "core_attn mlp"}},
     {"options": {"offload_modules": "core_attn,qkv_linear"}}, "mlp cannot"),
    ("M17b", {"options": {"offload_layers": 24}}, {"options": {"offload_layers": 23}},
     "below layers=24; try 23"),
    ("M18b", {"options": {"fine_offload": True}},
     {"options": {"fine_offload": True, "offload_modules": "core_attn"}}, "--offload-modules"),
    ("M18c", {"options": {"offload_modules": "attn_proj"}},
     {"options": {"offload_modules": "attn_proj core_attn"}}, "add core_attn"),
    ("M18d", {"options": {"offload_modules": "fused_group_mlp moe_act"}},
     {"options": {"offload_modules": "fused_group_mlp"}}, "remove those"),
    ("M18e", {"options": {"fine_offload": True, "offload_modules": "core_attn",
                          "offload_layers": 2}},
     {"options": {"offload_layers": 2}}, "remove one"),
    ("M19", {"options": {"optimizer_offload": True}},
     {"options": {"optimizer_offload": True, "precise": True}}, "precision-aware"),
    ("M35", {"offload_optimizer": 1.0, "offload_weights": True}, {"offload_weights": False},
     "weights stay on the GPU"),
    ("M20", {"options": {"overlap_gather": True, "overlap_reduce": True}},
     {"options": {"overlap_gather": True, "overlap_reduce": True, "distributed_optimizer": True}},
     "--use-distributed-optimizer"),
    ("M20b", {"options": {"overlap_gather": True, "distributed_optimizer": True}},
     {"options": {"distributed_optimizer": True}}, "--overlap-grad-reduce"),
    ("M21", {"options": FSDP2, "pp": 2, "dp": 8, "zero": 3}, {"pp": 1, "dp": 16}, "pp=2"),
    ("M22", {"options": {"megatron_fsdp": True, "ckpt_format": "torch_dist"}},
     {"options": {"megatron_fsdp": True, "ckpt_format": "fsdp_dtensor"}}, "fsdp_dtensor"),
    ("M23", {"ep": 2}, {"ep": 1}, "needs a model with experts"),
    ("M23b", {**EXPERTS, "experts": 12, "ep": 8}, {"experts": 16}, "try ep 6 or 12"),
    ("M24", {**EXPERTS, "options": {"moe_overlap": True, "dispatcher": "alltoall"}},
     {"ep": 8}, "ep 1"),
    ("M25", {"options": {"delay_wgrad": True}}, {"options": {}}, "needs"),
    ("M25b", {"options": {"tp_overlap": True}},
     {"tp": 2, "dp": 8, "sequence_parallel": True}, "tp > 1"),
    ("M26", {"shard_optimizer": 3}, {"shard_optimizer": 4}, "try shard_optimizer 2 or 4"),
    ("M28", {"tp": 8, "dp": 2, "ffn_hidden": 4100}, {"ffn_hidden": 4096}, "try tp 5 or 10"),
    ("M29", {**EXPERTS, "tp": 8, "dp": 2, "etp": 8, "expert_ffn": 500, "sequence_parallel": True},
     {"expert_ffn": 512}, "moe ffn_hidden=500"),
    ("M30", {**EXPERTS, "tp": 2, "dp": 8}, {"sequence_parallel": True}, "--sequence-parallel"),
    ("M31", {"zero": 2}, {"zero": 1}, "ZeRO-1"),
    ("M32", {"stages": (12, 11), "pp": 2, "dp": 8}, {"stages": (12, 12)}, "hold 23 layers"),
    ("M33", {"stages": (8, 8, 8), "pp": 2, "dp": 8}, {"pp": 3, "world": 15, "dp": 5,
     "global_batch": 65}, "try pp 1 or 3"),
    ("M34", {"options": {"rampup": "8 16 1000"}}, {"options": {"rampup": "16 16 1000"}},
     "from 8 by 16 to 64"),
    ("M34", {"options": {"rampup": "16 8 1000"}},
     {"options": {"rampup": "16 8 1000", "shrink_batch": True}}, "multiples of dp*micro_batch=16"),
    ("M34", {"options": {"rampup": "16 32 1000"}}, {"global_batch": 80}, "end at the global batch"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "breaks", "keeps", "words"), CASES)
def test_a_rule(rule: str, breaks: dict[str, Any], keeps: dict[str, Any], words: str) -> None:
    broke = [text for text in broken(RULES, Facts(**(LEGAL | breaks)))
             if text.startswith(f"{rule}: ")]  # fmt: skip
    kept = broken(RULES, Facts(**(LEGAL | breaks | keeps)))

    assert len(broke) == 1
    assert words in broke[0]
    assert re.search(r"\(.*\.py, Megatron-Core 0\.", broke[0])
    assert not [text for text in kept if text.startswith(f"{rule}: ")]


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in RULES} == {case[0] for case in CASES}
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_a_legal_job_breaks_nothing() -> None:
    assert broken(RULES, Facts(**LEGAL)) == []
    assert broken(RULES, Facts()) == []


def test_layouts_of_the_planner_are_asked_without_stages() -> None:
    uneven = layout_with(pp=3, dp=1)

    assert megatron_problems(model("small"), job(), uneven) == []
    assert megatron_problems(model("small"), job(), layout_with(tp=5)) != []


@pytest.mark.parametrize(
    ("wanted", "number", "expected"), [(3, 16, "2 or 4"), (5, 7, "1 or 7"), (2, 1, "1")]
)
def test_the_nearest_divisors_are_named(wanted: int, number: int, expected: str) -> None:
    assert near(wanted, lambda n: number % n == 0, number) == expected
    assert divisor("tp", wanted, "heads", number).endswith(f"try tp {expected}")


@pytest.mark.parametrize(("size", "expected"), [(30, "16 or 32"), (7, "16"), (48, "48 or 48")])
def test_the_nearest_multiples_are_named(size: int, expected: str) -> None:
    assert multiple("batch", size, 16, "share").endswith(f"try batch {expected}")
