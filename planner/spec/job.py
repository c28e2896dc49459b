"""The training job: batch, sequence, precision, and what the software can do."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator

from planner.spec.optimizer import OPTIMIZERS
from planner.units import MIB

# Bytes of a number in blocks with scales: one fp32 scale per tensor or 128 numbers, one byte for 32
# (MX), one byte for 16 half-byte numbers (NV).
QUANTISED_BYTES = {
    "fp8": 1.0,
    "fp8_block": 1 + 4 / 128,
    "mxfp8": 1 + 1 / 32,
    "nvfp4": 1 / 2 + 1 / 16,
}


class SoftwareSpec(BaseModel):
    """What a framework does that costs or saves time and memory.

    Every field is a named property of a framework, never a correction factor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "torch"
    flash_attention: bool = True
    flash_version: PositiveInt = Field(3, description="1, 2 or 3: kernels of one paper.")
    fused_kernels: bool = Field(True, description="Fused rotary and softmax.")
    fused_activation: bool = Field(True, description="Fused SwiGLU, or bias and GeLU.")
    fused_norm: bool = True
    gathers_logits: bool = Field(
        False, description="Every tensor-parallel rank computes the loss of the whole vocabulary."
    )
    loss: Literal["eager", "kernel", "in_place", "native", "remade", "fused"] = Field(
        "eager",
        description="Cross-entropy over fp32 copies, one kernel, over one fp32 copy in place "
        "(Megatron's vocabulary-parallel loss), over two (its native fusion), one remade in the "
        "backward pass, or one kernel whose gradient takes the room of the logits.",
    )
    dropout: bool = Field(False, description="Keep dropout masks (GPT of 2019-2022).")
    fused_gradient_accumulation: bool = Field(
        True, description="The weight-gradient product adds to the fp32 gradient itself."
    )
    selective_recomputes_products: bool = Field(
        False,
        description="Selective recompute repeats every other product and all element-wise kernels "
        "(torch) instead of the attention core (Megatron).",
    )
    balanced_stages: bool = Field(
        False, description="Stages are split by matrix sizes, the output matrix included."
    )
    bucket_bytes: PositiveInt = Field(
        160_000_000, description="Gradient bytes of one reduction (Megatron-Core: 40M fp32)."
    )
    gather_bucket_bytes: PositiveInt = Field(
        80_000_000, description="Weight bytes of one gathering after the optimizer."
    )
    gradient_bytes: PositiveInt = Field(4, description="Bytes of a main gradient: fp32 4, bf16 2.")
    lazy_gradients: bool = Field(
        False, description="The backward pass makes the gradients; the step frees them (torch)."
    )
    backward_gradient_bytes: float = Field(
        0.0, ge=0, description="Bytes of a second gradient, freed before the optimizer step."
    )
    reserve_share: float = Field(
        0.053,
        ge=0,
        description="What torch reserves beyond what it has allocated at the peak, as a share: "
        "segments, split blocks that no request fits. Mean of 19 configurations on 8 B200 (0.028 "
        "to 0.093; SimuMax 1.2).",
    )
    context_bytes: PositiveInt = Field(
        500 * MIB,
        description="CUDA context with its kernels, and what libraries take beside torch.",
    )
    memory_spread: tuple[float, float] = Field(
        (0.85, 1.35),
        description="Peak bytes of measured runs, as shares of the estimate: a 5th and a 95th "
        "percentile. As shipped, of runs of every software together.",
    )
    quantised_inputs: bool = Field(
        False,
        description="8-bit and 4-bit products keep their quantised input for the weight gradient "
        "(Transformer Engine), not the 16-bit one; tensor parallelism gathers it so.",
    )
    sharded_master: bool = Field(
        False, description="A sharded weight is the fp32 weight itself, gathered in 2 bytes (FSDP)."
    )
    vocab_multiple: PositiveInt = Field(
        1, description="The vocabulary is padded to a multiple of this per tensor-parallel rank."
    )
    tied_stage_keeps_positions: bool = Field(
        False, description="The last stage copies the whole embedding module (DeepSpeed)."
    )
    dummy_gradients: bool = Field(
        False, description="Transformer Engine keeps a 2-byte dummy gradient per weight shape."
    )
    optimizer_temporary_bytes: float = Field(
        0.0, ge=0, description="Bytes per parameter that an unfused optimizer step allocates."
    )
    optimizer_bytes: PositiveInt = Field(
        12,
        description="fp32 master, momentum, variance of AdamW; another optimizer (spec.optimizer) "
        "has its own state in place of the last 8.",
    )
    reduce_bytes: PositiveInt = Field(4, description="Bytes of a gradient on the wire.")
    reduce_scatter_gradients: bool = Field(
        True, description="ZeRO-1 reduces each gradient only where it is used."
    )
    streams_gradients: bool = Field(
        False,
        description="Gradients of an optimizer on the host leave the GPU in the backward pass "
        "(DeepSpeed, FSDP), not from a whole buffer in the optimizer step (Megatron-Core).",
    )
    host_weight_bytes: PositiveInt = Field(
        2, description="Bytes of a weight on its way from the host: 2, or the fp32 one (FSDP)."
    )
    overlap_grad_reduce: bool = Field(True, description="Reduction runs behind the backward pass.")
    reduces_after_pipeline: bool = Field(
        False, description="Under a pipeline, gradients are reduced after the last pass (FSDP2)."
    )
    waits_for_all: bool = Field(
        False,
        description="Ranks wait for each other at the end of every step, so none begins the next "
        "one early as zero-bubble runtimes do.",
    )
    overlap_param_gather: bool = True
    quantised_weight_gather: bool = Field(
        False, description="Sharded weights are gathered as 8-bit blocks (ZeRO++'s qwZ)."
    )
    quantised_gradient_reduction: bool = Field(
        False,
        description="Sharded gradients are summed by all-to-alls of 4-bit blocks, inside a node "
        "and then across (ZeRO++'s qgZ).",
    )
    overlap_tp_wgrad: bool = Field(
        True, description="Backward TP collectives run behind the weight-gradient product."
    )
    tp_overlap_chunks: PositiveInt = Field(
        1,
        description="Sequence-parallel collectives run in so many chunks beside the product that "
        "they feed or follow (MegaScale, --tp-comm-overlap); 1: before or after it.",
    )
    overlap_pipeline: bool = Field(False, description="Sends and receives run behind compute.")
    exchange_wait_s: float = Field(
        0.0,
        ge=0,
        description="Host time for which the GPU stands still after each exchange between stages "
        "that is not overlapped: the code waits for the device before it issues more.",
    )
    scatter_gather_pipeline: bool = Field(
        False, description="Each TP rank sends its share of a micro-batch; the receivers gather."
    )
    context_exchange: Literal["ring", "all_gather", "all_to_all"] = Field(
        "ring", description="How context-parallel ranks see each other's keys and values."
    )
    regather_sequence: bool = Field(
        True, description="SP keeps the shard and gathers again in backward (Megatron)."
    )
    overlap_regather: bool = Field(
        True, description="The second gather runs behind the input-gradient product."
    )
    stalled_step_s: float = Field(
        0.0,
        ge=0,
        description="Added to each ring step of a TP collective while the pipeline waits for a "
        "receive from another node.",
    )
    slow_node_share: float = Field(
        0.0, ge=0, lt=1, description="Share of nodes whose pipeline messages take far too long."
    )
    slow_node_message_s: float = Field(0.0, ge=0, description="Seconds of one such message.")
    keeps_receive_buffers: bool = Field(
        False,
        description="Every micro-batch has buffers of its own for what neighbour stages send.",
    )
    copies_gathered: bool = Field(
        False,
        description="Gathered weights are copied out into tensors of their own, and gradients into "
        "the buffer that is reduced, between the passes of layers (FSDP2).",
    )
    copies_sequence_shards: bool = Field(
        False,
        description="The sequence is not the outermost dimension, so a copy puts what is gathered "
        "along it in order, and what is reduced (torch's functional collectives).",
    )
    whole_table_gradient: bool = Field(
        False, description="Under tensor parallelism the embedding has its whole gradient."
    )
    moe_sends_once: bool = Field(
        False,
        description="A token crosses the network once for each domain that holds experts of its "
        "(DeepEP, HybridEP), not once for each expert.",
    )
    cpu_op_s: float = Field(6e-6, ge=0, description="Host time to issue one operator eagerly.")
    cuda_graphs: Literal["none", "attention", "all"] = Field(
        "none", description="What is replayed as CUDA graphs, at no host time per operator."
    )
    overlaps_experts: bool = Field(
        False,
        description="The exchanges of experts run behind the compute of another micro-batch.",
    )

    def __hash__(self) -> int:
        """Hash by name: records are keys of many caches; equality compares all fields."""
        return hash(self.name)


