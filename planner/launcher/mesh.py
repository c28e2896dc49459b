"""The grid of ranks and this rank's place in it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .context import Context
from .facts import masters_apart
from .plan_file import LayoutConfig, PlanFile


@dataclass(frozen=True)
class Grid:
    """The ranks as two grids with the last dimension innermost, and this rank's place.

    ``mesh`` is pipeline x replicate x shard x tensor. Replicate times shard is the data-parallel
    times the context-parallel degree, context innermost; ``shard`` is the number of ranks that
    share one copy of the optimizer state. ``expert_mesh`` folds the same ranks of a stage into
    replicate x shard x ep x etp (MoE Parallel Folding, arXiv 2504.14960); None without experts.
    Where masters are apart, ``shard`` is the ranks that share the weights, ``near`` and ``far``
    stand between it and the replicas, and ``master_mesh`` is shard x near x far: in this order the
    rows of a tensor are cut.
    Ranks ascend inside every group: ``DeviceMesh`` ignores any other order without a word, so a
    rank map never goes through the mesh.
    """

    mesh: DeviceMesh
    master_mesh: DeviceMesh | None
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
    names = mesh.mesh_dim_names or ()
    if "near" not in names and mesh["replicate"].size() > 1:
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


def _dimensions(layout: LayoutConfig) -> dict[str, int]:
    """Return the dimensions of the mesh of dense layers."""
    optimizer = layout.shard_optimizer
    sizes = {"pipeline": layout.pp, "replicate": layout.dp * layout.cp // optimizer}
    if masters_apart(layout):
        gradients = max(layout.shard_weights, layout.shard_gradients)
        sizes |= {"far": optimizer // gradients, "near": gradients // layout.shard_weights}
        return sizes | {"shard": layout.shard_weights, "tensor": layout.tp}
    return sizes | {"shard": optimizer, "tensor": layout.tp}


def _master_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the dimensions that cut the masters, in the order in which they do."""
    order = ("replicate", "shard", "near", "far")
    names = mesh.mesh_dim_names or ()
    ranks = mesh.mesh[0, ..., 0].permute([names[1:-1].index(name) for name in order])
    turned = DeviceMesh(mesh.device_type, ranks.contiguous(), mesh_dim_names=order)
    return turned[order[1:]]


def build_grid(plan: PlanFile, device: torch.device) -> Grid:
    """Return the grid of ``plan``. Collective: every rank of the world calls it."""
    layout = plan.layout
    sizes = _dimensions(layout)
    mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes.keys()))
    data = 0
    for name in list(sizes)[1:-1]:
        data = data * sizes[name] + mesh.get_local_rank(name)
    experts = plan.model.moe is not None
    return Grid(
        mesh=mesh,
        master_mesh=_master_mesh(mesh) if masters_apart(layout) else None,
        expert_mesh=_expert_mesh(layout, device) if experts else None,
        expert_group=_expert_group(layout, device) if experts else None,
        context=_context(layout, plan.context_exchange, device),
        pp=layout.pp,
        dp=layout.dp,
        tp=layout.tp,
        pp_rank=mesh.get_local_rank("pipeline"),
        dp_rank=data // layout.cp,
    )
