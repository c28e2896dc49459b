"""Writes a job as ``megatron.sh``: the arguments of Megatron-LM's ``pretrain_gpt.py``.

Every value is quoted for the shell; what a person named never reaches it as anything but text.
"""

import shlex
from string import Template

from planner.formats.megatron_offload import activation_problems, offloaded_layers
from planner.formats.methods import method_problems
from planner.formats.pipeline_layout import write_expert_layers, write_stages
from planner.formats.unsupported import rank_order, refuse, second_shards
from planner.formats.work import Work
from planner.layout.layout import Recompute
from planner.layout.rule import Facts, broken, facts_of
from planner.layout.rules_megatron import RULES

_SCRIPT = Template("""#!/usr/bin/env bash
# Trains one plan on $ranks GPUs with Megatron-LM (Megatron-Core 0.16 or newer), on mock data.
# MEGATRON_PATH is a checkout of Megatron-LM; further arguments are passed on and win.
# Environment: NNODES NPROC_PER_NODE NODE_RANK MASTER_ADDR MASTER_PORT.
set -euo pipefail

: "$${MEGATRON_PATH:?set MEGATRON_PATH to a checkout of Megatron-LM}"
NNODES="$${NNODES:-$nodes}"
NPROC_PER_NODE="$${NPROC_PER_NODE:-$per_node}"
if [ "$$((NNODES * NPROC_PER_NODE))" -ne $ranks ]; then
  echo "error: NNODES=$$NNODES times NPROC_PER_NODE=$$NPROC_PER_NODE is not $ranks ranks" >&2
  exit 2
fi
export CUDA_DEVICE_MAX_CONNECTIONS=1
printf '%s\n' $title >&2

arguments=(
$arguments
)
exec torchrun --nnodes "$$NNODES" --nproc-per-node "$$NPROC_PER_NODE" \\
  --node-rank "$${NODE_RANK:-0}" --master-addr "$${MASTER_ADDR:-127.0.0.1}" \\
  --master-port "$${MASTER_PORT:-29500}" \\
  "$$MEGATRON_PATH/pretrain_gpt.py" "$${arguments[@]}" "$$@"
""")

_NUMBERS = {"bf16": ["--bf16"], "fp16": ["--fp16"]}
_NUMBERS["fp8"] = ["--bf16", "--fp8-format", "hybrid"]
_NUMBERS["mxfp8"] = ["--bf16", "--fp8-format", "e4m3", "--fp8-recipe", "mxfp8"]
_NUMBERS["nvfp4"] = ["--bf16", "--fp4-format", "e2m1", "--fp4-recipe", "nvfp4"]


def megatron_problems_of(work: Work) -> list[str]:
    """Return every reason why Megatron-LM cannot run a work."""
    model, job, layout = work.model, work.job, work.layout
    facts = Facts(**facts_of(model, job, layout), stages=work.layers)  # type: ignore[arg-type]
    problems = (
        broken(RULES, facts)
        + rank_order(work, "Megatron-LM")
        + activation_problems(work)
        + second_shards(work, "Megatron-LM")
    )
    if job.precision not in _NUMBERS:
        problems.append(f"precision {job.precision!r}: use one of {', '.join(_NUMBERS)}")
    unlike = {
        "parallel attention and MLP": model.parallel_block,
        "a trained router bias": model.moe is not None and model.moe.router_bias,
        "biases of the attention output and not of the MLP": model.attention_out_bias
        != model.mlp_bias,
        "MLP biases without biases of q, k and v": model.mlp_bias and not model.qkv_bias,
    }
    problems += [f"model {model.name!r} has {what}, for which Megatron-LM has no argument"
                 for what, present in unlike.items() if present]  # fmt: skip
    partial = {again for again, layers in zip(work.again, work.layers, strict=True)
               if again < layers}  # fmt: skip
    if len(partial) > 1 or (partial and max(work.again) > max(partial)):
        problems.append("stages recompute unequal numbers of layers; Megatron-LM has one number")
    return problems


def megatron_arguments(work: Work) -> list[str]:
    """Return the arguments of ``pretrain_gpt.py`` that a job stands for."""
    words = [*_model(work), *_positions(work), *_layout(work), *_recompute(work)]
    if work.model.moe is not None:
        words += _experts(work)
    words += _NUMBERS[work.job.precision]
    words += ["--attention-dropout", "0.0", "--hidden-dropout", "0.0"]
    if work.job.software.loss == "fused":
        words += ["--cross-entropy-loss-fusion", "--cross-entropy-fusion-impl", "te"]
    words += ["--transformer-impl", "transformer_engine", "--use-mcore-models", "--mock-data"]
    words += ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(work.model.vocab)]
    return [*words, "--lr", "1e-4", "--train-iters", "20", "--log-interval", "1",
            "--log-throughput"]  # fmt: skip


