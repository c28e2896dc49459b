"""Initial weights that depend on the seed and the parameter's name, never on the layout."""

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def _generator(name: str, seed: int, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def full_weight(name: str, shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Return the whole initial tensor of one parameter.

    Norms start at 1, biases at 0, matrices and tables at a deviation of one over the root of their
    last dimension, so that the gradients of all parts matter from the first step.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape, device=device)
    if name.endswith("bias"):
        return torch.zeros(shape, device=device)
    full = torch.empty(shape, device=device)
    return full.normal_(std=shape[-1] ** -0.5, generator=_generator(name, seed, device))


def local_slices(parameter: Tensor) -> tuple[slice, ...]:
    """Return which part of the whole tensor this rank holds, one slice per dimension.

    Mesh dimensions are walked innermost first: tensor and expert parallelism split the tensor
    before FSDP did. Parts are those of ``torch.chunk``, the missing last ones empty.
    """
    parts = [range(size) for size in parameter.shape]
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        coordinate = mesh.get_coordinate()
        assert coordinate is not None
        for axis in range(mesh.ndim - 1, -1, -1):
            dim = getattr(parameter.placements[axis], "dim", None)
            if dim is not None:
                size = -(-len(parts[dim]) // mesh.size(axis))
                parts[dim] = parts[dim][size * coordinate[axis] :][:size]
    return tuple(slice(part.start, part.stop) for part in parts)


def _fill(local: Tensor, name: str, parameter: Tensor, seed: int) -> None:
    """Fill ``local``, this rank's part of ``parameter``."""
    slices = local_slices(parameter)
    if parameter.ndim < 3:
        local.copy_(full_weight(name, parameter.shape, seed, local.device)[slices])
        return
    # experts one by one, and only those held here: all of them may not fit
    for i, number in enumerate(range(slices[0].start, slices[0].stop)):
        full = full_weight(f"{name}.{number}", parameter.shape[1:], seed, local.device)
        local[i].copy_(full[slices[1:]])


@torch.no_grad()
def initialise(stage: nn.Module, seed: int, tied_head: bool) -> None:
    """Fill every parameter of ``stage``. With ``tied_head`` the head starts as the embedding."""
    for name, parameter in stage.named_parameters():
        source = "embedding.weight" if tied_head and name == "head.weight" else name
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        _fill(local, source, parameter, seed)
