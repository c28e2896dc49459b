"""The arguments of Megatron-LM that a layout and its cost depend on, and those they do not.

Names as in ``megatron/training/arguments.py`` and the dataclasses it turns into arguments
(core 0.16 to 0.20, older spellings beside them).
"""

import re

from planner.formats.setup import Meaning, number, switch, text_of, whole

FLAGS: dict[str, Meaning] = {
    # model
    "--num-layers": Meaning("layers", whole, "layers"),
    "--encoder-num-layers": Meaning("layers", whole, "layers"),
    "--hidden-size": Meaning("hidden", whole, "hidden width"),
    "--ffn-hidden-size": Meaning("ffn_hidden", whole, "MLP width"),
    "--num-attention-heads": Meaning("heads", whole, "heads"),
    "--group-query-attention": Meaning("grouped", switch, "grouped key/value heads"),
    "--num-query-groups": Meaning("kv_heads", whole, "key/value heads"),
    "--kv-channels": Meaning("head_dim", whole, "head width"),
    "--max-position-embeddings": Meaning("positions", whole, "positions"),
    "--position-embedding-type": Meaning("position_type", text_of, "positions by"),
    "--use-rotary-position-embeddings": Meaning("rotary", switch, "rotary positions"),
    "--normalization": Meaning("normalization", text_of, "norm"),
    "--swiglu": Meaning("swiglu", switch, "gated MLP"),
    "--quick-geglu": Meaning("geglu", switch, "gated MLP"),
    "--disable-bias-linear": Meaning("no_bias", switch, "no biases"),
    "--add-qkv-bias": Meaning("qkv_bias", switch, "biases of q, k and v"),
    "--qk-layernorm": Meaning("qk_norm", switch, "norm of q and k"),
    "--untie-embeddings-and-output-weights": Meaning("untied", switch, "untied embeddings"),
    "--vocab-size": Meaning("vocab", whole, "vocabulary"),
    "--padded-vocab-size": Meaning("padded_vocab", whole, "padded vocabulary"),
    "--make-vocab-size-divisible-by": Meaning("vocab_multiple", whole, "vocabulary multiple of"),
    "--window-size": Meaning("window", text_of, "attention window"),
    "--window-attn-skip-freq": Meaning("window_every", text_of, "full attention every"),
    "--num-experts": Meaning("experts", whole, "experts"),
    "--moe-router-topk": Meaning("top_k", whole, "experts per token"),
    "--moe-ffn-hidden-size": Meaning("expert_ffn", whole, "expert width"),
    "--moe-shared-expert-intermediate-size": Meaning("shared_ffn", whole, "shared expert width"),
    "--moe-shared-expert-gate": Meaning("shared_gate", switch, "gated shared expert"),
    "--moe-layer-freq": Meaning("moe_layers", text_of, "expert layers"),
    "--multi-latent-attention": Meaning("mla", switch, "latent attention"),
    "--q-lora-rank": Meaning("q_lora_rank", whole, "query rank"),
    "--kv-lora-rank": Meaning("kv_lora_rank", whole, "key/value rank"),
    "--qk-head-dim": Meaning("qk_nope_head_dim", whole, "query/key width"),
    "--qk-pos-emb-head-dim": Meaning("qk_rope_head_dim", whole, "rotary width"),
    "--v-head-dim": Meaning("v_head_dim", whole, "value width"),
    "--mtp-num-layers": Meaning("mtp_layers", whole, "multi-token-prediction layers"),
    # batch, length, precision
    "--micro-batch-size": Meaning("micro_batch", whole, "micro-batch"),
    "--batch-size": Meaning("micro_batch", whole, "micro-batch"),
    "--global-batch-size": Meaning("global_batch", whole, "global batch"),
    "--rampup-batch-size": Meaning("rampup", text_of, "batch ramp-up"),
    "--decrease-batch-size-if-needed": Meaning("shrink_batch", switch, "shrinks uneven batches"),
    "--step-batch-size-schedule": Meaning("rampup", text_of, "batch schedule"),
    "--seq-length": Meaning("seq_len", whole, "tokens of a sequence"),
    "--encoder-seq-length": Meaning("seq_len", whole, "tokens of a sequence"),
    "--bf16": Meaning("bf16", switch, "bf16"),
    "--fp16": Meaning("fp16", switch, "fp16"),
    "--fp8-format": Meaning("fp8", text_of, "8-bit products"),
    "--fp8-hybrid": Meaning("fp8", text_of, "8-bit products"),
    "--fp8-recipe": Meaning("fp8_recipe", text_of, "8-bit scaling"),
    "--fp4-format": Meaning("fp4", text_of, "4-bit products"),
    "--fp4-recipe": Meaning("fp4_recipe", text_of, "4-bit scaling"),
    # layout
    "--tensor-model-parallel-size": Meaning("tp", whole, "tp"),
    "--model-parallel-size": Meaning("tp", whole, "tp"),
    "--context-parallel-size": Meaning("cp", whole, "cp"),
    "--pipeline-model-parallel-size": Meaning("pp", whole, "pp"),
    "--expert-model-parallel-size": Meaning("ep", whole, "ep"),
    "--expert-tensor-parallel-size": Meaning("etp", whole, "etp"),
    "--sequence-parallel": Meaning("sequence_parallel", switch, "sequence parallel"),
    "--num-layers-per-virtual-pipeline-stage": Meaning("chunk_layers", whole, "layers of a chunk"),
    "--num-virtual-stages-per-pipeline-rank": Meaning("chunks", whole, "vpp"),
    "--pipeline-model-parallel-layout": Meaning("layer_layout", text_of, "stages"),
    "--decoder-first-pipeline-num-layers": Meaning("first_layers", whole, "layers of stage 0"),
    "--decoder-last-pipeline-num-layers": Meaning("last_layers", whole, "layers of the last stage"),
    "--account-for-embedding-in-pipeline-split": Meaning(
        "account_for_embedding", switch, "embedding counts as a layer"
    ),
    "--account-for-loss-in-pipeline-split": Meaning(
        "account_for_loss", switch, "loss counts as a layer"
    ),
    "--microbatch-group-size-per-virtual-pipeline-stage": Meaning(
        "microbatch_group", whole, "micro-batches of a round"
    ),
    "--microbatch-group-size-per-vp-stage": Meaning(
        "microbatch_group", whole, "micro-batches of a round"
    ),
    "--cp-comm-type": Meaning("cp_comm_type", text_of, "context exchange"),
    "--hierarchical-context-parallel-sizes": Meaning("cp_sizes", text_of, "context levels"),
    "--use-tp-pp-dp-mapping": Meaning("pp_inside_dp", switch, "rank order tp-cp-ep-pp-dp"),
    "--use-distributed-optimizer": Meaning("distributed_optimizer", switch, "ZeRO-1"),
    "--num-distributed-optimizer-instances": Meaning("instances", whole, "optimizer copies"),
    "--use-megatron-fsdp": Meaning("megatron_fsdp", switch, "Megatron-FSDP"),
    "--use-custom-fsdp": Meaning("megatron_fsdp", switch, "Megatron-FSDP"),
    "--data-parallel-sharding-strategy": Meaning("strategy", text_of, "FSDP shards"),
    "--use-torch-fsdp2": Meaning("torch_fsdp2", switch, "torch FSDP2"),
    "--torch-fsdp2-no-reshard-after-forward": Meaning("no_reshard", switch, "ZeRO-2"),
    "--ckpt-format": Meaning("ckpt_format", text_of, "checkpoint format"),
    # recompute, offload
    "--recompute-granularity": Meaning("granularity", text_of, "recompute"),
    "--recompute-activations": Meaning("recompute_selective", switch, "recompute selective"),
    "--recompute-method": Meaning("recompute_method", text_of, "recompute by"),
    "--recompute-num-layers": Meaning("recompute_num_layers", whole, "recomputed layers"),
    "--recompute-modules": Meaning("recompute_modules", text_of, "recomputed modules"),
    "--activations-checkpoint-method": Meaning("recompute_method", text_of, "recompute by"),
    "--activations-checkpoint-num-layers": Meaning(
        "recompute_num_layers", whole, "recomputed layers"
    ),
    "--checkpoint-activations": Meaning("recompute_all", switch, "recompute full"),
    "--distribute-saved-activations": Meaning("distribute_saved", switch, "saved inputs split"),
    "--cpu-offloading-num-layers": Meaning("offload_layers", whole, "activations offloaded of"),
    "--fine-grained-activation-offloading": Meaning("fine_offload", switch, "activation offload"),
    "--activation-offload-fraction": Meaning(
        "activation_offload_fraction", number, "share of the modules offloaded"
    ),
    "--offload-modules": Meaning("offload_modules", text_of, "offloaded modules"),
    "--optimizer-cpu-offload": Meaning("optimizer_offload", switch, "optimizer on the CPU"),
    "--optimizer-offload-fraction": Meaning("offload_fraction", number, "share offloaded"),
    "--use-precision-aware-optimizer": Meaning("precise", switch, "states in lower precision"),
    # software
    "--overlap-grad-reduce": Meaning("overlap_reduce", switch, "reduction behind backward"),
    "--overlap-param-gather": Meaning("overlap_gather", switch, "weight gather behind forward"),
    "--no-overlap-p2p-communication": Meaning("no_overlap_p2p", switch, "blocking sends"),
    "--overlap-p2p-communication": Meaning("overlap_p2p", switch, "sends behind compute"),
    "--tp-comm-overlap": Meaning("tp_overlap", switch, "tensor-parallel overlap"),
    "--overlap-moe-expert-parallel-comm": Meaning("moe_overlap", switch, "expert overlap"),
    "--delay-wgrad-compute": Meaning("delay_wgrad", switch, "weight gradients later"),
    "--moe-shared-expert-overlap": Meaning("shared_expert_overlap", switch, "shared overlap"),
    "--moe-token-dispatcher-type": Meaning("dispatcher", text_of, "dispatcher"),
    "--moe-flex-dispatcher-backend": Meaning("flex_backend", text_of, "dispatcher kernels"),
    "--moe-enable-deepep": Meaning("deepep", switch, "dispatcher kernels deepep"),
    "--moe-expert-capacity-factor": Meaning("capacity", number, "expert capacity"),
    "--grad-reduce-in-bf16": Meaning("reduce_bf16", switch, "gradients reduced in 2 bytes"),
    "--cross-entropy-loss-fusion": Meaning("fused_loss", switch, "fused loss"),
    "--cross-entropy-fusion-impl": Meaning(
        "fused_loss_kernel", text_of, "kernel of the fused loss"
    ),
    "--attention-backend": Meaning("attention", text_of, "attention kernel"),
    "--use-flash-attn": Meaning("flash", switch, "FlashAttention"),
    "--attention-dropout": Meaning("attention_dropout", number, "attention dropout"),
    "--hidden-dropout": Meaning("hidden_dropout", number, "dropout"),
    "--no-gradient-accumulation-fusion": Meaning(
        "no_gradient_fusion", switch, "gradients added by a kernel of their own"
    ),
    "--optimizer": Meaning("optimizer", text_of, "optimizer"),
    "--tokenizer-type": Meaning("tokenizer", text_of, "tokenizer"),
}

