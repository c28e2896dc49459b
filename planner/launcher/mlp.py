"""The MLP of a layer: SwiGLU with three matrices, or GELU with two."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from .plan_file import ModelConfig


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) * up`` that keeps its two inputs, as a fused kernel does, and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        slope = (1 - sigmoid).mul_(gate).add_(1).mul_(sigmoid)
        # in place: a layer's backward pass is fullest here
        return slope.mul_(up).mul_(gradients[0]), sigmoid.mul_(gate).mul_(gradients[0])


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class Mlp(nn.Module):
    """Every token through the same matrices, ``inner`` wide."""

    def __init__(self, model: ModelConfig, inner: int) -> None:
        super().__init__()
        bias = model.mlp_bias
        self.gate = nn.Linear(model.hidden, inner, bias) if model.gated_mlp else None
        self.up = nn.Linear(model.hidden, inner, bias)
        self.down = nn.Linear(inner, model.hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; the inner width is the local one."""
        up = self.up(x)
        inner: Tensor = F.gelu(up) if self.gate is None else swiglu(self.gate(x), up)
        outer: Tensor = self.down(inner)
        return outer
