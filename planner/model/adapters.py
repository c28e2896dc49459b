"""LoRA: adapters of low rank beside frozen matrices (Hu et al. 2021, arXiv 2106.09685, section 4).

A matrix of ``inputs`` by ``outputs`` stays as it is; two of rank ``r`` beside it, ``inputs`` by
``r`` and ``r`` by ``outputs``, are trained. Input gradients pass through the frozen matrix, its own
gradient is never made.
"""

from functools import lru_cache

from planner.model.backward import backward, is_weight_gradient
from planner.model.matrices import layer_matrices
from planner.model.operations import Elementwise, Gemm, Operation
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

_ADAPTER = " adapter "


def with_adapters(operations: list[Operation], job: JobSpec) -> list[Operation]:
    """Return forward operations with those of the adapters after the products they stand beside."""
    if not job.lora_rank:
        return operations
    found: list[Operation] = []
    for operation in operations:
        found.append(operation)
        if isinstance(operation, Gemm) and operation.name in job.lora_targets:
            down = operation._replace(name=f"{operation.name}{_ADAPTER}down", n=job.lora_rank)
            up = operation._replace(name=f"{operation.name}{_ADAPTER}up", k=job.lora_rank)
            # scaled and added to the output: two reads and a write
            outputs = operation.m * operation.n * operation.copies
            added = Elementwise(f"{operation.name}{_ADAPTER}add", 6 * outputs)
            found += [down, up, added]
    return found


def trained_backward(operation: Operation, job: JobSpec) -> tuple[Operation, ...]:
    """Return the backward pass of one forward operation, without gradients of frozen weights."""
    parts = backward(operation, job.software)
    if not job.lora_rank or _ADAPTER in operation.name:
        return parts
    return tuple(part for part in parts if not is_weight_gradient(part))


@lru_cache(maxsize=256)
def adapter_parameters(
    model: ModelSpec, rank: int, targets: tuple[str, ...], moe_layer: bool
) -> tuple[int, int]:
    """Return the parameters of one layer's adapters: (dense matrices, routed experts)."""
    dense = expert = 0
    for one in layer_matrices(model, moe_layer):
        if one.name in targets:
            size = rank * (one.inputs + one.outputs) * one.copies
            if one.role == "experts":
                expert += size
            else:
                dense += size
    return dense, expert
