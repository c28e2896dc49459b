"""Synthetic tokens that depend on the seed, the step and the row, never on the layout."""

import torch
from torch import Tensor

_LONGEST_STRIDE = 4


def rows(first: int, count: int, step: int, seed: int, seq_len: int, vocab: int) -> Tensor:
    """Return rows ``first .. first + count`` of one step's global batch, ``[count, seq_len + 1]``.

    Each row walks through the vocabulary in random strides of 1 to 4, so a model can learn it: the
    loss starts near ``ln(vocab)`` and falls towards ``ln(4)``. The extra token makes the targets.
    """
    out = torch.empty(count, seq_len + 1, dtype=torch.long)
    for i in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 100_003 + first + i)
        strides = torch.randint(1, _LONGEST_STRIDE + 1, (seq_len + 1,), generator=generator)
        start = torch.randint(0, vocab, (1,), generator=generator)
        out[i] = (start + strides.cumsum(0)) % vocab
    return out
