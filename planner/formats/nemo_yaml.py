"""Writes a job as YAML of Megatron-Bridge's ``ConfigContainer``, to be merged over a GPT recipe.

Its fields are Megatron-Core's, so they are made of the arguments that the Megatron-LM writer has.
What a recipe may have switched on is switched off where the job does without it.
"""

from typing import Any

from planner.formats.megatron import settings_of
from planner.formats.megatron_script import megatron_arguments, megatron_problems_of
from planner.formats.methods import method_problems
from planner.formats.unsupported import refuse
from planner.formats.work import Work

# what the recipes of bf16, fp16 and 8-bit products are called (training/mixed_precision.py)
PRECISIONS = {
    "bf16": "bf16_mixed", "fp16": "fp16_mixed", "fp8": "bf16_with_fp8_delayed_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed", "nvfp4": "bf16_with_nvfp4_mixed",
}  # fmt: skip
# arguments that stand elsewhere than under model, by the same name; two places where both are read
_PLACES: dict[str, tuple[str, ...]] = {
    "--seq-length": ("model.seq_length", "dataset.sequence_length"),
    "--vocab-size": ("model.vocab_size", "tokenizer.vocab_size"),
    "--tokenizer-type": ("tokenizer.tokenizer_type",),
    "--micro-batch-size": ("train.micro_batch_size",),
    "--global-batch-size": ("train.global_batch_size",),
    "--train-iters": ("train.train_iters",),
    "--lr": ("optimizer.lr",),
    "--log-interval": ("logger.log_interval",),
    "--log-throughput": ("logger.log_throughput",),
    "--use-distributed-optimizer": ("optimizer.use_distributed_optimizer",
                                    "ddp.use_distributed_optimizer"),
    "--overlap-grad-reduce": ("ddp.overlap_grad_reduce",),
    "--overlap-param-gather": ("ddp.overlap_param_gather",),
    "--num-distributed-optimizer-instances": ("ddp.num_distributed_optimizer_instances",),
    "--optimizer-cpu-offload": ("optimizer.optimizer_cpu_offload",),
    "--optimizer-offload-fraction": ("optimizer.optimizer_offload_fraction",),
    "--use-precision-aware-optimizer": ("optimizer.use_precision_aware_optimizer",),
    "--overlap-cpu-optimizer-d2h-h2d": ("optimizer.overlap_cpu_optimizer_d2h_h2d",),
    "--tp-comm-overlap": ("comm_overlap.tp_comm_overlap",),
    "--num-experts": ("model.num_moe_experts",),
    "--num-virtual-stages-per-pipeline-rank": ("model.virtual_pipeline_model_parallel_size",),
}  # fmt: skip
# a provider has no such field: said by another one below, or always so
_ELSEWHERE = {
    "--group-query-attention", "--swiglu", "--disable-bias-linear",
    "--untie-embeddings-and-output-weights", "--bf16", "--fp16", "--fp8-format", "--fp8-recipe",
    "--fp4-format", "--fp4-recipe", "--transformer-impl", "--use-mcore-models", "--mock-data",
    "--moe-layer-freq", "--window-size", "--recompute-modules",
}  # fmt: skip
_OFF: dict[str, Any] = {
    "model.sequence_parallel": False, "model.virtual_pipeline_model_parallel_size": None,
    "model.pipeline_model_parallel_layout": None, "model.recompute_granularity": None,
    "model.recompute_method": None, "model.recompute_num_layers": None,
    "model.mtp_num_layers": None, "model.num_moe_experts": None,
    "model.expert_model_parallel_size": 1, "model.expert_tensor_parallel_size": 1,
    "model.qk_layernorm": False, "model.add_qkv_bias": False, "model.cpu_offloading": False,
    "optimizer.use_distributed_optimizer": False, "ddp.use_distributed_optimizer": False,
    "ddp.overlap_grad_reduce": False, "ddp.overlap_param_gather": False,
    "comm_overlap.tp_comm_overlap": False,
}  # fmt: skip


def nemo_fields(work: Work) -> dict[str, Any]:
    """Return dotted field -> value of everything that a job decides."""
    settings, _ = settings_of(megatron_arguments(work))
    model, found = work.model, dict(_OFF)
    for flag, text in settings.items():
        if flag not in _ELSEWHERE:
            plain = f"model.{flag[2:].replace('-', '_')}"
            found |= dict.fromkeys(_PLACES.get(flag, (plain,)), _value(text))
    found |= {
        "model.gated_linear_unit": model.gated_mlp,
        "model.activation_func": {
            "_target_": f"torch.nn.functional.{'silu' if model.gated_mlp else 'gelu'}",
            "_call_": False,
        },
        "model.add_bias_linear": model.mlp_bias,
        "model.share_embeddings_and_output_weights": model.tied_embeddings,
        "mixed_precision": PRECISIONS[work.job.precision],
    }
    if model.mla is None:
        found["model.num_query_groups"] = model.kv_heads
    if model.moe is not None:
        found["model.moe_layer_freq"] = [
            int(model.is_moe_layer(layer)) for layer in range(model.layers)
        ]
    if model.sliding_window:
        found["model.window_size"] = [model.sliding_window - 1, 0]
    if "--recompute-modules" in settings:
        found["model.recompute_modules"] = settings["--recompute-modules"].split()
    if found.get("model.cpu_offloading_num_layers"):
        found["model.cpu_offloading"] = True
    return found


def _value(text: str) -> Any:
    """Return a number where an argument is one; a flag alone is yes."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or True


def write_nemo(work: Work) -> str:
    """Return the YAML; ``LayoutError`` with every reason why Megatron-Core cannot run the job."""
    import yaml

    refuse(megatron_problems_of(work) + method_problems(work, "nemo"))
    sections: dict[str, Any] = {}
    for name, value in nemo_fields(work).items():
        section, _, field = name.partition(".")
        if field:
            sections.setdefault(section, {})[field] = value
        else:
            sections[section] = value
    head = "# Megatron-Bridge: merge over a GPT recipe (recipes/gpt/vanilla_gpt), with OmegaConf\n"
    return head + yaml.safe_dump(sections, sort_keys=False)


def lost_by_nemo(work: Work) -> list[str]:
    """Return what stands in the recipe below the file: the class of its model."""
    if work.model.mla is None:
        return []
    return ["latent attention: merge over a recipe whose model is an MLAModelProvider"]
