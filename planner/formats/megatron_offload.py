"""What Megatron-LM's three kinds of offload move, as the planner's shares of what could move.

``--optimizer-cpu-offload`` moves a part of the optimizer, ``--cpu-offloading-num-layers`` whole
layers, ``--fine-grained-activation-offloading`` the inputs of named modules in every layer
(core/transformer/transformer_config.py, Megatron-Core 0.20).
"""

from collections.abc import Mapping
from typing import Any

from planner.formats.work import Work
from planner.layout.layout import Layout, Offload, Recompute
from planner.memory.activations import layer_bytes
from planner.memory.offload import small_bytes
from planner.model.operations import Shape
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec

_TOKENS = 4096  # of the one sequence that shares are counted for; they hardly depend on it


def module_bytes(model: ModelSpec, shape: Shape, moe_layer: bool) -> dict[str, float]:
    """Return the bytes of each module's input in one layer, by the names of --offload-modules."""
    hidden, mla = model.hidden, model.mla
    norm = 2 * shape.sharded_tokens * hidden
    width = (model.heads + 2 * max(model.kv_heads, shape.tp)) * model.head_dim
    output = model.heads * model.head_dim
    if mla is not None:
        output = model.heads * mla.v_head_dim
        width = 2 * model.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) + output
    found = {
        "attn_norm": norm,
        "mlp_norm": norm,
        "qkv_linear": norm,
        "core_attn": 2 * shape.tokens * width / shape.tp,
        "attn_proj": 2 * shape.tokens * output / shape.tp,
    }
    if moe_layer and model.moe is not None:
        rows = shape.tokens / shape.tp * model.moe.top_k * shape.etp
        found["expert_fc1"] = 2 * rows * hidden
        inner = model.moe.ffn_hidden / shape.etp
        found["moe_act"] = 2 * (1 + model.gated_mlp) * rows * inner
        found["fused_group_mlp"] = found["expert_fc1"] + found["moe_act"] + 2 * rows * inner
    return found


def fine_share(
    model: ModelSpec, layout: Layout, software: SoftwareSpec, modules: set[str], fraction: float
) -> float:
    """Return the share of the layers' movable bytes that is in the inputs of ``modules``."""
    shape = Shape(1, _TOKENS * layout.cp, layout.tp, layout.cp, layout.ep, layout.etp,
                  layout.sequence_parallel)  # fmt: skip
    moved = movable = 0.0
    for layer in range(model.layers):
        moe = model.is_moe_layer(layer)
        sizes = module_bytes(model, shape, moe)
        moved += sum(sizes.get(name, 0.0) for name in modules)
        movable += layer_bytes(model, shape, software, Recompute.NONE, moe)
        movable -= small_bytes(model, shape, software, Recompute.NONE)
    return min(1.0, fraction * moved / movable)


def read_offload(
    values: Mapping[str, Any],
    model: ModelSpec | None,
    layout: Layout,
    software: SoftwareSpec,
) -> tuple[dict[str, Any], list[str]]:
    """Return the offload fields of ``Setup``, and what is understood but has no place in them."""
    found: dict[str, Any] = {}
    unpriced: list[str] = []
    if values.get("optimizer_offload"):
        found["offload_optimizer"] = float(values.get("offload_fraction", 1.0))
    layers = values.get("offload_layers", 0)
    modules = set(str(values.get("offload_modules", "")).replace(",", " ").split())
    if layers and model is not None and layers < model.layers:
        found["offload"] = Offload.layers(layers, model.layers)
    elif values.get("fine_offload") and modules and model is not None:
        share = fine_share(model, layout, software, modules,
                           float(values.get("activation_offload_fraction", 1.0)))  # fmt: skip
        found["offload"] = Offload(share, "host") if share else Offload()
    elif layers or values.get("fine_offload"):
        unpriced.append("offloaded activations")
    return found, unpriced


def offloaded_layers(work: Work) -> int | None:
    """Return the layers that --cpu-offloading-num-layers moves for a job; None where none fits."""
    offload, model = work.layout.offload, work.model
    count = round(offload.fraction * (model.layers - 1))
    same = count > 0 and Offload.layers(count, model.layers, offload.target) == offload
    return count if same and offload.target == "host" else None


def activation_problems(work: Work) -> list[str]:
    """Return why Megatron-LM cannot offload the activations that a job does; empty where it can."""
    if not work.layout.offload.fraction:
        return []
    label, most = work.layout.offload.label(), work.model.layers - 1
    if offloaded_layers(work) is None:
        return [
            f"{label}: Megatron-LM offloads whole layers to the host, {most} at most; try "
            f"--offload host:{100 * max(1, round(work.layout.offload.fraction * most)) / most:.6g}%"
        ]
    if work.layout.pp > 1 or any(work.again) or work.recompute is not Recompute.NONE:
        return [f"{label}: M17: --cpu-offloading-num-layers excludes pipelines and recompute; set "
                "pp 1 and no recompute, or plan with --no-offload"]  # fmt: skip
    return []
