"""Which collectives run beside which computation."""

from collections.abc import Iterable, Sequence

from planner.model.operations import Collective, Gemm, Operation


def cover_kind(name: str) -> str:
    """Return what a hidden collective names as its cover.

    ``dgrad``, ``wgrad``, ``attention``, or the last word of a forward product.
    """
    return "attention" if name.startswith("attention") else name.rpartition(" ")[2]


def in_chunks(operations: Sequence[Operation], chunks: int) -> list[Operation]:
    """Return a forward pass whose tensor-parallel collectives run beside their products.

    A gathering is cut into ``chunks``, of which the product it feeds takes one after the other; a
    reduction follows the chunks of its product. Nothing runs beside the first (or last) chunk:
    ``max(0, t_comm - t_product) + t_comm / chunks`` stays exposed (MegaScale, NSDI 24, section
    3.2). All-reduces stay where they are.
    """
    found = list(operations)
    for place, operation in enumerate(operations):
        if not isinstance(operation, Collective) or operation.axis != "tp":
            continue
        if operation.kind == "all_gather":
            product = _weight_product(operations[place + 1 :])
        elif operation.kind == "reduce_scatter":
            product = _weight_product(reversed(operations[:place]))
        else:
            continue
        if product is not None:
            behind = cover_kind(product.name)
            found[place] = operation._replace(hidden_behind=behind, open_chunk=1 / chunks)
    return found


def _weight_product(operations: Iterable[Operation]) -> Gemm | None:
    """Return the first product with a weight."""
    return next((op for op in operations if isinstance(op, Gemm) and op.weight), None)
