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


def local_part(full: Tensor, parameter: DTensor) -> Tensor:
    """Return this rank's part of ``full`` without any communication.

    Mesh dimensions are walked innermost first: tensor parallelism split the tensor before FSDP
    did. Parts are those of ``torch.chunk``, the missing last ones empty.
    """
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    part = full
    for axis in range(mesh.ndim - 1, -1, -1):
        dim = getattr(parameter.placements[axis], "dim", None)
        if dim is None:
            continue
        chunks = part.chunk(mesh.size(axis), dim)
        place = coordinate[axis]
        part = chunks[place] if place < len(chunks) else part.narrow(dim, 0, 0)
    return part


@torch.no_grad()
def initialise(stage: nn.Module, seed: int, tied_head: bool) -> None:
    """Fill every parameter of ``stage``. With ``tied_head`` the head starts as the embedding."""
    for name, parameter in stage.named_parameters():
        source = "embedding.weight" if tied_head and name == "head.weight" else name
        full = full_weight(source, parameter.shape, seed, parameter.device)
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(local_part(full, parameter))
        else:
            parameter.copy_(full)
