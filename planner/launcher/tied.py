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
        self.stages = stages

    def _copy(self, name: str) -> nn.Parameter | None:
        found = (stage.get_submodule(name) for stage in self.stages if getattr(stage, name))
        weights = (getattr(module, "weight", None) for module in found)
        return next((weight for weight in weights if isinstance(weight, nn.Parameter)), None)

    @property
    def head(self) -> nn.Parameter | None:
        """The copy of the last stage, where this rank holds it."""
        return self._copy("head")

    def add_gradients(self) -> None:
        """Sum the two gradients; ranks that hold neither copy have nothing to do."""
        copies = [one for one in (self._copy("embedding"), self.head) if one is not None]
        gradients = [one.grad.to_local() for one in copies if isinstance(one.grad, DTensor)]
        assert len(gradients) == len(copies)
        if len(gradients) == 2:  # a V ends on the rank where it begins
            gradients[0].add_(gradients[1])
            gradients[1].copy_(gradients[0])
        elif gradients:
            dist.all_reduce(gradients[0], group=self.group)
