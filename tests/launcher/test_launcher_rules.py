"""Each rule has a case that breaks it alone, names the numbers and offers legal ones."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.launcher.facts import Facts
from planner.launcher.rules import RULES, broken_rules

LEGAL = Facts(
    layers=8,
    hidden=512,
    heads=8,
    kv_heads=4,
    rotary_dim=64,
    ffn_hidden=96,
    experts=0,
    expert_ffn_hidden=0,
    shared_ffn_hidden=0,
    vocab=1000,
    positions=0,
    sliding_window=0,
    attention_sinks=False,
    expert_bias=False,
    mtp_layers=0,
    global_batch=32,
    seq_len=128,
    precision="bf16",
    dropout=False,
    tp=2,
    cp=1,
    pp=2,
    vpp=1,
    dp=4,
    ep=1,
    etp=1,
    micro_batch=2,
    sequence_parallel=True,
    shard_weights=1,
    shard_gradients=1,
    shard_optimizer=4,
)

MOE: dict[str, Any] = {"experts": 8, "expert_ffn_hidden": 48, "shared_ffn_hidden": 32}

# rule, what differs from a legal layout, words of the message
FLAT: dict[str, Any] = {"pp": 1, "tp": 1}
ZERO_3: dict[str, Any] = {"shard_weights": 4, "shard_gradients": 4}
HOST: dict[str, Any] = {"offload_optimizer": 1.0}
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("L35", {"optimizer": "lamb"}, "optimizer='lamb'"),
    ("L36", {"lora_rank": 8}, "lora_rank=8"),
    ("L37", {"offload_optimizer": 0.5}, "offload_optimizer=0.5"),
    ("L38", HOST | {"offload_weights": True}, "try shard_weights 4 (ZeRO-3)"),
    (
        "L40",
        FLAT | HOST | ZERO_3 | {"offload_weights": True, "delayed_update": True},
        "delayed_update with offload_weights",
    ),
    ("L39", FLAT | HOST | {"shard_gradients": 2}, "try 1 or shard_optimizer=4"),
    ("L1", MOE | {"sequence_parallel": False}, "experts with tp=2 need sequence_parallel"),
    ("L2", MOE | {"hidden": 516}, "hidden=516 and ffn_hidden/etp=48; both must be multiples of 8"),
    ("L2", MOE | {"expert_ffn_hidden": 40, "etp": 2}, "hidden=512 and ffn_hidden/etp=20"),
    ("L3", {"mtp_layers": 1}, "mtp_layers=1"),
    ("L4", {"sliding_window": 64}, "sliding_window=64 under seq_len=128"),
    ("L5", {"cp": 3, "shard_optimizer": 1}, "6 chunks, which do not divide seq_len=128; try cp 2"),
    ("L6", MOE | {"ep": 3, "experts": 6}, "ep*etp=3 does not divide the tp*cp*dp=8 ranks"),
    ("L6", MOE | {"ep": 8, "etp": 2}, "try ep 4"),
    ("L7", {"precision": "fp8"}, "precision='fp8'"),
    ("L8", {"dropout": True}, "software.dropout"),
    ("L9", {"positions": 100}, "seq_len=128 exceeds the 100 learned positions"),
    ("L10", {"rotary_dim": 63}, "a head's 63 are odd; try 62 or 64"),
    ("L11", {"heads": 9}, "tp=2 does not divide heads=9; try tp 1 or 3"),
    ("L12", {"kv_heads": 1}, "tp=2 does not divide kv_heads=1; try tp 1"),
    ("L13", {"ffn_hidden": 97}, "tp=2 does not divide ffn_hidden=97; try tp 1 or 97"),
    ("L14", {"seq_len": 129}, "tp=2 does not divide seq_len=129; try tp 1 or 3"),
    (
        "L14",
        {"cp": 2, "seq_len": 132, "tp": 4},
        "tp=4 does not divide seq_len/cp=66; try tp 3 or 6",
    ),
    ("L15", {"tp": 4, "vocab": 9}, "vocab=9 leaves a rank of tp=4 without logits"),
    ("L16", {"global_batch": 33}, "8, which does not divide global_batch=33; try global_batch 32"),
    ("L17", {"pp": 8, "layers": 16}, "at least 8 micro-batches, global_batch=32 gives 4"),
    ("L18", {"vpp": 2, "global_batch": 40}, "cannot order 5 micro-batches"),
    ("L19", {"vpp": 2, "pp": 1}, "vpp=2 needs a pipeline"),
    ("L20", {"layers": 1, "pp": 4}, "pp=4 times vpp=1 stages exceed layers=1"),
    ("L21", {"shard_optimizer": 3}, "shard_optimizer=3 does not divide dp=4; try 2 or 4"),
    ("L21", {"shard_optimizer": 3, "cp": 2}, "does not divide dp*cp=8; try 2 or 4"),
    ("L22", FLAT | {"dp": 8, "shard_gradients": 2}, "the last be shard_gradients or all dp*cp=8"),
    ("L22", FLAT | {"shard_weights": 2}, "must divide each other in this order"),
    ("L23", FLAT | {"tp": 2, "shard_gradients": 2}, "sharding 1, 2, 4 of weights, gradients"),
    ("L23", FLAT | MOE | {"shard_gradients": 2}, "with tp=1, pp=1, experts=8; try 1, 1"),
    ("L23", HOST | {"tp": 1, "delayed_update": True}, "delayed_update is not executed"),
    ("L23", HOST | ZERO_3 | {"pp": 1}, "offload_optimizer with shard_weights=4"),
    ("L44", {"pp": 1, "shard_secondary": 2} | ZERO_3, "with weights over 4 of 8 ranks"),
    (
        "L41",
        FLAT | ZERO_3 | {"shard_secondary": 3},
        "shard_secondary=3 must divide shard_weights=4",
    ),
    ("L42", {"context_exchange": "post", "cp": 2}, "try all_gather, ring, all_to_all"),
    ("L43", {"context_exchange": "all_to_all", "cp": 4}, "tp*cp=8 does not divide the 4 key/value"),
    ("L24", {"shard_gradients": 4}, "pp=2 with shard_weights=1, shard_gradients=4"),
    ("L32", {"schedule": "zb_v", "vpp": 3}, "schedule zb_v has two chunks per rank, not 3"),
    ("L33", {"schedule": "dualpipe_v", "vpp": 2}, "schedule dualpipe_v with tp=2 is not executed"),
    (
        "L34",
        {"schedule": "dualpipe_v", "vpp": 2, "tp": 1, "pp": 8, "layers": 16},
        "schedule dualpipe_v needs 16 micro-batches for pp=8, not 4; try zb_v",
    ),
    ("L25", {"ep": 2}, "ep=2, etp=1: the model has no experts"),
    ("L25", {"etp": 2}, "ep=1, etp=2: the model has no experts"),
    ("L26", MOE | {"ep": 4, "experts": 6}, "ep=4 does not divide experts=6; try ep 3 or 6"),
    ("L27", MOE | {"etp": 2, "expert_ffn_hidden": 17}, "etp=2 does not divide the experts' ffn"),
    ("L28", MOE | {"shared_ffn_hidden": 9}, "tp=2 does not divide shared_ffn_hidden=9"),
    (
        "L29",
        MOE | {"dp": 6, "global_batch": 24, "shard_optimizer": 3, "ep": 3, "experts": 6},
        "shard_optimizer=3 does not divide the edp=4 ranks that hold the same experts; try 2 or 4",
    ),
    (
        "L30",
        MOE | FLAT | ZERO_3 | {"shard_secondary": 2},
        "shard_secondary=2 is not executed by this version of the launcher with experts; try 0",
    ),
    ("L31", {"attention_sinks": True}, "attention_sinks=True, expert_bias=False"),
    ("L31", MOE | {"expert_bias": True}, "attention_sinks=False, expert_bias=True"),
]

LEGAL_TOO: list[dict[str, Any]] = [
    {},
    {"tp": 1, "seq_len": 129},
    {"sequence_parallel": False, "seq_len": 129},
    {"sliding_window": 128},
    {"positions": 128, "rotary_dim": 63},
    {"cp": 2, "shard_optimizer": 8},
    MOE | {"ep": 8},
    MOE | {"ep": 2, "etp": 2, "expert_ffn_hidden": 16},
    MOE | {"pp": 1, "shard_gradients": 4, "shard_weights": 4, "ep": 4},
    {"vocab": 1001},
    {"vpp": 2, "global_batch": 24},
    {"layers": 6, "pp": 4, "vpp": 2},
    {"pp": 1, "shard_gradients": 4},
    FLAT | ZERO_3 | {"shard_secondary": 2},
    FLAT | {"shard_gradients": 2},
    FLAT | {"shard_gradients": 2, "shard_weights": 2},
    FLAT | HOST | ZERO_3 | {"delayed_update": True},
    FLAT | HOST | {"delayed_update": True},
    {"pp": 1, "shard_gradients": 4, "shard_weights": 4},
    {"shard_optimizer": 1},
    {"shard_optimizer": 2},
]


def offers(rule_id: str, words: str, **changes: Any) -> list[int]:
    """Return the numbers a rule offers after ``words``; none where it is not broken."""
    facts = dataclasses.replace(LEGAL, **changes)
    rule = next(rule for rule in RULES if rule.id == rule_id)
    if not rule.broken(facts):
        return []
    offered = [int(number) for number in re.findall(r"\d+", rule.message(facts).split(words)[1])]
    assert offered
    return offered


@pytest.mark.parametrize(("rule", "changes", "words"), BROKEN)
def test_broken_rule_is_reported_alone(rule: str, changes: dict[str, Any], words: str) -> None:
    (problem,) = broken_rules(dataclasses.replace(LEGAL, **changes))

    assert problem.startswith(f"{rule}: ")
    assert words in problem


@pytest.mark.parametrize("changes", LEGAL_TOO)
def test_legal_layouts_have_no_problem(changes: dict[str, Any]) -> None:
    problems = broken_rules(dataclasses.replace(LEGAL, **changes))

    assert problems == []


def test_every_rule_has_a_case_and_a_source() -> None:
    tested = {rule for rule, _, _ in BROKEN}

    assert [rule.id for rule in RULES] == [f"L{i}" for i in range(1, len(RULES) + 1)]
    assert tested == {rule.id for rule in RULES}
    assert all(rule.source for rule in RULES)


def test_all_violations_are_reported_at_once() -> None:
    many: dict[str, Any] = {
        "heads": 9,
        "ffn_hidden": 97,
        "seq_len": 129,
        "global_batch": 33,
        "cp": 3,
    }

    found = broken_rules(dataclasses.replace(LEGAL, **many))

    assert [problem.split(":")[0] for problem in found] == ["L5", "L11", "L13", "L14", "L16"]


@given(
    tp=st.integers(1, 9),
    dp=st.integers(1, 9),
    pp=st.integers(1, 9),
    vpp=st.integers(1, 3),
    micro_batch=st.integers(1, 4),
    global_batch=st.integers(1, 64),
    seq_len=st.integers(1, 40),
    shard=st.tuples(*[st.integers(1, 4)] * 3),
)
def test_rules_always_answer_in_whole_sentences(
    shard: tuple[int, int, int], **changes: int
) -> None:
    names = ("shard_weights", "shard_gradients", "shard_optimizer")
    facts = dataclasses.replace(LEGAL, **changes, **dict(zip(names, shard, strict=True)))  # type: ignore[arg-type]

    for problem in broken_rules(facts):
        assert re.fullmatch(r"L\d+: \S.*\S", problem)
        assert "{" not in problem


@given(global_batch=st.integers(1, 200), dp=st.integers(1, 9), micro_batch=st.integers(1, 5))
def test_offered_batches_are_legal(global_batch: int, dp: int, micro_batch: int) -> None:
    changes = {"global_batch": global_batch, "dp": dp, "micro_batch": micro_batch}
    offered = offers("L16", "try global_batch", **changes)

    assert all(number % (dp * micro_batch) == 0 for number in offered)


@given(pp=st.integers(2, 9), micro_batches=st.integers(1, 60))
def test_offered_rounds_are_legal(pp: int, micro_batches: int) -> None:
    changes = {"pp": pp, "vpp": 2, "layers": 64, "dp": 1, "micro_batch": 1}
    offered = offers("L18", "try", **changes, global_batch=micro_batches)

    assert all(offers("L18", "try", **changes, global_batch=n) == [] for n in offered)


@given(pp=st.integers(2, 9), micro_batches=st.integers(1, 9))
def test_offered_pipelines_are_legal(pp: int, micro_batches: int) -> None:
    changes = {"pp": pp, "layers": 64, "dp": 1, "micro_batch": 1, "global_batch": micro_batches}
    offered = offers("L17", "try global_batch", **changes)

    assert offered == [] or offered == [pp, micro_batches]


@given(heads=st.integers(1, 128), tp=st.integers(1, 64))
def test_offered_tensor_degrees_are_legal(heads: int, tp: int) -> None:
    offered = offers("L11", "try tp", heads=heads, tp=tp)

    assert all(heads % number == 0 for number in offered)
