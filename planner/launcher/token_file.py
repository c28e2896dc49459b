"""Tokens of a file, mapped into memory: the same rows for every layout and every resumed run.

The file holds token numbers and nothing else, little-endian, 2 or 4 bytes each. It is cut into
windows of ``seq_len`` tokens; each epoch goes through all of them once, in an order of its own.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

# a window's first token is the last target of the window before it
_DTYPES = {2: torch.uint16, 4: torch.int32}
_GOLDEN = (math.sqrt(5) - 1) / 2


class TokenFile:
    """Windows of ``seq_len + 1`` tokens of a file, in an order that ``seed`` chooses."""

    def __init__(self, path: Path, token_bytes: int, seq_len: int, vocab: int, seed: int) -> None:
        self.path, self.seq_len, self.vocab, self.seed = path, seq_len, vocab, seed
        count = path.stat().st_size // token_bytes
        self.windows = (count - 1) // seq_len
        self.tokens = torch.from_file(str(path), size=count, dtype=_DTYPES[token_bytes])

    def window(self, row: int) -> int:
        """Return which window is row number ``row`` of the run.

        A walk in strides that have no divisor in common with the number of windows meets each of
        them once an epoch, and needs no table; near the golden ratio it spreads evenly.
        """
        epoch, place = divmod(row, self.windows)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shift, more = torch.randint(self.windows, (2,), generator=generator).tolist()
        stride = max(1, int(self.windows * _GOLDEN) + more)
        while math.gcd(stride, self.windows) > 1:
            stride += 1
        return int(shift + place * stride) % self.windows

    def rows(self, first: int, count: int) -> Tensor:
        """Return rows ``first .. first + count`` of the run, ``[count, seq_len + 1]``.

        Raises ``ValueError`` with the place of a token that is not in the vocabulary.
        """
        out = torch.empty(count, self.seq_len + 1, dtype=torch.long)
        for i in range(count):
            start = self.window(first + i) * self.seq_len
            out[i] = self.tokens[start : start + self.seq_len + 1]
            if int(out[i].min()) < 0 or int(out[i].max()) >= self.vocab:
                wrong = (out[i] < 0) | (out[i] >= self.vocab)
                at = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{self.path}: token {start + at} is {int(out[i, at])}, the model's vocabulary "
                    f"has {self.vocab}; use the model's tokenizer, or check --token-bytes"
                )
        return out