_NEUTRAL = re.compile(
    r"--(lr|min-lr|adam|weight-decay|clip-grad|init-method|seed|save|load|log|eval|exit|train|"
    r"valid|test|data|split|tokenizer|vocab-(file|extra)|merge-file|tensorboard|wandb|num-workers|"
    r"num-dataset|dataloader|no-(save|load|mmap|create|check|rope|masked|bias|persist|barrier|"
    r"position-embedding|one-logger)|ckpt|dist-ckpt|timing|profile|nsys|rotary|rope|mscale|yarn|"
    r"norm-epsilon|layernorm-epsilon|moe-(aux|z-loss|router-(load|pre|num-groups|group|topk-scal|"
    r"score|enable|bias|dtype|force|padding)|permute|grouped|per-layer|token-drop|pad)|"
    r"distributed-(timeout|backend)|manual-gc|mock-data|use-mcore|use-legacy|transformer-impl|"
    r"apply-|calculate-per-token|mtp-loss|decoupled|eod|reset|finetune|async|override|use-dist-ckpt|"
    r"use-checkpoint|auto-detect|loss-scale|initial-loss|hysteresis|accumulate-allreduce|"
    r"attention-softmax|empty-unused|check-|tiktoken|enable-(experimental|one)|one-logger|fp8-(amax|"
    r"margin|interval|wgrad|param)|disable-bf16|export-|use-cpu-init|logging|no-barrier|"
    r"spec|sft|micro-batch-sample|config-logger|per-split|num-dataset|start-weight|end-weight|"
    r"override-opt|use-(checkpoint-opt|rope|fused|pytorch)|retro|ddp-|lazy|DDP-impl|loss|"
    r"glu-linear|activation-func|softmax-type|enable-gpt|init-model|use-nccl|local-rank|node-rank|"
    r"perform|warmup|te-rng|cuda-graph|external-cuda|enable-cuda|master|rdzv|world-size)"
)


def is_neutral(name: str) -> bool:
    """Whether an argument is known and touches neither layout nor memory nor step time."""
    return _NEUTRAL.match(name) is not None
