"""Seconds of each collective over a ladder of message sizes, for each kind of group.

Sizes are those of nccl-tests: the full buffer of a rank, for all_gather and reduce_scatter the
gathered one. Every sibling group runs at the same time, so shared links are shared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from planner.profiler.groups import GroupKind
from planner.profiler.worker import Effort, Worker, checked_s, measured_s
from planner.spec.gpu import bus_factor
from planner.spec.measured import Kind, LinkCurve

KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
SMALLEST_BYTES, STEP = 4096, 4


@dataclass(frozen=True, slots=True)
class Buffers:
    """A rank's full buffer, one of the same size, and its own part of the full one."""

    full: torch.Tensor
    other: torch.Tensor
    part: torch.Tensor

    def refill(self) -> None:
        """Renew the operands: repeated sums would overflow."""
        self.full.normal_()
        self.part.normal_()


def ladder(largest_bytes: int) -> tuple[int, ...]:
    """Return message sizes from 4 KiB, each four times the one before, to ``largest_bytes``."""
    sizes = [SMALLEST_BYTES]
    while sizes[-1] * STEP <= largest_bytes:
        sizes.append(sizes[-1] * STEP)
    return tuple(sizes)


def measure_links(
    worker: Worker, kinds: tuple[GroupKind, ...], sizes: tuple[int, ...], effort: Effort
) -> tuple[LinkCurve, ...]:
    """Measure every collective on every kind of group; all ranks return the same curves."""
    curves = []
    for group_kind in kinds:
        own = _own_group(worker, group_kind)
        pair = ("send_recv",) if group_kind.ranks == 2 else ()
        for kind in (*KINDS, *pair):
            worker.say(f"links: {kind}, {group_kind.name}")
            curves.append(_curve(worker, kind, group_kind, own, sizes, effort))
        dist.barrier()
        dist.destroy_process_group(own)
    return tuple(curves)


def _own_group(worker: Worker, group_kind: GroupKind) -> dist.ProcessGroup:
    """Return this rank's group; every rank takes part in making all of them."""
    groups = [dist.new_group(list(ranks)) for ranks in group_kind.members]
    number = [worker.rank in ranks for ranks in group_kind.members].index(True)
    own = groups[number]
    assert isinstance(own, dist.ProcessGroup)  # a rank outside gets a placeholder instead
    return own


def _curve(
    worker: Worker,
    kind: Kind,
    group_kind: GroupKind,
    group: dist.ProcessGroup,
    sizes: tuple[int, ...],
    effort: Effort,
) -> LinkCurve:
    points = []
    for size in sizes:
        buffers = _buffers(worker, size, group_kind.ranks)
        size_bytes = buffers.full.numel() * buffers.full.element_size()
        # long messages need no averaging within one reading
        own_effort = replace(effort, inner=1) if size >= 2**25 else effort
        seconds = measured_s(worker, _call(kind, buffers, group), own_effort, buffers.refill)
        name = f"{kind} of {size_bytes} bytes ({group_kind.name})"
        moved = bus_factor(kind, group_kind.ranks) * size_bytes
        points.append((size_bytes, checked_s(name, seconds, moved_bytes=moved)))
    return LinkCurve(
        kind=kind,
        ranks=group_kind.ranks,
        level=group_kind.level,
        ranks_per_node=group_kind.ranks_per_node,
        points=tuple(points),
    )


def _buffers(worker: Worker, size_bytes: int, ranks: int) -> Buffers:
    dtype = torch.bfloat16 if worker.on_gpu else torch.float32
    elements = max(1, size_bytes // dtype.itemsize // ranks) * ranks
    full = torch.empty(elements, dtype=dtype, device=worker.device)
    return Buffers(full, torch.empty_like(full), torch.empty_like(full[: elements // ranks]))


def _call(kind: Kind, buffers: Buffers, group: dist.ProcessGroup) -> Callable[[], object]:
    """Return one call of the collective."""
    full, other, part = buffers.full, buffers.other, buffers.part
    # newer torch renamed both, and warns about the old names
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    calls: dict[Kind, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(full, group=group),
        "all_gather": lambda: gather(full, part, group=group),
        "reduce_scatter": lambda: scatter(part, full, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, full, group=group),
        "send_recv": lambda: _pass_on(full, group),
    }
    return calls[kind]


def _pass_on(buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Send from the first rank of a pair to the second, as one pipeline stage to the next."""
    first = dist.get_rank(group) == 0
    peer = dist.get_global_rank(group, 1 if first else 0)
    operation = dist.P2POp(dist.isend if first else dist.irecv, buffer, peer, group)
    for work in dist.batch_isend_irecv([operation]):
        work.wait()
