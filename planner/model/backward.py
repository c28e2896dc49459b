"""What the backward pass does for one forward operation."""

from planner.model.operations import SHARD_ORDER, Attention, Elementwise, Gemm, Operation
from planner.spec.job import SoftwareSpec

GRADIENT_ACCUMULATION = "gradient accumulation"
_MIRROR = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}


def is_weight_gradient(operation: Operation) -> bool:
    """Whether a backward operation serves weights only, so that no other stage waits for it."""
    if isinstance(operation, Gemm):
        return operation.weight and operation.name.endswith(" wgrad")
    return operation.name == GRADIENT_ACCUMULATION


def backward(operation: Operation, software: SoftwareSpec) -> tuple[Operation, ...]:
    """Return what the backward pass does for one forward operation.

    A product becomes two (input gradient, weight gradient); fused attention costs 2.5 forward
    passes (five products for two); memory-bound kernels read the saved input and the gradient and
    write one: twice the traffic. Collectives are mirrored, except that the gradient of an
    all-reduced sum needs none where it entered and one where the forward pass had none, which is
    the same number.
    """
    if isinstance(operation, Gemm):
        input_gradient = operation._replace(
            name=f"{operation.name} dgrad", n=operation.k, k=operation.n
        )
        weight_gradient = operation._replace(
            name=f"{operation.name} wgrad",
            m=operation.k,
            k=operation.m,
            accumulates=operation.weight and software.fused_gradient_accumulation,
        )
        if not operation.weight or software.fused_gradient_accumulation:
            return input_gradient, weight_gradient
        # a kernel of its own reads the 2-byte gradient, reads and writes the 4-byte one
        added = 10 * operation.n * operation.k * operation.copies
        return input_gradient, weight_gradient, Elementwise(GRADIENT_ACCUMULATION, added)
    if isinstance(operation, Attention):
        return (operation._replace(name="attention backward", passes=2.5, kernels=3),)
    if isinstance(operation, Elementwise):
        if operation.name == SHARD_ORDER:
            return (operation,)
        name = f"{operation.name} backward"
        return (operation._replace(name=name, moved_bytes=2 * operation.moved_bytes),)
    kind = _MIRROR.get(operation.kind, operation.kind)
    mirrored = operation._replace(kind=kind, name=f"{operation.name} backward")
    if operation.open_chunk:
        mirrored = mirrored._replace(hidden_behind="dgrad")
    if operation.axis != "tp" or operation.kind == "reduce_scatter":
        return (mirrored,)  # feeds the next product: behind its chunks, or nothing
    if software.overlap_tp_wgrad:
        mirrored = mirrored._replace(hidden_behind="wgrad", open_chunk=0.0)
    if operation.kind != "all_gather" or not software.regather_sequence:
        return (mirrored,)
    # only the shard was kept: gather again for the weight gradient, behind the input gradient where
    # the software overlaps at all
    behind = "dgrad" if software.overlap_regather or operation.open_chunk else ""
    again = operation._replace(name=f"{operation.name} again", hidden_behind=behind, open_chunk=0.0)
    return mirrored, again
