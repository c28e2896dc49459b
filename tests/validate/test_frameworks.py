"""Which software a framework cell stands for, and what the notes of a run change about it."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.layout import Recompute
from planner.spec.job import SoftwareSpec
from planner.validate.frameworks import Defaults, defaults_for
from tests.properties.strategies import quick


class Known(NamedTuple):
    """A framework cell and what it stands for."""

    cell: str
    name: str  # how the software's name begins
    zero_stage: int
    recompute: str
    sequence_parallel: bool
    memory: str


# every framework cell of the public files of measured runs, and of others like them
CELLS = [
    Known("Megatron-Bridge", "bridge", 1, "none", True, "allocated"),
    Known("MLPerf NeMo", "mlperf", 1, "none", True, "allocated"),
    Known("NeMo-Automodel", "automodel", 3, "none", False, "allocated"),
    Known("Primus (Megatron-LM)", "primus", 1, "none", True, "device"),
    Known("Primus (torchtitan)", "primus-titan", 3, "selective", True, "device"),
    Known("InternEvo", "internevo", 1, "none", True, "allocated"),
    Known("torchtune", "torchtune", 3, "full", False, "allocated"),
    Known("torchao", "torchao", 3, "selective", True, "reserved"),
    Known("OneFlow", "oneflow", 0, "none", False, "allocated"),
    Known("Megatron-Core with MoE Parallel Folding", "", 1, "none", True, "allocated"),
    Known("Megatron-Core 5D without folding", "", 1, "none", True, "allocated"),
    Known("NeMo", "nemo", 1, "none", True, "allocated"),
    Known("nanotron", "nanotron", 1, "none", True, "reserved"),
    Known("AA-Scaling (Aleph Alpha)", "aa-scaling", 1, "none", False, "allocated"),
    Known("MegaScale", "megascale", 2, "selective", True, "allocated"),
    Known("Megatron-LM + zero-bubble", "zero-bubble", 0, "none", False, "allocated"),
    Known("Megatron-LM", "megatron", 0, "none", False, "allocated"),
    Known("Megatron-LM / DeepSpeed", "megatron", 0, "none", False, "allocated"),
    Known("Megatron-DeepSpeed", "megatron", 0, "none", False, "allocated"),
    Known("Megatron-DeepSpeed + SSDTrain", "megatron", 0, "none", False, "allocated"),
    Known("Aceso (Megatron-based)", "megatron", 0, "none", False, "allocated"),
    Known("Aceso runtime with a Megatron-style layout", "megatron", 0, "none", False, "allocated"),
    Known("Mist", "megatron", 0, "none", False, "allocated"),
    Known("Mist executor", "megatron", 0, "none", False, "allocated"),
    Known("torchtitan", "torchtitan", 3, "selective", True, "reserved"),
    Known("MaxText", "xla", 3, "none", False, "allocated"),
    Known("PaxML", "xla", 3, "none", False, "allocated"),
    Known("llm-foundry (FSDP)", "llm-foundry", 3, "none", False, "reserved"),
    Known("fms-fsdp", "torch-fsdp", 3, "none", False, "reserved"),
    Known("FSDP (paper baseline)", "torch-fsdp", 3, "none", False, "reserved"),
    Known("FSDP+EP (paper baseline)", "torch-fsdp", 3, "none", False, "reserved"),
    Known("DeepSpeed ZeRO-3", "deepspeed", 3, "none", False, "allocated"),
    Known("DeepSpeed", "deepspeed", 2, "none", False, "allocated"),
    Known("HF Trainer + DeepSpeed", "deepspeed", 2, "none", False, "allocated"),
    Known("ZeRO-2", "deepspeed", 2, "none", False, "allocated"),
    Known("PyTorch DDP", "unknown", 0, "none", False, "allocated"),
    Known("ColossalAI", "unknown", 0, "none", False, "allocated"),
    Known("", "unknown", 0, "none", False, "allocated"),
]


def software(cell: str, notes: str = "", modern: bool = False) -> SoftwareSpec:
    return defaults_for(cell, notes, modern).software


@pytest.mark.parametrize("known", CELLS, ids=lambda known: known.cell or "empty")
def test_a_framework_cell(known: Known) -> None:
    found = defaults_for(known.cell, "")

    assert found.software.name.startswith(known.name)
    assert (found.zero_stage, found.recompute) == (known.zero_stage, known.recompute)
    assert (found.sequence_parallel, found.memory) == (known.sequence_parallel, known.memory)


def test_different_software_has_different_names() -> None:
    """Records are hashed by name, so one name for two records slows every cache."""
    by_name: dict[str, set[SoftwareSpec]] = {}
    for known in CELLS:
        found = software(known.cell)
        by_name.setdefault(found.name, set()).add(found)

    assert {name for name, records in by_name.items() if len(records) > 1} == set()


@pytest.mark.parametrize(
    ("cell", "flash"),
    [
        ("Megatron-LM", False),
        ("Megatron-DeepSpeed", False),
        ("NeMo", True),
        ("Megatron-Bridge", True),
        ("nanotron", True),
        ("llm-foundry (FSDP)", True),
        ("torchtitan", True),
    ],
)
def test_fused_attention_came_after_megatron_of_2022(cell: str, flash: bool) -> None:
    assert software(cell).flash_attention == flash


def test_megatron_lm_on_newer_hardware_is_megatron_core() -> None:
    old, new = software("Megatron-LM"), software("Megatron-LM", modern=True)

    assert (old.dropout, new.dropout) == (True, False)
    assert new == software("Megatron-Core")


@pytest.mark.parametrize("known", CELLS, ids=lambda known: known.cell or "empty")
def test_newer_hardware_changes_no_other_framework(known: Known) -> None:
    if known.cell != "Megatron-LM":
        assert defaults_for(known.cell, "", True) == defaults_for(known.cell, "")


@pytest.mark.parametrize(
    ("kernels", "flash", "version", "fused_norm", "fused_kernels"),
    [
        ("flash_attention2 + RMS kernel", True, 2, True, True),
        ("flash_attention2", True, 2, False, True),
        ("flash_attentionv1.0.8", True, 1, False, True),
        ("fused", False, 2, False, True),
        ("torch", False, 2, False, False),
    ],
)
def test_kernels_in_the_notes(
    kernels: str, flash: bool, version: int, fused_norm: bool, fused_kernels: bool
) -> None:
    found = software(
        "AA-Scaling (Aleph Alpha)", f"vocab 128k; kernels: {kernels}; batch from paper"
    )

    assert (found.flash_attention, found.flash_version) == (flash, version)
    assert (found.fused_norm, found.fused_kernels) == (fused_norm, fused_kernels)


@pytest.mark.parametrize(
    ("notes", "cell", "flash"),
    [
        ("kind=speedup_only;FlashAttention on;speedup 1.4", "Megatron-LM", True),
        ("kind=speedup_only;FlashAttention off;speedup 1.1", "nanotron", False),
        ("Mist layout, no FlashAttention;Mist predicted", "NeMo", False),
        ("nothing about attention", "NeMo", True),
    ],
)
def test_flash_attention_in_the_notes(notes: str, cell: str, flash: bool) -> None:
    assert software(cell, notes).flash_attention == flash


@pytest.mark.parametrize("known", CELLS, ids=lambda known: known.cell or "empty")
def test_nvidia_smi_in_the_notes_is_the_memory_of_the_device(known: Known) -> None:
    plain = defaults_for(known.cell, "memory as printed by the framework")
    smi = defaults_for(known.cell, "memory by nvidia-smi; one iteration")

    assert smi.memory == "device"
    assert smi.software == plain.software


def test_foundry_computes_its_loss_in_one_kernel() -> None:
    assert software("llm-foundry (FSDP)").loss == "kernel"
    assert software("fms-fsdp").loss == "eager"


@pytest.mark.parametrize("notes", ["dispatcher hybridep", "HybridEP; EP overlap on", "DeepEP"])
def test_dispatchers_that_send_a_token_once_to_each_node(notes: str) -> None:
    assert software("Megatron-Bridge", notes).moe_sends_once
    assert not software("Megatron-Bridge", "dispatcher alltoall").moe_sends_once


@pytest.mark.parametrize(
    ("notes", "field", "expected"),
    [
        ("cuda graphs full_iteration", "cuda_graphs", "all"),
        ("cuda graphs transformer_engine", "cuda_graphs", "attention"),
        ("cuda graphs moe_router+moe_preprocess", "cuda_graphs", "attention"),
        ("no graphs", "cuda_graphs", "none"),
        ("EP all-to-all overlap on", "overlaps_experts", True),
        ("EP overlap on; HybridEP", "overlaps_experts", True),
        ("EP overlap off; HybridEP", "overlaps_experts", False),
        ("dropless", "moe_sends_once", True),  # the recipes use DeepEP or HybridEP
        ("alltoall fallback", "moe_sends_once", False),
        ("container 25.09; tokendrop", "moe_sends_once", False),
    ],
)
def test_what_the_notes_of_a_recipe_say(notes: str, field: str, expected: object) -> None:
    assert getattr(software("Megatron-Bridge", notes), field) == expected


def test_an_eager_run_fuses_no_element_wise_kernels() -> None:
    eager, compiled = software("torchtitan", "eager"), software("torchtitan", "torch.compile")

    for name in ("fused_norm", "fused_kernels", "fused_activation"):
        assert getattr(compiled, name)
        assert not getattr(eager, name)


@pytest.mark.parametrize(
    ("notes", "loss"),
    [("eager", "eager"), ("torch 2.6 nightly; compile", "eager"), ("compile; float8", "fused")],
)
def test_a_compiled_step_fuses_the_loss(notes: str, loss: str) -> None:
    assert software("torchtitan", notes).loss == loss


@pytest.mark.parametrize(
    ("model", "backend", "flash"),
    [
        ("gpt3_mcore_te_tp1_pp2", "default", True),
        ("gpt3_mcore_tp1_pp2", "default", False),
        ("gpt3_mcore_tp2_cp2_pp2_ep2_te_4experts2parallel", "default", True),
        ("gpt3_mcore_te_tp1_pp2", "unfused", False),
        ("bert_mcore_tp2_pp2_local_spec", "local", False),
        ("gpt3_mcore_te_tp1_pp2", "flash", True),
    ],
)
def test_attention_of_megatron_tests(model: str, backend: str, flash: bool) -> None:
    notes = f"CI golden values; deterministic mode; attention backend {backend}; container dev"
    found = defaults_for("Megatron-Core", notes, seq_len=1024, model=model).software

    assert found.flash_attention is flash
    assert found.dropout is True
    assert defaults_for("Megatron-Core", notes, seq_len=8192, model=model).software.dropout is False


def test_a_test_of_the_fused_loss_runs_the_native_one() -> None:
    notes = "CI golden values; attention backend default"
    model = "gpt3_mcore_te_tp2_pp2_cross_entropy_loss_fusion"

    assert defaults_for("Megatron-Core", notes, model=model).software.loss == "native"
    assert defaults_for("Megatron-Core", notes).software.loss == "in_place"


@given(st.text(alphabet="abc =;:0123", max_size=40), st.sampled_from(CELLS))
@quick
def test_notes_about_other_things_change_nothing(notes: str, known: Known) -> None:
    assert defaults_for(known.cell, notes) == defaults_for(known.cell, "")


@given(st.text(max_size=30))
@quick
def test_any_framework_has_defaults_that_exist(cell: str) -> None:
    found = defaults_for(cell, "")

    assert isinstance(found, Defaults)
    assert found.recompute in set(Recompute)
    assert found.zero_stage in range(4)
    assert found.memory in ("allocated", "reserved", "device")


def test_a_zero_stage_in_the_cell_is_that_stage() -> None:
    stages = [defaults_for(f"TP+EP+DP ZeRO-{n} (paper baseline)", "").zero_stage for n in (1, 2, 3)]

    assert stages == [1, 2, 3]
