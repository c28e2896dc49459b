"""The weight matrices of a layer by name: what Muon orthogonalises and LoRA adapts."""

from functools import lru_cache
from typing import NamedTuple

from planner.spec.model import ModelSpec

# steps of Muon's Newton-Schulz iteration (arXiv 2502.16982, 2.1)
NEWTON_SCHULZ_STEPS = 5


class Matrix(NamedTuple):
    """``copies`` matrices of ``inputs`` by ``outputs``; the product of that name multiplies them.

    ``role`` is attention, mlp, experts or replicated, by the way parallelism splits them.
    """

    name: str
    inputs: int
    outputs: int
    role: str
    copies: int = 1

    @property
    def parameters(self) -> int:
        """Parameters of all copies."""
        return self.inputs * self.outputs * self.copies


def _attention(model: ModelSpec) -> list[Matrix]:
    hidden, heads = model.hidden, model.heads
    if model.mla is None:
        width = (heads + 2 * model.kv_heads) * model.head_dim
        return [
            Matrix("qkv", hidden, width, "attention"),
            Matrix("projection", heads * model.head_dim, hidden, "attention"),
        ]
    mla = model.mla
    down = mla.kv_lora_rank + mla.qk_rope_head_dim + mla.q_lora_rank
    query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    key_value = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    return [
        Matrix("latent down", hidden, down, "replicated"),
        Matrix("q up", mla.q_lora_rank or hidden, query, "attention"),
        Matrix("kv up", mla.kv_lora_rank, key_value, "attention"),
        Matrix("projection", heads * mla.v_head_dim, hidden, "attention"),
    ]


def _mlp(model: ModelSpec, name: str, inner: int, role: str, copies: int = 1) -> list[Matrix]:
    up = 2 * inner if model.gated_mlp else inner
    return [
        Matrix(f"{name} up", model.hidden, up, role, copies),
        Matrix(f"{name} down", inner, model.hidden, role, copies),
    ]


@lru_cache(maxsize=256)
def layer_matrices(model: ModelSpec, moe_layer: bool) -> tuple[Matrix, ...]:
    """Return the matrices of one layer, whole."""
    found = _attention(model)
    if not moe_layer:
        return (*found, *_mlp(model, "mlp", model.ffn_hidden, "mlp"))
    moe = model.moe
    assert moe is not None
    found.append(Matrix("router", model.hidden, moe.experts, "replicated"))
    if moe.shared_ffn_hidden:
        found += _mlp(model, "shared", moe.shared_ffn_hidden, "mlp")
    return (*found, *_mlp(model, "experts", moe.ffn_hidden, "experts", moe.experts))


def dense_matrix_parameters(model: ModelSpec, moe_layer: bool) -> int:
    """Return the parameters of a layer's matrices, routed experts left out."""
    matrices = layer_matrices(model, moe_layer)
    return sum(one.parameters for one in matrices if one.role != "experts")


@lru_cache(maxsize=256)
def newton_schulz_flops(model: ModelSpec) -> float:
    """Return the FLOPs of Muon's iteration for one parameter of a matrix, the mean of all layers.

    A step of a matrix with a small side m and a large one n makes ``X X^T`` (2 m m n), its square
    (2 m m m) and their product with X (2 m m n).
    """
    flops = parameters = 0.0
    for moe_layer, layers in ((False, model.layers - model.moe_layers), (True, model.moe_layers)):
        for one in layer_matrices(model, moe_layer) if layers else ():
            small, large = sorted((one.inputs, one.outputs))
            steps = 4 * small * small * large + 2 * small**3
            flops += layers * one.copies * NEWTON_SCHULZ_STEPS * steps
            parameters += layers * one.parameters
    return flops / parameters