def _model(work: Work) -> list[str]:
    model = work.model
    words = [
        "--num-layers", str(model.layers), "--hidden-size", str(model.hidden),
        "--num-attention-heads", str(model.heads), "--ffn-hidden-size", str(model.ffn_hidden),
        "--normalization", "LayerNorm" if model.norm_bias else "RMSNorm",
    ]  # fmt: skip
    if model.mla is not None:
        mla = model.mla
        words += ["--multi-latent-attention", "--qk-layernorm"]
        words += ["--q-lora-rank", str(mla.q_lora_rank)] if mla.q_lora_rank else []
        words += [
            "--kv-lora-rank", str(mla.kv_lora_rank), "--qk-head-dim", str(mla.qk_nope_head_dim),
            "--qk-pos-emb-head-dim", str(mla.qk_rope_head_dim),
            "--v-head-dim", str(mla.v_head_dim),
        ]  # fmt: skip
    else:
        words += ["--kv-channels", str(model.head_dim)]
        if model.kv_heads != model.heads:
            words += ["--group-query-attention", "--num-query-groups", str(model.kv_heads)]
    flags = {
        "--swiglu": model.gated_mlp,
        "--untie-embeddings-and-output-weights": not model.tied_embeddings,
        "--disable-bias-linear": not model.mlp_bias,
        "--add-qkv-bias": model.qkv_bias and not model.mlp_bias,
        "--qk-layernorm": model.qk_norm and model.mla is None,
    }
    words += [flag for flag, present in flags.items() if present]
    if model.sliding_window:
        words += ["--window-size", f"{model.sliding_window - 1},0"]
    return words + (["--mtp-num-layers", str(model.mtp_layers)] if model.mtp_layers else [])


def _positions(work: Work) -> list[str]:
    model, job = work.model, work.job
    kind = "learned_absolute" if model.positions else "rope"
    return [
        "--position-embedding-type", kind, "--seq-length", str(job.seq_len),
        "--max-position-embeddings", str(model.positions or job.seq_len),
        "--micro-batch-size", str(work.layout.micro_batch),
        "--global-batch-size", str(job.global_batch),
    ]  # fmt: skip


def _experts(work: Work) -> list[str]:
    moe = work.model.moe
    assert moe is not None
    words = [
        "--num-experts", str(moe.experts), "--moe-router-topk", str(moe.top_k),
        "--moe-ffn-hidden-size", str(moe.ffn_hidden),
        "--moe-layer-freq", write_expert_layers(work.model),
        "--moe-grouped-gemm", "--moe-token-dispatcher-type", "alltoall",
        "--moe-router-load-balancing-type", "none",
    ]  # fmt: skip
    if moe.shared_ffn_hidden:
        words += ["--moe-shared-expert-intermediate-size", str(moe.shared_ffn_hidden)]
    return words + (["--moe-shared-expert-gate"] if moe.shared_gate else [])


def _layout(work: Work) -> list[str]:
    layout, counts = work.layout, work.layers
    words = ["--tensor-model-parallel-size", str(layout.tp)]
    words += ["--pipeline-model-parallel-size", str(layout.pp)]
    words += ["--context-parallel-size", str(layout.cp)]
    if work.model.moe is not None:
        words += ["--expert-model-parallel-size", str(layout.ep)]
        words += ["--expert-tensor-parallel-size", str(layout.etp)]
    if layout.sequence_parallel:
        words.append("--sequence-parallel")
    if layout.pp > 1 and (len(set(counts)) > 1 or work.model.mtp_layers):
        words += ["--pipeline-model-parallel-layout", write_stages(counts, work.model.mtp_layers)]
    elif layout.vpp > 1:
        words += ["--num-virtual-stages-per-pipeline-rank", str(layout.vpp)]
    if layout.shard.optimizer > 1 or layout.offload_optimizer:
        words.append("--use-distributed-optimizer")
    if layout.offload_optimizer:
        words += ["--optimizer-cpu-offload", "--use-precision-aware-optimizer"]
        words += ["--optimizer-offload-fraction", f"{layout.offload_optimizer:g}"]
        words.append("--overlap-cpu-optimizer-d2h-h2d")
    if layers := offloaded_layers(work):
        words += ["--cpu-offloading-num-layers", str(layers)]
    if layout.shard.optimizer > 1:
        copies = layout.dp * layout.cp // layout.shard.optimizer
        if copies > 1:
            words += ["--num-distributed-optimizer-instances", str(copies)]
    software = work.job.software
    reduces = software.overlap_grad_reduce or (
        software.overlap_param_gather and layout.shard.optimizer > 1
    )
    words += ["--overlap-grad-reduce"] if reduces else []
    in_chunks = software.tp_overlap_chunks > 1 and layout.tp > 1 and layout.sequence_parallel
    words += ["--tp-comm-overlap"] if in_chunks else []
    gathers = software.overlap_param_gather and layout.shard.optimizer > 1
    return words + (["--overlap-param-gather"] if gathers else [])


def _recompute(work: Work) -> list[str]:
    if work.recompute is Recompute.FULL:
        return ["--recompute-granularity", "full", "--recompute-method", "uniform",
                "--recompute-num-layers", "1"]  # fmt: skip
    if any(work.again):
        return ["--recompute-granularity", "full", "--recompute-method", "block",
                "--recompute-num-layers", str(max(work.again))]  # fmt: skip
    if work.recompute is Recompute.SELECTIVE:
        return ["--recompute-granularity", "selective", "--recompute-modules", "core_attn"]
    return []


def write_megatron(work: Work) -> str:
    """Return ``megatron.sh``; ``LayoutError`` with every reason why Megatron cannot run it."""
    refuse(megatron_problems_of(work) + method_problems(work, "megatron"))
    lines: list[str] = []
    for word in megatron_arguments(work):
        if word.startswith("--"):
            lines.append(f"  {shlex.quote(word)}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return _SCRIPT.substitute(
        ranks=work.ranks, nodes=work.nodes, per_node=work.per_node, arguments="\n".join(lines),
        title=shlex.quote(work.title),
    )  # fmt: skip
