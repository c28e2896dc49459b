"""A mixture of experts in place of an MLP (Shazeer et al. 2017; Mixtral, arXiv 2401.04088, 2.1).

The router's softmax scores of the ``top_k`` best experts, scaled to a sum of one, weigh their
outputs. There is no balancing loss and no capacity limit: no token is dropped.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .dispatch import Dispatch
from .materialise import Copies
from .mlp import Mlp, swiglu
from .plan_file import ModelConfig, MoEConfig


class Experts(nn.Module):
    """The routed experts of a layer, one tensor [experts, out, in] per projection."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        wide = (moe.experts, moe.ffn_hidden, model.hidden)
        self.gate = nn.Parameter(torch.empty(wide)) if model.gated_mlp else None
        self.up = nn.Parameter(torch.empty(wide))
        self.down = nn.Parameter(torch.empty(moe.experts, model.hidden, moe.ffn_hidden))
        self.copies: Copies | None = None

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return [rows, hidden] of ``rows`` sorted by expert; ``counts`` are rows per expert."""
        ends = counts.cumsum(0, dtype=torch.int32)
        up = self._product(rows, self.up, ends)
        if self.gate is None:
            inner = F.gelu(up)
        else:
            inner = swiglu(self._product(rows, self.gate, ends), up)
        return self._product(inner, self.down, ends)

    def _product(self, rows: Tensor, weight: nn.Parameter, ends: Tensor) -> Tensor:
        """Return ``rows`` times each expert's matrix; ``ends`` is where each expert's rows end."""
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        if self.copies is None:
            return F.grouped_mm(rows, local.transpose(1, 2), offs=ends)
        return self.copies.product(rows, local, ends)


class MixtureOfExperts(nn.Module):
    """A router, its experts, and shared experts that see every token."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.router = nn.Linear(model.hidden, moe.experts, bias=moe.router_bias)
        self.experts = Experts(model, moe)
        self.shared = Mlp(model, moe.shared_ffn_hidden) if moe.shared_ffn_hidden else None
        gated = moe.shared_gate and moe.shared_ffn_hidden
        self.shared_gate = nn.Linear(model.hidden, 1, bias=False) if gated else None
        self.dispatch = Dispatch(moe.experts)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; under sequence parallelism the local part of the sequence.

        Tokens are routed where they are, so no two ranks route the same one.
        """
        scores = self.router(x).flatten(0, 1).float().softmax(-1)
        best, choice = scores.topk(self.top_k, dim=-1)
        share = best / best.sum(-1, keepdim=True)
        out = self.dispatch(x.flatten(0, 1), choice, share, self.experts).view_as(x)
        if self.shared is None:
            return out
        common: Tensor = self.shared(x)
        if self.shared_gate is not None:
            common = common * self.shared_gate(x).sigmoid()
        return out + common
