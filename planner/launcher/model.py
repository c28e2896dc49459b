"""A decoder built from the model record: whole, or the layers of one pipeline stage.

Module names carry the number of the layer in the whole model, so a parameter has the same name in
every layout. Tensors are [batch, sequence, hidden]; under sequence parallelism the sequence is the
local part between the blocks and whole inside attention and MLP.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .plan_file import ModelConfig, StageConfig

_ROTARY_BASE = 10000.0
_NORM_EPSILON = 1e-5


class Rotary:
    """Rotary positions (Su et al. 2021), halves of a head turned against each other.

    No module and no argument of a block: FSDP would cast the tables to bf16.
    """

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self._tables: tuple[Tensor, Tensor] | None = None

    def _cos_sin(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return two tables [seq_len, 1, head_dim / 2]."""
        tables = self._tables
        if tables is None or tables[0].shape[0] != seq_len or tables[0].device != device:
            exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
            positions = torch.arange(seq_len, device=device).float()
            angles = torch.outer(positions, _ROTARY_BASE**-exponents)[:, None, :]
            tables = self._tables = (angles.cos(), angles.sin())
        return tables

    def __call__(self, heads: Tensor) -> Tensor:
        """Turn ``heads`` [batch, seq, heads, head_dim]."""
        cos, sin = self._cos_sin(heads.shape[1], heads.device)
        left, right = heads.float().chunk(2, dim=-1)
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
        return turned.to(heads.dtype)


def norm(model: ModelConfig) -> nn.Module:
    """Return the norm over the hidden width."""
    if model.norm_bias:
        return nn.LayerNorm(model.hidden, eps=_NORM_EPSILON)
    return nn.RMSNorm(model.hidden, eps=_NORM_EPSILON)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        query, key_value = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self.head_dim = model.head_dim
        self.query = nn.Linear(model.hidden, query, bias=model.qkv_bias)
        self.key = nn.Linear(model.hidden, key_value, bias=model.qkv_bias)
        self.value = nn.Linear(model.hidden, key_value, bias=model.qkv_bias)
        self.out = nn.Linear(query, model.hidden, bias=model.attention_out_bias)
        self.query_norm = self.key_norm = None
        if model.qk_norm:
            self.query_norm = nn.RMSNorm(model.head_dim, eps=_NORM_EPSILON)
            self.key_norm = nn.RMSNorm(model.head_dim, eps=_NORM_EPSILON)
        self.rotary = None if model.positions else Rotary(model.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; the head count is the local one."""
        query = self.query(x).unflatten(-1, (-1, self.head_dim))
        key = self.key(x).unflatten(-1, (-1, self.head_dim))
        value = self.value(x).unflatten(-1, (-1, self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


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
    """SwiGLU with three matrices, or GELU with two."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        bias = model.mlp_bias
        self.gate = nn.Linear(model.hidden, model.ffn_hidden, bias) if model.gated_mlp else None
        self.up = nn.Linear(model.hidden, model.ffn_hidden, bias)
        self.down = nn.Linear(model.ffn_hidden, model.hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; the inner width is the local one."""
        up = self.up(x)
        inner: Tensor = F.gelu(up) if self.gate is None else swiglu(self.gate(x), up)
        outer: Tensor = self.down(inner)
        return outer


class Block(nn.Module):
    """One layer; with ``recompute`` it keeps only its input and runs again in the backward pass."""

    def __init__(self, model: ModelConfig, recompute: bool) -> None:
        super().__init__()
        self.attention_norm = norm(model)
        self.attention = Attention(model)
        self.mlp_norm = norm(model)
        self.mlp = Mlp(model)
        self.parallel = model.parallel_block
        self.recompute = recompute

    def _layer(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.attention(self.attention_norm(x))
        mixed = mixed + self.mlp(self.mlp_norm(x if self.parallel else mixed))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]."""
        if self.recompute and torch.is_grad_enabled():
            # no dropout anywhere, so the random state need not be kept
            return checkpoint(  # type: ignore[no-any-return]
                self._layer, x, use_reentrant=False, preserve_rng_state=False
            )
        return self._layer(x)


class TiedHead(nn.Module):
    """The output product with the embedding's own weight."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return logits [batch, seq, vocabulary]."""
        return F.linear(x, weight)


class Decoder(nn.Module):
    """The layers of one stage, with the embedding in front and the head behind where it has them.

    Tied embeddings share one parameter where both ends are on the same stage. On two stages each
    has a copy, and ``tied.TiedCopies`` keeps the copies equal.
    """

    def __init__(self, model: ModelConfig, stage: StageConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab, model.hidden) if stage.embedding else None
        learned = stage.embedding and model.positions > 0
        self.positions = nn.Embedding(model.positions, model.hidden) if learned else None
        numbers = range(stage.first_layer, stage.first_layer + stage.layers)
        repeated = stage.first_layer + stage.recompute_layers
        self.layers = nn.ModuleDict({str(i): Block(model, i < repeated) for i in numbers})
        self.norm = norm(model) if stage.head else None
        self.head: nn.Module | None = None
        if stage.head:
            shared = model.tied_embeddings and stage.embedding
            linear = nn.Linear(model.hidden, model.vocab, bias=False)
            self.head = TiedHead() if shared else linear

    def _embed(self, tokens: Tensor) -> Tensor:
        assert self.embedding is not None
        x: Tensor = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device)[None])
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Take tokens [batch, seq] or the previous stage's output; return logits or the output."""
        if self.embedding is not None:
            x = self._embed(x)
        for block in self.layers.values():
            x = block(x)
        if self.norm is None or self.head is None:
            return x
        if isinstance(self.head, TiedHead):
            assert self.embedding is not None
            return self.head(self.norm(x), self.embedding.weight)  # type: ignore[no-any-return]
        return self.head(self.norm(x))  # type: ignore[no-any-return]
