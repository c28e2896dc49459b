"""Builders of models, clusters and jobs for tests, and hypothesis strategies over legal layouts."""

import itertools
from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.space import layouts
from planner.layout.stages import Split
from planner.spec.cluster import ClusterSpec, load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec, MoESpec
from planner.spec.software import MEGATRON_CORE

quick = settings(deadline=None, max_examples=60)


def gpt(layers: int, hidden: int, heads: int, **changes: Any) -> ModelSpec:
    """Return a GPT as the Megatron papers train it: learned positions, biases, tied embeddings."""
    fields: dict[str, Any] = {
        "name": f"gpt-{layers}x{hidden}",
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn_hidden": 4 * hidden,
        "vocab": 51200,
        "gated_mlp": False,
        "tied_embeddings": True,
        "positions": 2048,
    }
    biases = ("norm_bias", "qkv_bias", "attention_out_bias", "mlp_bias")
    return ModelSpec(**(fields | dict.fromkeys(biases, True) | changes))


def small(**changes: Any) -> ModelSpec:
    """Return a small Llama: quick to price, heads and widths that many degrees divide."""
    fields: dict[str, Any] = {
        "name": "small",
        "layers": 16,
        "hidden": 2048,
        "heads": 16,
        "kv_heads": 8,
        "head_dim": 128,
        "ffn_hidden": 8192,
        "vocab": 32000,
    }
    return ModelSpec(**(fields | changes))


def small_moe(**changes: Any) -> ModelSpec:
    """Return a small mixture of experts with a dense first layer and shared experts."""
    moe = MoESpec(experts=16, top_k=4, ffn_hidden=1024, shared_ffn_hidden=2048, first_layer=1)
    return small(**({"name": "small-moe", "moe": moe} | changes))


@cache
def model(name: str) -> ModelSpec:
    """Return a shipped model, or one of the small ones."""
    return {"small": small, "small-moe": small_moe}.get(name, lambda: load_model(name))()


@cache
def cluster(name: str, nodes: int = 1) -> ClusterSpec:
    """Return a shipped cluster with so many nodes."""
    return load_cluster(name).model_copy(update={"nodes": nodes})


def job(global_batch: int = 32, seq_len: int = 4096, **changes: Any) -> JobSpec:
    """Return a job of Megatron-Core unless ``software`` says otherwise."""
    return JobSpec(**({"software": MEGATRON_CORE} | changes), global_batch=global_batch,
                   seq_len=seq_len)  # fmt: skip


def software(base: SoftwareSpec = MEGATRON_CORE, **changes: Any) -> SoftwareSpec:
    """Return ``base`` with changes; the name says which, as records are hashed by name."""
    fields = base.model_dump() | {"name": f"{base.name} {changes}"} | changes
    return SoftwareSpec.model_validate(fields)  # unlike model_copy, refuses a field that is none


@cache
def prices(model_name: str, cluster_name: str, nodes: int, batch: int = 32) -> Prices:
    """Return prices that all tests share."""
    return Prices(model(model_name), cluster(cluster_name, nodes), job(batch))


@cache
def legal_layouts(
    model_name: str, cluster_name: str, nodes: int, batch: int = 32
) -> tuple[Layout, ...]:
    """Return every legal layout."""
    return tuple(layouts(model(model_name), cluster(cluster_name, nodes), job(batch)))


def layouts_of(model_name: str, cluster_name: str, nodes: int) -> st.SearchStrategy[Layout]:
    """Return a strategy over the legal layouts."""
    return st.sampled_from(legal_layouts(model_name, cluster_name, nodes))


def layout_with(zero_stage: int = 0, **degrees: Any) -> Layout:
    """Return a layout sharded over all data-parallel ranks; sequence parallel where tp > 1."""
    degrees = {"sequence_parallel": degrees.get("tp", 1) > 1} | degrees
    ranks = degrees.get("dp", 1) * degrees.get("cp", 1)
    return Layout(**degrees, shard=Shard.zero(zero_stage, ranks))


@st.composite
def splits(draw: st.DrawFn, layers: int, chunks: int) -> Split:
    """Draw stages of any sizes that hold all layers, some of them recomputed in full."""
    if chunks > layers:  # embedding and head in chunks of their own
        counts: tuple[int, ...] = (0, *(1,) * layers, 0)
    else:
        cuts = draw(st.sets(st.integers(1, layers - 1), min_size=chunks - 1, max_size=chunks - 1))
        edges = [0, *sorted(cuts), layers]
        counts = tuple(high - low for low, high in itertools.pairwise(edges))
    return Split(counts, tuple(draw(st.integers(0, count)) for count in counts))


degrees = st.sampled_from([1, 2, 4, 8])
recomputes = st.sampled_from(list(Recompute))
