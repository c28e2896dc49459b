"""Layouts to trace: large enough that rounding to 512 bytes does not matter."""

from typing import Any

from planner.plan import Plan
from planner.spec.job import JobSpec
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from planner.spec.software import TORCH_LAUNCHER
from tests.formats.plans import build_plan, llama

MODEL = llama(
    name="llama-34m",
    layers=8,
    hidden=512,
    heads=8,
    kv_heads=4,
    head_dim=64,
    ffn_hidden=1536,
    vocab=8192,
)


EXPERTS = MoESpec(experts=8, top_k=2, ffn_hidden=512, shared_ffn_hidden=512, first_layer=1)
MOE = MODEL.model_copy(update={"name": "moe-60m", "moe": EXPERTS})
LATENT = MLASpec(
    q_lora_rank=256, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
)
# the peak of a small vocabulary is in the backward pass of a layer, not at the loss
FEW_WORDS = MODEL.model_copy(update={"name": "llama-26m", "vocab": 512})
WIDE = FEW_WORDS.model_copy(update={"name": "llama-164m", "hidden": 1024, "ffn_hidden": 6144})
MLA = MODEL.model_copy(update={"name": "mla-34m", "kv_heads": 8, "mla": LATENT})


def plan(global_batch: int, zero: int = 0, model: ModelSpec = MODEL, **layout: Any) -> Plan:
    """Return a plan of ``model`` on sequences of 1024 tokens."""
    job = JobSpec(global_batch=global_batch, seq_len=1024, software=TORCH_LAUNCHER)
    return build_plan(model, job_spec=job, zero=zero, **layout)


SP: dict[str, Any] = {"sequence_parallel": True}
HSDP: dict[str, Any] = {"shard_weights": 4, "shard_gradients": 4, "shard_optimizer": 4}
ALL: dict[str, Any] = {"shard_weights": 8, "shard_gradients": 8, "shard_optimizer": 8}
HPZ: dict[str, Any] = {**ALL, "shard_secondary": 2}

HOST: dict[str, Any] = {"offload_optimizer": 1.0}
HOST_WEIGHTS: dict[str, Any] = HOST | {"offload_weights": True}

# the optimizer on the host: of what is traced, its state is not on the GPU
HOSTED: dict[str, Plan] = {
    "one rank": plan(4, micro_batch=2, **HOST),
    "one rank, weights too": plan(4, micro_batch=2, **HOST_WEIGHTS),
    "zero1": plan(32, 1, dp=8, micro_batch=2, **HOST),
    "zero2": plan(32, 2, dp=8, micro_batch=2, **HOST),
    "zero3, weights too": plan(32, 3, dp=8, micro_batch=2, **HOST_WEIGHTS),
    "tp4 sp": plan(4, tp=4, micro_batch=2, **HOST, **SP),
    "pp4": plan(8, pp=4, micro_batch=2, **HOST),
}

# two micro-batches of two sequences without a pipeline
LAYOUTS: dict[str, Plan] = {
    "one rank": plan(4, micro_batch=2),
    "zero0": plan(32, dp=8, micro_batch=2),
    "zero1": plan(32, 1, dp=8, micro_batch=2),
    "zero2": plan(32, 2, dp=8, micro_batch=2),
    "zero3": plan(32, 3, dp=8, micro_batch=2),
    "zero3 one micro-batch": plan(16, 3, dp=8, micro_batch=2),
    "zero3 partial recompute": plan(32, 3, dp=8, micro_batch=2, recompute_layers=4),
    "zero3 full recompute": plan(32, 3, dp=8, micro_batch=2, recompute_layers=8),
    "hsdp": plan(32, dp=8, micro_batch=2, **HSDP),
    "hpz": plan(32, dp=8, micro_batch=2, **HPZ),
    "levels 1, 4, 8": plan(32, dp=8, micro_batch=2, shard_gradients=4, shard_optimizer=8),
    "tp4": plan(4, tp=4, micro_batch=2),
    "tp4 sp": plan(4, tp=4, micro_batch=2, **SP),
    "tp4 sp full recompute": plan(4, tp=4, micro_batch=2, recompute_layers=8, **SP),
    "tp2 dp4 sp zero3": plan(16, 3, tp=2, dp=4, micro_batch=2, **SP),
    "pp4": plan(16, pp=4, micro_batch=2),
    "pp4 full recompute": plan(16, pp=4, micro_batch=2, recompute_layers=2),
    "pp2 vpp2": plan(16, pp=2, vpp=2, micro_batch=2),
    "pp2 dp2 zero1": plan(16, 1, pp=2, dp=2, micro_batch=1),
    "pp2 tp2 dp2": plan(16, 1, pp=2, tp=2, dp=2, micro_batch=1, **SP),
    "pp2 tp2 dp2 recompute": plan(16, 1, pp=2, tp=2, dp=2, micro_batch=1, recompute_layers=2, **SP),
    "cp4": plan(4, cp=4, micro_batch=2),
    "cp2 dp4 zero3": plan(16, cp=2, dp=4, micro_batch=2, **ALL),
    "cp4 tp2 sp": plan(4, cp=4, tp=2, micro_batch=2, **SP),
    "cp2 tp2 sp full recompute": plan(4, cp=2, tp=2, micro_batch=2, recompute_layers=8, **SP),
    "moe": plan(4, model=MOE, micro_batch=2),
    "moe ep8 zero1": plan(32, 1, MOE, dp=8, ep=8, micro_batch=2),
    "moe ep4 zero3": plan(32, 3, MOE, dp=8, ep=4, micro_batch=2),
    "moe ep4 zero3 recompute": plan(32, 3, MOE, dp=8, ep=4, micro_batch=2, recompute_layers=8),
    "moe tp2 sp ep4 zero3": plan(16, 3, MOE, tp=2, dp=4, ep=4, micro_batch=2, **SP),
    "moe tp2 sp ep2 etp2 zero3": plan(16, 3, MOE, tp=2, dp=4, ep=2, etp=2, micro_batch=2, **SP),
    "moe pp2 ep4 zero1": plan(16, 1, MOE, pp=2, dp=4, ep=4, micro_batch=1),
    "mla": plan(4, model=MLA, micro_batch=2),
    "mla zero3": plan(32, 3, MLA, dp=8, micro_batch=2),
    "mla tp4": plan(4, model=MLA, tp=4, micro_batch=2),
    "mla tp4 sp": plan(4, model=MLA, tp=4, micro_batch=2, **SP),
    "mla tp4 sp full recompute": plan(4, 0, MLA, tp=4, micro_batch=2, recompute_layers=8, **SP),
    "few words one step": plan(8, 0, FEW_WORDS, dp=8, micro_batch=1),
    "few words zero2": plan(16, 2, FEW_WORDS, dp=8, micro_batch=1),
    "few words zero3": plan(16, 3, FEW_WORDS, dp=8, micro_batch=1),
    "wide zero3": plan(16, 3, WIDE, dp=8, micro_batch=1),
    "wide zero3 partial recompute": plan(16, 3, WIDE, dp=8, micro_batch=1, recompute_layers=4),
    "wide zero3 full recompute": plan(16, 3, WIDE, dp=8, micro_batch=1, recompute_layers=8),
    "wide tp4 sp full recompute": plan(4, 0, WIDE, tp=4, micro_batch=2, recompute_layers=8, **SP),
}
