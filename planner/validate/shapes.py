"""A GPT by the number of its parameters, where a run states no more than that."""

import re
from math import log
from typing import NamedTuple

VOCABULARY = 50304  # GPT-2's, padded to 128
HEAD_DIM = 128


class Shape(NamedTuple):
    """Layers and widths of a GPT, and the tokens of its sequences."""

    layers: int
    hidden: int
    heads: int
    seq_len: int


# billions of parameters and hidden width: GPT-3 (arXiv 2005.14165, table 2.1) to 13 B, Megatron-LM
# (arXiv 2104.04473, table 1) above, GPT-3 at 175 B
_WIDTHS = {
    0.35: 1024, 0.76: 1536, 1.3: 2048, 2.7: 2560, 6.7: 4096, 13: 5120, 39: 8192, 76: 10240,
    175: 12288, 310: 16384, 530: 20480, 1008: 25600,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([BbT])\b")


def gpt_of_size(name: str) -> Shape | None:
    """Return the shape of the published GPT nearest in size, with as many layers as fit the name.

    None where ``name`` holds no GPT or no size: ``gpt-52b``, ``GPT-2 style, max 13B``, ``GPT 1T``.
    """
    found = _SIZE.search(name)
    if found is None or "gpt" not in name.lower():
        return None
    billions = float(found[1]) * (1000 if found[2] == "T" else 1)
    nearest = min(_WIDTHS, key=lambda size: abs(log(size / billions)))
    hidden = _WIDTHS[nearest]
    layers = round((billions * 1e9 - VOCABULARY * hidden) / (12 * hidden * hidden))
    context = 1024 if "gpt-2" in name.lower() or "gpt2" in name.lower() else 2048
    return Shape(max(1, layers), hidden, max(1, hidden // HEAD_DIM), context)