class RoutingSpec(BaseModel):
    """How unevenly tokens are routed to the ranks that hold experts; 1 is even."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fullest_rank: float = Field(1.0, ge=1, description="Tokens of the fullest rank ÷ the mean.")
    exchanged: float = Field(
        1.0, ge=0, description="Tokens that a rank receives at most ÷ those of even routing."
    )


class JobSpec(BaseModel):
    """One training job. Batch sizes are in sequences, lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_batch: PositiveInt
    seq_len: PositiveInt
    precision: str = Field("bf16", description="bf16, fp16, fp8, mxfp8 or nvfp4.")
    lora_rank: NonNegativeInt = Field(
        0, description="Rank of the adapters that are trained beside frozen weights; 0: none."
    )
    lora_targets: tuple[str, ...] = Field(
        ("qkv", "projection", "mlp up", "mlp down"),
        description="Matrices with adapters, by the names of model.matrices.",
    )
    optimizer: str = Field("adamw", description=f"One of {', '.join(OPTIMIZERS)}.")
    software: SoftwareSpec = SoftwareSpec()
    routing: RoutingSpec = RoutingSpec()

    @field_validator("optimizer")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(f"{name!r} is not known; use one of {', '.join(OPTIMIZERS)}")
        return name

    @property
    def input_bytes(self) -> float:
        """Bytes of a number of its input that a product keeps and tensor parallelism gathers."""
        if not self.software.quantised_inputs:
            return 2.0
        return QUANTISED_BYTES.get(self.precision, 2.0)
