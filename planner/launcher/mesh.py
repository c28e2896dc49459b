"""The grid of ranks and this rank's place in it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .plan_file import PlanFile


@dataclass(frozen=True)
class Grid:
    """Ranks as pipeline x replicate x shard x tensor, the last one innermost.

    Replicate times shard is the data-parallel degree; ``shard`` is the number of ranks that share
    one copy of the optimizer state. Ranks ascend inside every group: ``DeviceMesh`` ignores any
    other order without a word, so a rank map never goes through the mesh.
    """

    mesh: DeviceMesh
    pp: int
    dp: int
    tp: int
    pp_rank: int
    dp_rank: int

    @property
    def data_mesh(self) -> DeviceMesh:
        """The mesh FSDP shards over: two-dimensional (HSDP) when there are replicas."""
        if self.mesh["replicate"].size() > 1:
            return self.mesh["replicate", "shard"]
        return self.mesh["shard"]

    @property
    def tensor_group(self) -> dist.ProcessGroup | None:
        """The tensor-parallel group; None when it is this rank alone."""
        return self.mesh.get_group("tensor") if self.tp > 1 else None


def build_grid(plan: PlanFile, device: torch.device) -> Grid:
    """Return the grid of ``plan``. Collective: every rank of the world calls it."""
    layout = plan.layout
    replicas = layout.dp // layout.shard_optimizer
    mesh = init_device_mesh(
        device.type,
        (layout.pp, replicas, layout.shard_optimizer, layout.tp),
        mesh_dim_names=("pipeline", "replicate", "shard", "tensor"),
    )
    replica, shard = mesh.get_local_rank("replicate"), mesh.get_local_rank("shard")
    return Grid(
        mesh=mesh,
        pp=layout.pp,
        dp=layout.dp,
        tp=layout.tp,
        pp_rank=mesh.get_local_rank("pipeline"),
        dp_rank=replica * layout.shard_optimizer + shard,
    )
