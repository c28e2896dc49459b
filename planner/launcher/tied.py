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
        for parameter in (self._copy("embedding"), self.head):
            if parameter is not None:
                assert isinstance(parameter.grad, DTensor)
                dist.all_reduce(parameter.grad.to_local(), group=self.group)
