"""The grid of ranks and this rank's place in it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .context import Context
from .plan_file import LayoutConfig, PlanFile


@dataclass(frozen=True)
class Grid:
    """The ranks as two grids with the last dimension innermost, and this rank's place.

    ``mesh`` is pipeline x replicate x shard x tensor. Replicate times shard is the data-parallel
    times the context-parallel degree, context innermost; ``shard`` is the number of ranks that
    share one copy of the optimizer state. ``expert_mesh`` folds the same ranks of a stage into
    replicate x shard x ep x etp (MoE Parallel Folding, arXiv 2504.14960); None without experts.
    Ranks ascend inside every group: ``DeviceMesh`` ignores any other order without a word, so a
    rank map never goes through the mesh.
    """

    mesh: DeviceMesh
    expert_mesh: DeviceMesh | None
    expert_group: dist.ProcessGroup | None
    context: Context
    pp: int
    dp: int
    tp: int
    pp_rank: int
    dp_rank: int

    @property
    def data_mesh(self) -> DeviceMesh:
        """The mesh FSDP shards dense layers over."""
        return _sharding(self.mesh)

    @property
    def tensor_group(self) -> dist.ProcessGroup | None:
        """The tensor-parallel group; None when it is this rank alone."""
        return self.mesh.get_group("tensor") if self.tp > 1 else None

    @property
    def tensor_rank(self) -> int:
        """Where this rank stands among those that split a matrix."""
        return self.mesh.get_local_rank("tensor")


def _sharding(mesh: DeviceMesh) -> DeviceMesh:
    """Return the dimensions FSDP uses: two of them (HSDP) when there are replicas."""
    if mesh["replicate"].size() > 1:
        return mesh["replicate", "shard"]
    return mesh["shard"]


def expert_data_mesh(grid: Grid) -> DeviceMesh:
    """Return the mesh FSDP shards the experts over: the ``edp`` ranks that hold the same ones."""
    assert grid.expert_mesh is not None
    return _sharding(grid.expert_mesh)


def _context(layout: LayoutConfig, exchange: str, device: torch.device) -> Context:
    if layout.cp == 1:
        return Context()
    sizes, names = (layout.pp, layout.dp, layout.cp, layout.tp), ("pp", "dp", "cp", "tp")
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    group = mesh.get_group("cp")
    return Context(layout.cp, mesh.get_local_rank("cp"), group, exchange=exchange)


def _expert_mesh(layout: LayoutConfig, device: torch.device) -> DeviceMesh:
    shard = min(layout.shard_optimizer, layout.edp)
    return init_device_mesh(
        device.type,
        (layout.pp, layout.edp // shard, shard, layout.ep, layout.etp),
        mesh_dim_names=("pipeline", "replicate", "shard", "ep", "etp"),
    )


def _expert_group(layout: LayoutConfig, device: torch.device) -> dist.ProcessGroup | None:
    """Return the ranks that together hold every expert once, ``etp`` innermost."""
    size = layout.ep * layout.etp
    if size == 1:
        return None
    sizes, names = (layout.pp, layout.edp, size), ("pipeline", "edp", "experts")
    return init_device_mesh(device.type, sizes, mesh_dim_names=names).get_group("experts")


def build_grid(plan: PlanFile, device: torch.device) -> Grid:
    """Return the grid of ``plan``. Collective: every rank of the world calls it."""
    layout = plan.layout
    replicas = layout.dp * layout.cp // layout.shard_optimizer
    mesh = init_device_mesh(
        device.type,
        (layout.pp, replicas, layout.shard_optimizer, layout.tp),
        mesh_dim_names=("pipeline", "replicate", "shard", "tensor"),
    )
    replica, shard = mesh.get_local_rank("replicate"), mesh.get_local_rank("shard")
    experts = plan.model.moe is not None
    return Grid(
        mesh=mesh,
        expert_mesh=_expert_mesh(layout, device) if experts else None,
        expert_group=_expert_group(layout, device) if experts else None,
        context=_context(layout, plan.context_exchange, device),
        pp=layout.pp,
        dp=layout.dp,
        tp=layout.tp,
        pp_rank=mesh.get_local_rank("pipeline"),
        dp_rank=(replica * layout.shard_optimizer + shard) // layout.cp,
    )
