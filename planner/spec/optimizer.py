"""Optimizers as data: what each keeps and moves for one parameter."""

from typing import NamedTuple

# what SoftwareSpec.optimizer_bytes holds beside the master weight
ADAM_STATE_BYTES = 8.0
GRADIENT_READ_BYTES = 4


class OptimizerKind(NamedTuple):
    """State bytes of a parameter, apart from its master weight, and what an update moves.

    ``matrix_bytes`` are kept for a weight matrix of a layer, ``other_bytes`` for embeddings,
    output matrix, norms and biases. An update reads and writes master weight and state and reads
    the fp32 gradient; ``more_moved_bytes`` come on top. ``orthogonalises``: Newton-Schulz
    products on the matrices of layers (``model.flops.newton_schulz_flops``).
    """

    matrix_bytes: float
    other_bytes: float
    more_moved_bytes: float = 0.0
    orthogonalises: bool = False


# One byte each of two states, and an fp32 scale for every block of 256 numbers.
_EIGHT_BIT = 2 * (1 + 4 / 256)

OPTIMIZERS = {
    # momentum and variance in fp32 (ZeRO, arXiv 1910.02054, 3.1)
    "adamw": OptimizerKind(8, 8),
    # arXiv 2110.02861; blocks of 256 in torchao (prototype low-bit optimizers) and bitsandbytes
    "adamw-8bit": OptimizerKind(_EIGHT_BIT, _EIGHT_BIT),
    # Megatron-Core --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16; DeepSeek-V3, arXiv 2412.19437, 3.3
    "adamw-bf16": OptimizerKind(4, 4),
    # plain: the weight moves along its gradient
    "sgd": OptimizerKind(0, 0),
    "sgd-momentum": OptimizerKind(4, 4),
    # arXiv 1904.00962. Fused in two passes (apex FusedLAMB): the first writes the update over the
    # gradient (4), the second reads it and the weight again (8); two norms read both (8)
    "lamb": OptimizerKind(8, 8, more_moved_bytes=20),
    # one momentum for matrices, AdamW for the rest (arXiv 2502.16982, 2.2); the update of a matrix
    # is written and read once beside the products
    "muon": OptimizerKind(4, 8, more_moved_bytes=8, orthogonalises=True),
    # means of rows and columns, 4/rows + 4/columns bytes (under 0.01 from widths of 1024 up), no
    # momentum (arXiv 1804.04235, algorithm 5); its clipped update is written and read once
    "adafactor": OptimizerKind(0, 0, more_moved_bytes=8),
}


def master_bytes(optimizer_bytes: float) -> float:
    """Return the master weight in a stack that keeps ``optimizer_bytes`` with AdamW."""
    return max(0.0, optimizer_bytes - ADAM_STATE_BYTES)


def kept_bytes(name: str, optimizer_bytes: float, matrices: float, others: float) -> float:
    """Return master weights and state of ``matrices`` parameters of matrices and of ``others``.

    ``optimizer_bytes`` is what the stack keeps for a parameter with AdamW, master included.
    """
    kind = OPTIMIZERS[name]
    state = kind.matrix_bytes * matrices + kind.other_bytes * others
    return state + master_bytes(optimizer_bytes) * (matrices + others)


def update_bytes(name: str, optimizer_bytes: float, matrices: float, others: float) -> float:
    """Return the bytes an update reads and writes, without the 2-byte copy of the weight.

    28 for a parameter of mixed-precision AdamW (ZeRO-Offload, ATC 21, 5.1).
    """
    kind = OPTIMIZERS[name]
    moved = 2 * kept_bytes(name, optimizer_bytes, matrices, others)
    moved += GRADIENT_READ_BYTES * (matrices + others)
    # what is no matrix to an orthogonalising optimizer has AdamW's update
    return moved + kind.more_moved_bytes * (matrices + (not kind.orthogonalises) * others)
