"""Every rule of torchtitan, DeepSpeed, accelerate and nanotron: broken, then kept."""

from typing import Any

import pytest

from planner.layout.layout import Recompute
from planner.layout.rule import Facts, Rule, broken
from planner.layout.rules_accelerate import RULES as ACCELERATE
from planner.layout.rules_deepspeed import RULES as DEEPSPEED
from planner.layout.rules_nanotron import RULES as NANOTRON
from planner.layout.rules_torchtitan import RULES as TORCHTITAN

RULES: tuple[Rule, ...] = (*TORCHTITAN, *DEEPSPEED, *ACCELERATE, *NANOTRON)
LEGAL: dict[str, Any] = {
    "layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 8, "ffn_hidden": 4096,
    "global_batch": 64, "micro_batch": 1, "seq_len": 4096, "world": 16, "dp": 16,
}  # fmt: skip
EXPERTS = {"experts": 16, "expert_ffn": 512}
SPLIT = {"schedule": "ZBVZeroBubble"}

# rule, what breaks it, what is changed to keep it, words of the message
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("T1", {"options": {"stated_dp": 8}}, {"options": {"stated_dp": 16}}, "try data_parallel"),
    ("T2", {**EXPERTS, "tp": 4, "dp": 4, "ep": 4, "etp": 2, "shard_optimizer": 4},
     {"etp": 4}, "try etp 1"),
    ("T3", {**EXPERTS, "tp": 4, "dp": 4, "ep": 2, "shard_optimizer": 4}, {"ep": 4},
     "multiple of 4"),
    ("T4", {"cp": 4, "dp": 4, "seq_len": 4100}, {"seq_len": 4104}, "try seq_len 4096 or 4104"),
    ("T5", {"pp": 4, "dp": 4, "options": {"schedule": "Interleaved1F1B"}}, {"vpp": 2}, "2 stages"),
    ("T6", {"tp": 3, "dp": 5, "world": 15}, {"tp": 4}, "heads=16"),
    ("T7", {"tp": 16, "dp": 1}, {"tp": 8, "dp": 2}, "kv_heads=8"),
    ("T8", {"ffn_hidden": 4100, "tp": 8, "dp": 2}, {"ffn_hidden": 4096}, "ffn_hidden=4100"),
    ("T9", {"micro_batch": 3}, {"micro_batch": 4}, "try global_batch_size 48 or 96"),
    ("T10", {"pp": 8, "dp": 2, "options": {"pipeline_micro_batches": 4}},
     {"options": {"pipeline_micro_batches": 8}}, "try local_batch_size 8"),
    ("T11", {"pp": 2, "vpp": 2, "dp": 8, "options": SPLIT | {"reshard": "always"}},
     {"options": SPLIT | {"reshard": "never"}}, "wrong gradients"),
    ("T12", {"pp": 2, "vpp": 2, "dp": 8, "options": SPLIT, "recompute": Recompute.SELECTIVE},
     {"recompute": Recompute.FULL}, "selective"),
    ("T13", {"options": {"async_tp": True}}, {"options": {"async_tp": True, "compile": True}},
     "compile.enable"),
    ("T14", {"options": {"recompute_mode": "memory_budget"}}, {"options": {}}, "memory_budget"),
    ("T15", {**EXPERTS, "experts": 12, "ep": 8}, {"experts": 16}, "try ep 6 or 12"),
    ("T16", {"ep": 2}, {"ep": 1}, "needs a model with experts"),
    ("T17", {"layers": 4, "pp": 8, "dp": 2}, {"pp": 4, "dp": 4}, "more than layers=4"),
    ("T18", {"pp": 2, "dp": 8, "stages": (12, 11)}, {"stages": (12, 12)}, "hold 23 layers"),
    ("D1", {"options": {"accumulation": 2, "stated_batch": 64}},
     {"options": {"accumulation": 4, "stated_batch": 64}}, "try train_batch_size 32"),
    ("D2", {"zero": 4}, {"zero": 3}, "none of 0, 1, 2, 3"),
    ("D3", {"zero": 2, "pp": 2, "dp": 8}, {"zero": 1}, "try stage 1 or pp 1"),
    ("D4", {"zero": 2, "options": {"offload_parameters": "cpu"}}, {"zero": 3}, "try stage 3"),
    ("D5", {"zero": 2, "options": {"offload_ratio": 0.5}}, {"zero": 3}, "needs stage 3"),
    ("D6", {"options": {"hpz": 3}}, {"options": {"hpz": 8}}, "try zero_hpz_partition_size 2 or 4"),
    ("D7", {"options": {"fp16": True, "bf16": True}}, {"options": {"bf16": True}}, "keep one"),
    ("D8", {"tp": 3, "dp": 5}, {"tp": 4, "dp": 4}, "tp*sp*pp=3"),
    ("D9", {"tp": 3, "dp": 5}, {"tp": 4, "dp": 4}, "heads=16"),
    ("D10", {"cp": 3, "dp": 5}, {"cp": 4, "dp": 4}, "sequence_parallel_size=3"),
    ("D11", {**EXPERTS, "ep": 3}, {"ep": 4}, "try autoep_size 2 or 4"),
    ("D12", {**EXPERTS, "pp": 4, "dp": 4, "ep": 8}, {"ep": 4}, "4 ranks of a stage"),
    ("D13", {**EXPERTS, "ep": 2, "tp": 2, "dp": 8}, {"tp": 1, "dp": 16}, "cannot be combined"),
    ("D14", {"micro_batch": 3}, {"micro_batch": 4}, "try train_batch_size 48 or 96"),
    ("D15", {"options": {"mics": 4}}, {"options": {}}, "MiCS was removed"),
    ("D4", {"zero": 2, "offload_weights": True}, {"dp": 1}, "try stage 3"),
    ("D5", {"zero": 2, "offload_optimizer": 0.5}, {"zero": 3}, "needs stage 3"),
    ("D16", {"zero": 0, "offload_optimizer": 1.0}, {"zero": 1}, "the stage is 0; try stage 2"),
    ("A1", {"options": {"parallelism": True, "sizes": (1, 8, 1, 1, 1)}},
     {"options": {"parallelism": True, "sizes": (1, 16, 1, 1, 1)}}, "16 processes; try 8"),
    ("A2", {"options": {"cp_size": True, "sp_size": True}}, {"options": {"cp_size": True}},
     "exclude each other"),
    ("A3", {"tp": 2, "dp": 8, "options": {"parallelism": True, "sizes": (8, 1, 2, 1, 1)}},
     {"options": {"parallelism": True, "sizes": (4, 2, 2, 1, 1)}}, "dp_shard > 1"),
    ("A4", {"options": {"fsdp_version": 2, "reshard": "FULL_SHARD"}},
     {"options": {"fsdp_version": 2, "reshard": "True"}}, "try true"),
    ("A5", {"tp": 3, "dp": 5}, {"tp": 4, "dp": 4}, "heads=16"),
    ("A6", {"tp": 16, "dp": 1}, {"tp": 8, "dp": 2}, "kv_heads=8"),
    ("A7", {"cp": 2, "dp": 8, "options": {"cp_size": True, "fsdp_version": 1}},
     {"options": {"cp_size": True, "fsdp_version": 2}}, "needs fsdp_version 2"),
    ("A8", {"cp": 4, "dp": 4, "seq_len": 4100}, {"seq_len": 4104}, "seq_len=4100"),
    ("A9", {"options": {"parallelism": True, "sizes": (16, 1, 1, 1, 1), "kind": "FSDP",
                        "fsdp_version": 2}},
     {"options": {"parallelism": True, "sizes": (2, 8, 1, 1, 1), "kind": "FSDP",
                  "fsdp_version": 2}}, "try dp_shard 16"),
    ("A10", {"options": {"parallelism": True, "sizes": (1, 16, 1, 1, 1), "kind": "FSDP",
                         "fsdp_version": 1}},
     {"options": {"parallelism": True, "sizes": (1, 16, 1, 1, 1), "kind": "FSDP",
                  "fsdp_version": 2}}, "needs fsdp_version 2"),
    ("A11", {"options": {"parallelism": True, "sizes": (1, 16, 1, 0, 1)}},
     {"options": {"parallelism": True, "sizes": (1, 16, 1, 1, 1)}}, "1 is the least"),
    ("A12", {"options": {"offload_activations": True, "fsdp_version": 2}},
     {"options": {"offload_activations": True, "fsdp_version": 2, "recompute": True}},
     "needs fsdp_activation_checkpointing"),
    ("A13", {"options": {"fsdp_version": 1, "strategy": "FULL"}},
     {"options": {"fsdp_version": 1, "strategy": "FULL_SHARD"}}, "use one of FULL_SHARD"),
    ("A14", {"options": {"wrap": "BY_SIZE"}}, {"options": {"wrap": "SIZE_BASED_WRAP"}},
     "use one of TRANSFORMER_BASED_WRAP"),
    ("N1", {"options": {"stated_dp": 8}}, {"options": {"stated_dp": 16}}, "try GPUs 8"),
    ("N2", {"tp": 3, "dp": 5}, {"tp": 4, "dp": 4}, "heads=16"),
    ("N3", {"tp": 16, "dp": 1}, {"tp": 8, "dp": 2}, "try tp 8"),
    ("N4", {"kv_heads": 6, "heads": 24, "tp": 4, "dp": 4}, {"kv_heads": 8}, "kv_heads=6"),
    ("N5", {"ffn_hidden": 4100, "tp": 8, "dp": 2}, {"ffn_hidden": 4096}, "ffn_hidden=4100"),
    ("N6", {"pp": 2, "vpp": 2, "dp": 8}, {"vpp": 1}, "try vpp 1"),
    ("N7", {"layers": 4, "pp": 8, "dp": 2}, {"pp": 4, "dp": 4}, "try pp 4"),
    ("N8", {"zero": 3}, {"zero": 1}, "shards the optimizer only"),
    ("N9", {"micro_batch": 3}, {"micro_batch": 4}, "try global_batch 48 or 96"),
    ("N10", {"tp": 8, "dp": 2, "sequence_parallel": True, "seq_len": 1004}, {"seq_len": 1008},
     "REDUCE_SCATTER"),
    ("N11", {**EXPERTS, "ep": 3}, {"ep": 4}, "try ep 2 or 4"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "breaks", "keeps", "words"), CASES)
def test_a_rule(rule: str, breaks: dict[str, Any], keeps: dict[str, Any], words: str) -> None:
    broke = [text for text in broken(RULES, Facts(**(LEGAL | breaks)))
             if text.startswith(f"{rule}: ")]  # fmt: skip
    kept = broken(RULES, Facts(**(LEGAL | breaks | keeps)))

    assert len(broke) == 1
    assert words in broke[0]
    assert not [text for text in kept if text.startswith(f"{rule}: ")]


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize("rules", [TORCHTITAN, DEEPSPEED, ACCELERATE, NANOTRON])
def test_a_legal_job_breaks_nothing(rules: tuple[Rule, ...]) -> None:
    assert broken(rules, Facts(**LEGAL)) == []
    assert broken(rules, Facts()) == []
