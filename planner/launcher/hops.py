"""Collectives over the rows of several tensors at once, cut into parts as ``torch.chunk`` does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

# torch 2.13 calls them by new names and warns about the old ones
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass(frozen=True)
class Hop:
    """The ranks of one dimension of a mesh, and which of their parts is this rank's."""

    size: int
    rank: int
    group: dist.ProcessGroup | None

    @classmethod
    def over(cls, mesh: DeviceMesh, name: str) -> "Hop":
        """Return the hop over dimension ``name``."""
        return cls(mesh[name].size(), mesh.get_local_rank(name), mesh.get_group(name))

    def own(self, rows: range) -> range:
        """Return this rank's part of ``rows``; the last parts may be shorter, or empty."""
        each = -(-len(rows) // self.size)
        return rows[each * self.rank :][:each]

    def scatter(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return this rank's rows of the mean of each tensor over the hop. Collective."""
        if self.size == 1:
            return list(tensors)
        sent = torch.cat([self._parts(one) for one in tensors], dim=1)
        received = sent.new_empty(sent.shape[1])
        _reduce_scatter(received, sent.view(-1), group=self.group)
        received.div_(self.size)
        widths = [-(-len(one) // self.size) * _width(one) for one in tensors]
        return [
            part[: len(self.own(range(len(one)))) * _width(one)].reshape(-1, *one.shape[1:])
            for part, one in zip(torch.split(received, widths), tensors, strict=True)
        ]

    def gather(self, pieces: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Return tensors of ``rows`` rows, the ``pieces`` of all ranks in order. Collective."""
        if self.size == 1:
            return list(pieces)
        sent = torch.cat(
            [self._padded(one, -(-n // self.size)) for one, n in zip(pieces, rows, strict=True)]
        )
        received = sent.new_empty(self.size, len(sent))
        _all_gather(received.view(-1), sent, group=self.group)
        widths = [-(-n // self.size) * _width(one) for one, n in zip(pieces, rows, strict=True)]
        return [
            part.reshape(-1, *one.shape[1:])[:n]
            for part, one, n in zip(torch.split(received, widths, dim=1), pieces, rows, strict=True)
        ]

    def _parts(self, tensor: Tensor) -> Tensor:
        """Return [ranks, elements of a part], the last ones filled with zeros."""
        each = -(-len(tensor) // self.size)
        return self._padded(tensor, each * self.size).view(self.size, -1)

    def _padded(self, tensor: Tensor, rows: int) -> Tensor:
        flat = tensor.new_zeros(rows * _width(tensor))
        flat[: tensor.numel()] = tensor.flatten()
        return flat


def _width(tensor: Tensor) -> int:
    """Return the elements of a row."""
    width = 1
    for size in tensor.shape[1:]:
        width *= size
    return width
