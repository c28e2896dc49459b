"""Small plans for tests: every part has a default, a test names only what it is about."""

from collections.abc import Sequence
from typing import Any

from planner.plan import EstimateRecord, LayoutRecord, Plan, SearchRecord, StageRecord
from planner.spec.cluster import ClusterSpec, ScaleOutSpec, ScaleUpSpec
from planner.spec.gpu import GpuSpec
from planner.spec.job import JobSpec
from planner.spec.model import MLASpec, ModelSpec, MoESpec

_LLAMA: dict[str, Any] = {
    "name": "tiny-llama",
    "layers": 4,
    "hidden": 32,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 4,
    "ffn_hidden": 48,
    "vocab": 61,  # uneven over 2 and 4 ranks
}
_GPT = _LLAMA | {
    "name": "tiny-gpt",
    "kv_heads": 8,
    "gated_mlp": False,
    "tied_embeddings": True,
    "positions": 16,
    "norm_bias": True,
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}
_NEOX = _LLAMA | {"name": "tiny-neox", "qkv_bias": True, "qk_norm": True, "parallel_block": True}


def llama(**changes: Any) -> ModelSpec:
    """Grouped query heads, rotary positions, SwiGLU."""
    return ModelSpec(**(_LLAMA | changes))


def gpt(**changes: Any) -> ModelSpec:
    """Learned positions, LayerNorm, GELU, every bias, tied embeddings."""
    return ModelSpec(**(_GPT | changes))


def neox(**changes: Any) -> ModelSpec:
    """Parallel attention and MLP, a norm over each head."""
    return ModelSpec(**(_NEOX | changes))


def mixtral(experts: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """Eight experts in every layer; ``experts`` changes them."""
    moe = MoESpec(**({"experts": 8, "top_k": 2, "ffn_hidden": 32} | (experts or {})))
    return llama(**({"name": "tiny-mixtral", "moe": moe} | changes))


def deepseek(latent: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    """Latent attention, a dense first layer, shared experts; ``latent`` changes the attention."""
    sizes = {"q_lora_rank": 24, "kv_lora_rank": 16, "v_head_dim": 6}
    sizes |= {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
    moe = MoESpec(experts=8, top_k=3, ffn_hidden=16, shared_ffn_hidden=24, first_layer=1)
    values = {"name": "tiny-deepseek", "kv_heads": 8, "mla": MLASpec(**(sizes | (latent or {})))}
    return llama(**(values | {"moe": moe} | changes))


def job(**changes: Any) -> JobSpec:
    """Eight sequences of 16 tokens."""
    return JobSpec(**({"global_batch": 8, "seq_len": 16} | changes))


def cluster(**changes: Any) -> ClusterSpec:
    """Nodes of eight imaginary GPUs."""
    gpu = GpuSpec(
        name="TestGPU",
        memory_bytes=80 * 10**9,
        hbm_bytes_per_s=3e12,
        sm_count=100,
        peak_flops={"bf16": 1e15},
    )
    values: dict[str, Any] = {
        "name": "test",
        "gpu": gpu,
        "gpus_per_node": 8,
        "domain_gpus": 8,
        "scale_up": ScaleUpSpec(kind="nvlink", bytes_per_s=450e9),
        "scale_out": ScaleOutSpec(fabric="ib", nics_per_node=8, nic_bytes_per_s=50e9),
    }
    return ClusterSpec(**(values | changes))


def even(layers: int, stages: int) -> list[int]:
    """Return the layers of each stage, the first ones larger."""
    return [layers // stages + (i < layers % stages) for i in range(stages)]


def stage_table(counts: Sequence[int], recompute_layers: int = 0) -> tuple[StageRecord, ...]:
    """Return stages of ``counts`` layers; of each, up to ``recompute_layers`` are recomputed."""
    return tuple(
        StageRecord(
            stage=i,
            first_layer=sum(counts[:i]),
            layers=count,
            recompute_layers=min(recompute_layers, count),
            embedding=i == 0,
            head=i == len(counts) - 1,
            memory_bytes=1e9,
        )
        for i, count in enumerate(counts)
    )


def build_plan(
    model: ModelSpec | None = None,
    *,
    layers: Sequence[int] = (),
    rank_map: Sequence[int] = (),
    recompute_layers: int = 0,
    zero: int = 0,
    job_spec: JobSpec | None = None,
    cluster_spec: ClusterSpec | None = None,
    schedule: str = "",
    **layout: Any,
) -> Plan:
    """Return a plan with the given layout; ``zero`` spells the shard fields over all of dp."""
    model = model or llama()
    group = layout.get("dp", 1)
    names = ("shard_optimizer", "shard_gradients", "shard_weights")
    record = LayoutRecord(**({name: group for name in names[:zero]} | layout))
    stages = record.pp * record.vpp
    ranks = record.tp * record.cp * record.dp * record.pp
    return Plan(
        model=model,
        cluster=cluster_spec or cluster(),
        job=job_spec or job(),
        layout=record,
        schedule=schedule or ("interleaved_1f1b" if record.vpp > 1 else "1f1b"),
        stages=stage_table(layers or even(model.layers, stages), recompute_layers),
        rank_map=tuple(rank_map or range(ranks)),
        estimate=EstimateRecord(
            step_time_s=0.02,
            step_time_low_s=0.01,
            step_time_high_s=0.03,
            tokens_per_s_per_gpu=1000.0,
            mfu=0.4,
            peak_flops=1e15,
            memory_bytes=1e9,
            capacity_bytes=80e9,
            parts_s={"compute": 0.02},
        ),
        search=SearchRecord(layouts=1, fitting=1, simulated=1, gap=0.0, seconds=0.0),
    )
