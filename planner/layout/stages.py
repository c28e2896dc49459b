"""Which layers each pipeline stage holds when nothing better is known."""

from functools import lru_cache


@lru_cache(maxsize=4096)
def split_layers(layers: int, chunks: int) -> tuple[int, ...]:
    """Return the layers of each of ``chunks`` (virtual) stages, first to last.

    Equal where it divides. Where embedding and head counted as a layer each make it divide
    (Megatron's ``--account-for-embedding-in-pipeline-split``; BLOOM, Llama 3 405B), the two ends
    hold one layer fewer. Otherwise the remainder goes to the stages after the first.
    """
    if layers % chunks == 0:
        return (layers // chunks,) * chunks
    if (layers + 2) % chunks == 0 and chunks > 1:
        each = (layers + 2) // chunks
        return (each - 1, *(each,) * (chunks - 2), each - 1)
    base, extra = divmod(layers, chunks)
    return tuple(base + (1 <= index <= extra) for index in range(chunks))
