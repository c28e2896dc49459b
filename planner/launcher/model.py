"""A decoder built from the model record: whole, or the layers of one pipeline stage.

Module names carry the number of the layer in the whole model, so a parameter has the same name in
every layout. Tensors are [batch, sequence, hidden]; under sequence parallelism the sequence is the
local part between the blocks and whole inside attention and MLP.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import NORM_EPSILON, Attention, LatentAttention, Rotary, build_rotary
from .context import Context
from .experts import MixtureOfExperts
from .mlp import Mlp
from .offload import Offloader
from .plan_file import ModelConfig, StageConfig


def norm(model: ModelConfig) -> nn.Module:
    """Return the norm over the hidden width."""
    if model.norm_bias:
        return nn.LayerNorm(model.hidden, eps=NORM_EPSILON)
    return nn.RMSNorm(model.hidden, eps=NORM_EPSILON)


def _attention(
    model: ModelConfig, context: Context, rotary: Rotary | None
) -> Attention | LatentAttention:
    if model.mla is not None:
        return LatentAttention(model, model.mla, context, rotary)
    return Attention(model, context, rotary)


def _mlp(model: ModelConfig, layer: int) -> Mlp | MixtureOfExperts:
    if model.moe is not None and model.moe.at(layer):
        return MixtureOfExperts(model, model.moe)
    return Mlp(model, model.ffn_hidden)


class Block(nn.Module):
    """One layer; with ``recompute`` it keeps only its input and runs again in the backward pass."""

    def __init__(
        self,
        model: ModelConfig,
        layer: int,
        recompute: bool,
        context: Context,
        rotary: Rotary | None,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(model)
        # what is recomputed keeps nothing of its first forward pass
        self.attention = _attention(model, replace(context, gathers_again=not recompute), rotary)
        self.mlp_norm = norm(model)
        self.mlp = _mlp(model, layer)
        self.parallel = model.parallel_block
        self.recompute = recompute
        self.offloader: Offloader | None = None
        self.before_loss = False  # its backward pass comes at once

    def _layer(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.attention(self.attention_norm(x))
        mixed = mixed + self.mlp(self.mlp_norm(x if self.parallel else mixed))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden]."""
        if self.offloader is None or not torch.is_grad_enabled():
            return self._run(x)
        rotary = self.attention.rotary
        lasting = () if rotary is None else rotary.tables
        with self.offloader.layer(self, self.before_loss, lasting) as layer:
            out = self._run(x)
        self.offloader.watch(layer, out)
        return out

    def _run(self, x: Tensor) -> Tensor:
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

    def __init__(
        self, model: ModelConfig, stage: StageConfig, context: Context = Context()
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(model.vocab, model.hidden) if stage.embedding else None
        learned = stage.embedding and model.positions > 0
        self.positions = nn.Embedding(model.positions, model.hidden) if learned else None
        numbers = range(stage.first_layer, stage.first_layer + stage.layers)
        repeated = stage.first_layer + stage.recompute_layers
        rotary = build_rotary(model, context)
        self.layers = nn.ModuleDict(
            {str(i): Block(model, i, i < repeated, context, rotary) for i in numbers}
        )
        self.norm = norm(model) if stage.head else None
        self.offloader: Offloader | None = None
        self.head: nn.Module | None = None
        if stage.head:
            shared = model.tied_embeddings and stage.embedding
            linear = nn.Linear(model.hidden, model.vocab, bias=False)
            self.head = TiedHead() if shared else linear

    def give_away(self, offloader: Offloader) -> None:
        """Let ``offloader`` take what the layers save."""
        self.offloader = offloader
        blocks = [block for block in self.layers.values() if isinstance(block, Block)]
        for block in blocks:
            block.offloader = offloader
        if blocks and self.head is not None:
            blocks[-1].before_loss = True

    def _embed(self, tokens: Tensor) -> Tensor:
        assert self.embedding is not None
        x: Tensor = self.embedding(tokens)
        if self.positions is not None:
            places = self.context.positions(tokens.shape[1], tokens.device)
            x = x + self.positions(places[None])
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Take tokens [batch, seq] or the previous stage's output; return logits or the output."""
        received = x if self.embedding is None else None
        if self.embedding is not None:
            x = self._embed(x)
        if self.offloader is not None:
            self.offloader.begin_pass(received)
        for block in self.layers.values():
            x = block(x)
        if self.offloader is not None:
            self.offloader.end_pass(loss_follows=self.head is not None)
        if self.norm is None or self.head is None:
            return x
        if isinstance(self.head, TiedHead):
            assert self.embedding is not None
            return self.head(self.norm(x), self.embedding.weight)  # type: ignore[no-any-return]
        return self.head(self.norm(x))  # type: ignore[no-any-return]
