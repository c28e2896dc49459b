"""Named training stacks: what each does that costs or saves time and memory.

Every value is a documented default of that software; ``validate`` replays measured runs with them.
"""

from planner.spec.job import SoftwareSpec
from planner.units import MB, MIB

# GPT training code of 2019-2023: attention scores in memory, dropout 0.1, fused scale-mask-softmax,
# bias-gelu and bias-dropout-add kernels, blocking sends (Megatron-LM v2/v3 arguments). Host time:
# fit over 160 host-bound single-node A100 runs of vTrain (3.0 ms per layer with full recompute).
MEGATRON_2022 = SoftwareSpec(
    name="megatron-lm-2022",
    vocab_multiple=128,
    loss="in_place",
    scatter_gather_pipeline=True,  # PTD-P section 4.1, --no-scatter-gather-tensors-in-pipeline
    # its exchanges end in torch.cuda.synchronize() (Megatron-LM issue 420). Median of 132 pairs of
    # vTrain's runs in one node, alike but for their stages; quartiles 0.22 and 0.94 ms
    exchange_wait_s=0.48e-3,
    reserve_share=0.216,  # median of 124 logged stages of BigScience's runs (0.199 to 0.235)
    # before CUDA 11.7 a context held every kernel of torch: 1,687 MB with torch 1.8 and CUDA 11.1
    # (pytorch issue 55277), against some 300 today (issue 107667)
    context_bytes=1600 * MIB,
    memory_spread=(0.93, 1.15),  # 90 runs of papers, the zero-bubble code and V100s that state all
    cpu_op_s=57e-6,
    flash_attention=False,
    dropout=True,
    overlap_grad_reduce=False,
    overlap_param_gather=False,
    reduce_scatter_gradients=False,
)
# The same code in fp16 before it had contiguous fp32 gradient buffers: 2-byte gradients stay beside
# the fp32 copies of the optimizer. 140 logged stages of BigScience runs: 20 bytes per parameter
# after the step to 0.2 %, and 2 more at the peak, which lies in the backward pass.
MEGATRON_2021_FP16 = MEGATRON_2022.model_copy(
    update={
        "name": "megatron-lm-2021-fp16",
        "gradient_bytes": 6,
        "backward_gradient_bytes": 2.0,
        "fused_gradient_accumulation": False,
    }
)
# Megatron-DeepSpeed with DeepSpeed's bf16 optimizer: 2-byte gradients beside an fp32 accumulator.
MEGATRON_DEEPSPEED = MEGATRON_2022.model_copy(
    update={
        "name": "megatron-deepspeed",
        "gradient_bytes": 6,
        # forked in 2021, before Megatron-LM 2.6 brought both
        "overlap_tp_wgrad": False,
        "fused_gradient_accumulation": False,
        "tied_stage_keeps_positions": True,
        "memory_spread": (0.95, 1.18),  # 55 runs of BigScience on A100 that print nvidia-smi
    }
)
# The same with DeepSpeed's fp16 optimizer: 2-byte gradients until the step, which makes fp32 ones
# of them and frees both. 15 logged stages: 14.1 bytes per parameter after the step, 20.1 in it.
MEGATRON_DEEPSPEED_FP16 = MEGATRON_DEEPSPEED.model_copy(
    update={
        "name": "megatron-deepspeed-fp16",
        "gradient_bytes": 2,
        "lazy_gradients": True,
        "optimizer_temporary_bytes": 4.0,
    }
)
# Megatron-Core since 2024 with the NeMo or Bridge performance recipes: distributed optimizer with
# both overlaps, fused attention and loss, asynchronous sends.
MEGATRON_CORE = SoftwareSpec(
    name="megatron-core",
    # Its own tests, whose 0.3 to 1 ms of kernels per layer leave the GPU idle: 98 to 148 us for
    # each operator of ours on H100 hosts, median 115 of 13 runs with local layers
    cpu_op_s=100e-6,
    vocab_multiple=128,
    loss="fused",
    dummy_gradients=True,
    quantised_inputs=True,
    overlap_pipeline=True,
    # 43 runs on B200 lie within 1 % of what is allocated (tests/memory), where torch reserved 3 to
    # 9 % more; 10 of Megatron-Bridge and NeMo, which state less, at 0.87 to 1.12
    memory_spread=(0.88, 1.12),
)
# MegaScale (NSDI 24), section 3: Megatron-LM of 2023 with FlashAttention 2 and fused kernels, and
# all three kinds of communication behind compute. How many chunks it cuts is not said; four, as
# Transformer Engine splits for --tp-comm-overlap (from memory).
MEGASCALE = MEGATRON_CORE.model_copy(
    update={"name": "megascale", "flash_version": 2, "tp_overlap_chunks": 4}
)
# torch FSDP and its users: FlashAttention 2 behind SDPA, 2-byte gradients on the wire, gradients
# added by a kernel of their own, gathered sequence-parallel inputs kept (torch DTensor).
TORCH_FSDP = SoftwareSpec(
    name="torch-fsdp",
    flash_version=2,
    fused_gradient_accumulation=False,
    selective_recomputes_products=True,
    regather_sequence=False,
    overlap_tp_wgrad=False,
    reduces_after_pipeline=True,
    keeps_receive_buffers=True,
    reduce_bytes=2,
    gradient_bytes=4,
    lazy_gradients=True,
    sharded_master=True,
    memory_spread=(0.92, 1.1),  # eight runs of torchtitan that state all: 0.92 to 1.07
    streams_gradients=True,
    host_weight_bytes=4,
)
# FSDP2 with DTensor, as torchtitan uses it: gradients travel in fp32 (MixedPrecisionPolicy with
# reduce_dtype float32, mixed_precision_reduce of torchtitan).
TORCH_FSDP2 = TORCH_FSDP.model_copy(
    update={
        "name": "torch-fsdp2",
        "reduce_bytes": 4,
        "copies_gathered": True,
        "copies_sequence_shards": True,
    }
)
TORCHTITAN = TORCH_FSDP2.model_copy(update={"name": "torchtitan"})
TORCHTITAN_COMPILED = TORCH_FSDP2.model_copy(
    update={"name": "torchtitan compiled", "loss": "fused"}
)
# DeepSpeed's ZeRO keeps a 2-byte share beside the fp32 one. AdamW is torch's own, unfused: two fp32
# temporaries (a user's out-of-memory message shows them: tests/data/reports, case-0454).
DEEPSPEED = TORCH_FSDP.model_copy(
    update={
        "name": "deepspeed",
        "sharded_master": False,
        "optimizer_temporary_bytes": 8.0,
        "memory_spread": (0.85, 1.35),
        "host_weight_bytes": 2,
    }
)
# DeepSpeed of 2020 and 2021 in fp16, as ZeRO-Offload's own runs: attention scores in memory,
# dropout, DeepSpeed's fused Adam (csrc/adam), 2-byte gradients, the loss of Megatron.
DEEPSPEED_FP16 = DEEPSPEED.model_copy(
    update={
        "name": "deepspeed-fp16",
        "flash_attention": False,
        "dropout": True,
        "loss": "in_place",
        "gradient_bytes": 2,
        "optimizer_temporary_bytes": 0.0,
        "overlap_param_gather": False,
    }
)
# ZeRO++ (arXiv 2306.10209): both formats; --shard states the second copy. Stage 3 overlaps.
ZERO_PP = DEEPSPEED.model_copy(
    update={
        "name": "zero++",
        "quantised_weight_gather": True,
        "quantised_gradient_reduction": True,
    }
)
# The torch launcher of this package: FSDP2, DTensor tensor parallelism, torch pipelining with
# blocking sends; gradients are reduced in fp32; "selective" repeats nothing.
TORCH_LAUNCHER = TORCH_FSDP2.model_copy(
    update={
        "name": "torch-launcher",
        "loss": "remade",
        "context_exchange": "all_gather",
        "whole_table_gradient": True,
        "selective_recomputes_products": False,
        # traced peaks are 0.97 to 1.00 of the estimate (tests/oracle), and torch reserved 3 to 9 %
        # beyond what it had allocated where that was measured; no GPU has confirmed it
        "memory_spread": (0.93, 1.05),
        "fused_kernels": False,  # eager rotary; SwiGLU keeps its two inputs, torch's norm is fused
        "cpu_op_s": 15e-6,
        "waits_for_all": True,  # the step time is the slowest rank's, agreed on after each step
    }
)
# nanotron's defaults, and what its 995 public runs on EFA show (src/nanotron/config).
NANOTRON = SoftwareSpec(
    name="nanotron",
    flash_version=2,
    overlap_tp_wgrad=False,  # tp_recompute_allgather is on: the shard is kept and gathered again
    overlap_param_gather=False,
    reduce_scatter_gradients=False,
    fused_gradient_accumulation=False,
    fused_activation=False,
    gradient_bytes=6,  # a 2-byte gradient beside the fp32 accumulator
    balanced_stages=True,
    bucket_bytes=25 * MB,
    gather_bucket_bytes=2000 * MB,
    cpu_op_s=100e-6,
    # 0.3-0.5 ms per step over tp 2-32, hidden 2048-8192, where the pipeline crosses nodes; absent
    # inside a node and at tp 1. Cause not established.
    stalled_step_s=0.34e-3,
    # Runs with pipelines lose 1.05 s per micro-batch (0.53 s with two stages) in 1 of 4 cases on
    # 8-16 nodes, half on 32, nearly all on 64: a few slow nodes.
    slow_node_share=0.02,
    slow_node_message_s=0.265,
    memory_spread=(0.9, 1.65),  # the same runs; which counter they print is not known
)
