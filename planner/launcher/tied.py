"""Tied embeddings on two pipeline stages: two copies of one weight, one gradient."""

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from .mesh import Grid
from .model import Decoder


class TiedCopies:
    """Adds up the gradients of the first stage's embedding and the last stage's head.

    Both copies start equal and see equal gradients, so any optimizer keeps them equal (Megatron-LM
    does the same over its embedding group).
    """

    def __init__(self, grid: Grid, stages: list[Decoder]) -> None:
        """Make the groups. Collective: every rank of the world calls it."""
        ranks = grid.mesh.mesh.flatten(1)  # pipeline, everything else
        ends = ranks[[0, -1]].T.tolist()
        self.group, _ = dist.new_subgroups_by_enumeration(ends)  # type: ignore[no-untyped-call]
        self.embedding: nn.Parameter | None = None
        self.head: nn.Parameter | None = None
        for stage in stages:
            named = dict(stage.named_parameters())
            self.embedding = named.get("embedding.weight", self.embedding)
            self.head = named.get("head.weight", self.head)

    def add_gradients(self) -> None:
        """Sum the two gradients; ranks that hold neither copy have nothing to do."""
        for parameter in (self.embedding, self.head):
            if parameter is not None:
                assert isinstance(parameter.grad, DTensor)
                dist.all_reduce(parameter.grad.to_local(), group=self.group)
