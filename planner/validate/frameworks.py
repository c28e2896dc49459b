"""What each framework does when a run does not say: the documented defaults, as data.

A row names its framework and keeps the rest in ``notes``; nothing here looks at an id.
"""

import re
from dataclasses import dataclass, field

from planner.spec.job import SoftwareSpec
from planner.units import MB

# GPT training code of 2019-2023: attention scores in memory, dropout 0.1, fused scale-mask-softmax,
# bias-gelu and bias-dropout-add kernels, blocking sends (Megatron-LM v2/v3 arguments).
_MEGATRON_OLD = SoftwareSpec(
    name="megatron-lm-2022",
    cpu_op_s=60e-6,
    flash_attention=False,
    dropout=True,
    overlap_grad_reduce=False,
    overlap_param_gather=False,
    reduce_scatter_gradients=False,
)
# Megatron-Core since 2024 with the NeMo or Bridge performance recipes: distributed optimizer with
# both overlaps, fused attention and loss, tensor-parallel overlap, asynchronous sends.
_MEGATRON_CORE = SoftwareSpec(
    name="megatron-core",
    fused_loss=True,
    overlap_pipeline=True,
    overlap_tensor_parallel=True,
)
_FSDP = SoftwareSpec(
    name="torch-fsdp",
    flash_version=2,
    fused_gradient_accumulation=False,
    selective_recomputes_products=True,
    regather_sequence=False,
    overlap_tp_wgrad=False,
    reduce_bytes=2,
    gradient_bytes=4,
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a framework assumes where a row has an empty cell."""

    software: SoftwareSpec
    zero_stage: int = 0
    recompute: str = "none"
    sequence_parallel: bool = False
    memory: str = "allocated"  # which counter the source prints: allocated, reserved or device
    unsupported: tuple[str, ...] = field(default=())


# First match wins; patterns are searched in the framework cell.
_TABLE: tuple[tuple[str, Defaults], ...] = (
    (r"Bridge", Defaults(_MEGATRON_CORE, 1, "none", True)),
    # 2024 containers: fused attention of FlashAttention 2 speed on Hopper
    (
        r"NeMo",
        Defaults(
            _MEGATRON_CORE.model_copy(update={"name": "nemo", "flash_version": 2}), 1, "none", True
        ),
    ),
    (r"Megatron-Core", Defaults(_MEGATRON_CORE, 1, "none", True)),
    (
        r"nanotron",
        Defaults(
            SoftwareSpec(
                name="nanotron",
                flash_version=2,
                regather_sequence=False,
                overlap_tp_wgrad=False,
                overlap_param_gather=False,
                reduce_scatter_gradients=False,
                fused_gradient_accumulation=False,
                balanced_stages=True,
                bucket_bytes=25 * MB,
                gather_bucket_bytes=2000 * MB,
                cpu_op_s=100e-6,
                # 0.39-0.6 ms per step over tp 2-32, hidden 2048-8192, where the pipeline crosses
                # nodes; absent inside a node and at tp 1. Cause not established.
                stalled_step_s=0.42e-3,
                # Runs with pipelines lose 1.05 s per micro-batch (0.53 s with two stages) in 1 of
                # 4 cases on 8-16 nodes, half on 32, nearly all on 64: a few slow nodes.
                slow_node_share=0.025,
                slow_node_message_s=0.265,
            ),
            1,
            "none",
            True,
            "reserved",
        ),
    ),
    (
        r"AA-Scaling",
        Defaults(
            SoftwareSpec(
                name="aa-scaling",
                overlap_grad_reduce=False,
                overlap_param_gather=False,
                overlap_tp_wgrad=False,
                reduce_bytes=2,
            ),
            1,
            "none",
            False,
        ),
    ),
    (r"MegaScale", Defaults(_MEGATRON_CORE.model_copy(update={"name": "megascale"}), 2, "selective", True)),
    (
        r"zero-bubble",
        Defaults(
            _MEGATRON_OLD.model_copy(
                update={"name": "zero-bubble", "flash_attention": True, "overlap_pipeline": True}
            )
        ),
    ),
    (r"Megatron|Aceso|Mist", Defaults(_MEGATRON_OLD, 0, "none", False)),
    (
        r"torchtitan",
        Defaults(_FSDP.model_copy(update={"name": "torchtitan"}), 3, "selective", True, "reserved"),
    ),
    (r"MaxText|PaxML", Defaults(_FSDP.model_copy(update={"name": "xla"}), 3, "none", False)),
    # MPT's ALiBi attention: Triton kernels of FlashAttention 1 (llm-foundry attn_impl)
    (
        r"foundry",
        Defaults(
            _FSDP.model_copy(update={"name": "llm-foundry", "flash_version": 1}),
            3,
            "none",
            False,
            "reserved",
        ),
    ),
    (r"FSDP|fsdp|ZeRO-3", Defaults(_FSDP, 3, "none", False, "reserved")),
    (r"DeepSpeed|ZeRO-2", Defaults(_FSDP.model_copy(update={"name": "deepspeed"}), 2, "none")),
    (r"", Defaults(SoftwareSpec(name="unknown"))),
)


def defaults_for(framework: str, notes: str, modern: bool = False) -> Defaults:
    """Return the defaults of ``framework``, refined by what the run's notes say of its kernels.

    ``modern``: the run uses what Megatron-LM has only since Megatron-Core (8-bit precision, experts,
    context parallelism, Hopper or newer GPUs).
    """
    if modern and framework == "Megatron-LM":
        framework = "Megatron-Core"
    found = next(entry for pattern, entry in _TABLE if re.search(pattern, framework))
    changes: dict[str, object] = {}
    kernels = re.search(r"kernels: ([^;]*)", notes)
    if kernels:
        name = kernels[1].lower()
        changes["flash_attention"] = "flash" in name
        changes["flash_version"] = 1 if "v1" in name else 2
        changes["fused_norm"] = "rms" in name
        changes["fused_kernels"] = "flash" in name or "fused" in name
    if re.search(r"\bno FlashAttention|FlashAttention off", notes):
        changes["flash_attention"] = False
    if re.search(r"FlashAttention on\b", notes):
        changes["flash_attention"] = True
    if "nvidia-smi" in notes:
        found = Defaults(
            found.software, found.zero_stage, found.recompute, found.sequence_parallel, "device"
        )
    if not changes:
        return found
    software = found.software.model_copy(update=changes)
    return Defaults(
        software, found.zero_stage, found.recompute, found.sequence_parallel, found.memory
    )
