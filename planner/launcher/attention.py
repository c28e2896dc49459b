"""Causal attention: grouped query heads, or the latent attention of DeepSeek."""

import torch
from torch import Tensor, nn

from .context import Context, attend
from .plan_file import MLAConfig, ModelConfig

_ROTARY_BASE = 10000.0
NORM_EPSILON = 1e-5


class Rotary:
    """Rotary positions (Su et al. 2021), halves of a head turned against each other.

    One for all layers of a stage. No module and no argument of a forward pass: FSDP would cast the
    tables to bf16.
    """

    def __init__(self, head_dim: int, context: Context) -> None:
        self.head_dim, self.context = head_dim, context
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """Return what lives as long as the stage; nothing before the first pass."""
        return self._tables or ()

    def _cos_sin(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return two tables [seq_len, 1, head_dim / 2]."""
        tables = self._tables
        if tables is None or tables[0].shape[0] != seq_len or tables[0].device != device:
            exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
            positions = self.context.positions(seq_len, device).float()
            angles = torch.outer(positions, _ROTARY_BASE**-exponents)[:, None, :]
            tables = self._tables = (angles.cos(), angles.sin())
        return tables

    def __call__(self, heads: Tensor) -> Tensor:
        """Turn ``heads`` [batch, seq, heads, head_dim] of this rank's tokens."""
        cos, sin = self._cos_sin(heads.shape[1], heads.device)
        left, right = heads.float().chunk(2, dim=-1)
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
        return turned.to(heads.dtype)


def build_rotary(model: ModelConfig, context: Context) -> Rotary | None:
    """Return the rotary positions of all layers, or None where positions are learned."""
    if model.positions:
        return None
    turned = model.head_dim if model.mla is None else model.mla.qk_rope_head_dim
    return Rotary(turned, context)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads."""

    def __init__(self, model: ModelConfig, context: Context, rotary: Rotary | None) -> None:
        super().__init__()
        query, key_value = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self.head_dim = model.head_dim
        self.context = context
        self.query = nn.Linear(model.hidden, query, bias=model.qkv_bias)
        self.key = nn.Linear(model.hidden, key_value, bias=model.qkv_bias)
        self.value = nn.Linear(model.hidden, key_value, bias=model.qkv_bias)
        self.out = nn.Linear(query, model.hidden, bias=model.attention_out_bias)
        self.query_norm = self.key_norm = None
        if model.qk_norm:
            self.query_norm = nn.RMSNorm(model.head_dim, eps=NORM_EPSILON)
            self.key_norm = nn.RMSNorm(model.head_dim, eps=NORM_EPSILON)
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; the head count is the local one."""
        query = self.query(x).unflatten(-1, (-1, self.head_dim))
        key = self.key(x).unflatten(-1, (-1, self.head_dim))
        value = self.value(x).unflatten(-1, (-1, self.head_dim))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        mixed = attend(query, key, value, self.context)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]


def _halves(heads: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Cut every head of ``heads`` [batch, seq, heads * (first + second)] in two."""
    apart = heads.view(*heads.shape[:2], -1, first + second)
    return apart[..., :first], apart[..., first:]


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1).

    Keys and values come out of one narrow vector per token, and queries too unless ``q_lora_rank``
    is 0. Positions turn ``qk_rope_head_dim`` numbers of each query head, and one key that all heads
    share. Under sequence parallelism the narrow vectors are made of the local part of the sequence
    and gathered afterwards.
    """

    def __init__(
        self, model: ModelConfig, mla: MLAConfig, context: Context, rotary: Rotary | None
    ) -> None:
        super().__init__()
        self.mla, self.context = mla, context
        hidden, bias = model.hidden, model.qkv_bias
        query = model.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        key_value = model.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        self.query_down = self.query_norm = None
        if mla.q_lora_rank:
            self.query_down = nn.Linear(hidden, mla.q_lora_rank, bias=bias)
            self.query_norm = nn.RMSNorm(mla.q_lora_rank, eps=NORM_EPSILON)
        self.query_up = nn.Linear(mla.q_lora_rank or hidden, query, bias=False)
        latent = mla.kv_lora_rank + mla.qk_rope_head_dim
        self.key_value_down = nn.Linear(hidden, latent, bias=bias)
        self.key_value_norm = nn.RMSNorm(mla.kv_lora_rank, eps=NORM_EPSILON)
        self.key_value_up = nn.Linear(mla.kv_lora_rank, key_value, bias=False)
        self.shared_key = nn.Identity()  # tensor parallelism gathers the key here
        self.out = nn.Linear(model.heads * mla.v_head_dim, hidden, bias=model.attention_out_bias)
        self.rotary = rotary

    def _queries(self, x: Tensor) -> Tensor:
        """Return all heads side by side, [batch, seq, heads * head_dim]."""
        if self.query_down is not None and self.query_norm is not None:
            x = self.query_norm(self.query_down(x))
        return self.query_up(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]; the head count is the local one."""
        mla = self.mla
        plain, turned = _halves(self._queries(x), mla.qk_nope_head_dim, mla.qk_rope_head_dim)
        latent, key = self.key_value_down(x).split((mla.kv_lora_rank, mla.qk_rope_head_dim), -1)
        up = self.key_value_up(self.key_value_norm(latent))
        plain_key, value = _halves(up, mla.qk_nope_head_dim, mla.v_head_dim)
        value = value.contiguous()  # a view would keep the keys beside it for the backward pass
        key = self.shared_key(key)[:, :, None]
        if self.rotary is not None:
            turned, key = self.rotary(turned), self.rotary(key)
        query = torch.cat((plain, turned), -1)
        key = torch.cat((plain_key, key.expand(-1, -1, value.shape[2], -1)), -1)
        mixed = attend(query, key, value, self.context)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]
