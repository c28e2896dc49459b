"""What each framework does when a run does not say: the documented defaults, as data.

A row names its framework and keeps the rest in ``notes``; nothing here looks at an id.
"""

import re
from dataclasses import dataclass, replace

from planner.spec.job import SoftwareSpec
from planner.spec.software import (
    DEEPSPEED,
    DEEPSPEED_FP16,
    MEGASCALE,
    MEGATRON_2022,
    MEGATRON_CORE,
    MEGATRON_DEEPSPEED,
    MEGATRON_DEEPSPEED_FP16,
    NANOTRON,
    TORCH_FSDP,
    TORCH_FSDP2,
)

LONG_SEQUENCE = 2048


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a framework assumes where a row has an empty cell.

    ``memory`` is the counter its logs print: allocated, reserved or device. ``selective_share``:
    its selective recompute repeats whole layers, a share of them that rows do not state. Adapters
    of runs with LoRA: rank 32 and all four matrices of a layer are Megatron-Bridge's defaults
    (peft/lora.py); NeMo 1 has them beside qkv (megatron_gpt_finetuning_config.yaml).
    ``parallel_block``: it trains GPTs whose attention and MLP read the same input.
    """

    software: SoftwareSpec
    zero_stage: int = 0
    recompute: str = "none"
    sequence_parallel: bool = False
    memory: str = "allocated"
    selective_share: bool = False
    lora_rank: int = 32
    lora_targets: tuple[str, ...] = ("qkv", "projection", "mlp up", "mlp down")
    parallel_block: bool = False


def _but(software: SoftwareSpec, name: str, **changes: object) -> SoftwareSpec:
    return SoftwareSpec.model_validate(software.model_dump() | {"name": name, **changes})


# First match wins; patterns are searched in the framework cell.
_TABLE: tuple[tuple[str, Defaults], ...] = (
    # its paper and its pages checkpoint every layer
    (r"ZeRO-(3 )?Offload", Defaults(DEEPSPEED_FP16, 2, "full")),
    # NVIDIA's submissions: Megatron-Core on NeMo, cuDNN attention, 2-byte gradients
    (
        r"MLPerf",
        Defaults(_but(MEGATRON_CORE, "mlperf", gradient_bytes=2, reduce_bytes=2), 1, "none", True),
    ),
    # NeMo Automodel is FSDP2 and DTensor on Hugging Face models, not Megatron-Core
    (r"Automodel", Defaults(_but(TORCH_FSDP2, "automodel", moe_sends_once=True), 3)),
    # AMD's Primus runs Megatron-LM or torchtitan and logs what hipMemGetInfo says is in use
    (r"Primus.*titan", Defaults(_but(TORCH_FSDP2, "primus-titan"), 3, "selective", True, "device")),
    (
        r"Primus",
        Defaults(_but(MEGATRON_CORE, "primus", loss="in_place"), 1, "none", True, "device"),
    ),
    # performance recipes of NeMo and Bridge: grad_reduce_in_fp32=False
    (
        r"Bridge",
        Defaults(
            _but(MEGATRON_CORE, "bridge", gradient_bytes=2, reduce_bytes=2, moe_sends_once=True),
            1,
            "none",
            True,
        ),
    ),
    # without a recipe: --cross-entropy-loss-fusion is off
    (r"Megatron-Core", Defaults(_but(MEGATRON_CORE, "core", loss="in_place"), 1, "none", True)),
    # 2024 containers: fused attention of FlashAttention 2 speed on Hopper
    (
        r"NeMo",
        Defaults(
            _but(
                MEGATRON_CORE,
                "nemo",
                flash_version=2,
                gradient_bytes=2,
                reduce_bytes=2,
                loss="native",
            ),
            1,
            "none",
            True,
            lora_targets=("qkv",),
        ),
    ),
    (r"nanotron", Defaults(NANOTRON, 1, "none", True, "reserved")),
    (
        r"AA-Scaling",
        Defaults(
            _but(
                SoftwareSpec(),
                "aa-scaling",
                gathers_logits=True,
                overlap_grad_reduce=False,
                overlap_param_gather=False,
                overlap_tp_wgrad=False,
                gradient_bytes=2,
                reduce_bytes=2,
            ),
            1,
        ),
    ),
    (r"MegaScale", Defaults(MEGASCALE, 2, "selective", True, parallel_block=True)),
    # its runs (examples/pretrain_zero_bubble.sh, v0.1.0) set CUDA_DEVICE_MAX_CONNECTIONS=1, under
    # which transfers run in line with compute: zbpp_utils.py asks for 8 to overlap them
    (r"zero-bubble", Defaults(_but(MEGATRON_2022, "zero-bubble"))),
    (r"Megatron-DeepSpeed", Defaults(MEGATRON_DEEPSPEED)),
    (r"Megatron|Aceso|Mist", Defaults(MEGATRON_2022)),
    (r"torchtitan", Defaults(_but(TORCH_FSDP2, "torchtitan"), 3, "selective", True, "reserved")),
    (r"MaxText|PaxML", Defaults(_but(TORCH_FSDP, "xla"), 3)),
    # MPT's ALiBi attention: Triton kernels of FlashAttention 1 (llm-foundry attn_impl); its loss_fn
    # is fused_crossentropy, not in place
    (
        r"foundry",
        Defaults(
            _but(TORCH_FSDP, "llm-foundry", flash_version=1, loss="kernel"), 3, memory="reserved"
        ),
    ),
    # InternEvo: FlashAttention 2, fused norm and loss, 2-byte gradients; parallel.zero1 shards the
    # optimizer over all ranks unless told otherwise (doc/en/parallel.md)
    (
        r"InternEvo|InternLM",
        Defaults(
            _but(
                MEGATRON_CORE,
                "internevo",
                flash_version=2,
                gradient_bytes=2,
                reduce_bytes=2,
                loss="in_place",
                dummy_gradients=False,
                quantised_inputs=False,
                fused_gradient_accumulation=False,
                overlap_tp_wgrad=False,
            ),
            1,
            "none",
            True,
        ),
    ),
    # its distributed recipes set enable_activation_checkpointing and a loss in chunks
    (r"torchtune", Defaults(_but(TORCH_FSDP, "torchtune", loss="kernel"), 3, "full")),
    (r"torchao", Defaults(_but(TORCH_FSDP2, "torchao"), 3, "selective", True, "reserved")),
    (r"OneFlow|LiBai", Defaults(_but(MEGATRON_2022, "oneflow"))),
    (r"DeepSpeed|ZeRO-2", Defaults(DEEPSPEED, 2)),
    # --selective_checkpointing names the share of blocks (fms_fsdp/config/training.py)
    (r"fms", Defaults(TORCH_FSDP, 3, memory="reserved", selective_share=True)),
    (r"FSDP|ZeRO-3", Defaults(TORCH_FSDP, 3, memory="reserved")),
    (r"", Defaults(_but(SoftwareSpec(), "unknown"))),
)


def defaults_for(
    framework: str,
    notes: str,
    modern: bool = False,
    seq_len: int = 0,
    precision: str = "bf16",
    model: str = "",
) -> Defaults:
    """Return the defaults of ``framework``, refined by what the run's notes say of its kernels.

    ``modern``: the run uses what Megatron-LM has only since Megatron-Core (8-bit precision,
    experts, context parallelism, Hopper or newer GPUs). ``model``: the run's own name.
    """
    if modern and framework == "Megatron-LM":
        framework = "Megatron-Core"
    found = next(entry for pattern, entry in _TABLE if re.search(pattern, framework))
    if found.software is MEGATRON_DEEPSPEED and precision == "fp16":
        found = replace(found, software=MEGATRON_DEEPSPEED_FP16)
    changes = _kernels(notes, seq_len) | _test_kernels(notes, seq_len, model)
    if changes:
        found = replace(found, software=found.software.model_copy(update=changes))
    stage = re.search(r"ZeRO-(\d)", framework)
    if stage:
        found = replace(found, zero_stage=int(stage[1]))
    if "nvidia-smi" in notes:
        found = replace(found, memory="device")
    return found


def _kernels(notes: str, seq_len: int) -> dict[str, object]:
    """Return what the notes say of attention and norm kernels."""
    changes: dict[str, object] = {}
    kernels = re.search(r"kernels: ([^;]*)", notes)
    if kernels:
        name = kernels[1].lower()
        changes["flash_attention"] = "flash" in name
        changes["flash_version"] = 1 if "v1" in name else 2
        changes["fused_norm"] = "rms" in name
        changes["fused_kernels"] = "flash" in name or "fused" in name
        changes["fused_activation"] = False
    if re.search(r"\bno FlashAttention|FlashAttention off", notes):
        changes["flash_attention"] = False
    if re.search(r"FlashAttention on\b", notes):
        changes["flash_attention"] = True
    if re.search("hybridep|deepep", notes, re.IGNORECASE):
        changes["moe_sends_once"] = True
    if re.search("alltoall|token ?drop", notes, re.IGNORECASE):
        changes["moe_sends_once"] = False
    if re.search(r"EP (all-to-all )?overlap on", notes):
        changes["overlaps_experts"] = True
    graphs = re.search(r"cuda graphs (\w+)", notes)
    if graphs:
        changes["cuda_graphs"] = "all" if graphs[1] == "full_iteration" else "attention"
    if re.search(r"\beager\b", notes):  # without torch.compile nothing fuses element-wise kernels
        changes |= {"fused_kernels": False, "fused_norm": False, "fused_activation": False}
    if "compile" in notes and not re.search(r"torch 2\.[0-6]\b", notes):
        changes["loss"] = "fused"  # torchtitan compiles the loss too since 2025
    return changes


def _test_kernels(notes: str, seq_len: int, model: str) -> dict[str, object]:
    """Return the kernels of a run of Megatron-LM's functional tests, whose notes name the backend.

    Left at its default, the backend follows ``--transformer-impl``: the names of these tests say
    ``te`` where Transformer Engine picks a flash kernel (deterministic mode excludes only the fused
    one of cuDNN); the others run ``local`` layers, which keep the scores. Dropout is Megatron-LM's
    default of 0.1, which tests on long sequences turn off.
    """
    backend = re.search(r"attention backend (\w+)", notes)
    if not backend:
        return {}
    local = "mcore_tp" in model and "_te" not in model
    scores = backend[1] in ("unfused", "local") or (backend[1] == "default" and local)
    changes: dict[str, object] = {
        "flash_attention": not scores,
        "dropout": seq_len <= LONG_SEQUENCE,
        # each switches on something that its row does not state: 5th to 95th percentile of 144
        "memory_spread": (0.89, 1.25),
    }
    if "cross_entropy_loss_fusion" in model:
        changes["loss"] = "native"
    return changes
