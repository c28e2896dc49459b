"""Seconds of collectives by size, of every pair, and what groups take from each other.

Sizes are those of nccl-tests: the full buffer of a rank, for all_gather and reduce_scatter the
gathered one. Every sibling group runs at the same time, so shared links are shared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from planner.profiler.groups import GroupKind
from planner.profiler.tasks import CurveTask, Effort, OverlapTask, PairsTask, SharingTask
from planner.profiler.worker import DoubtfulError, Readings, Worker, checked_s, readings
from planner.spec.gpu import bus_factor
from planner.spec.measured import (
    Kind,
    LinkCurve,
    OverlapMeasurement,
    PairLink,
    Rejected,
    SharingMeasurement,
)

SMALL_BYTES = 1024


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


class Groups:
    """Process groups, made once for each kind and kept: making them takes long on many ranks."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._made = worker, dict[GroupKind, dist.ProcessGroup]()

    def own(self, kind: GroupKind) -> dist.ProcessGroup:
        """Return this rank's group; every rank takes part in making all of them."""
        if kind not in self._made:
            groups = [dist.new_group(list(ranks)) for ranks in kind.members]
            own = groups[number_of(kind, self._worker.rank)]
            assert isinstance(own, dist.ProcessGroup)  # a rank outside gets a placeholder
            self._made[kind] = own
        return self._made[kind]


def number_of(kind: GroupKind, rank: int) -> int:
    """Return which of the groups holds ``rank``."""
    return [rank in ranks for ranks in kind.members].index(True)


def measure_curve(
    worker: Worker, task: CurveTask, groups: Groups, effort: Effort
) -> tuple[LinkCurve, tuple[Rejected, ...]]:
    """Measure one collective on one kind of group, and say which sizes are not believed.

    The slowest group counts, and is named. DoubtfulError where no size is believed.
    """
    group, points, rejected = groups.own(task.group), [], []
    found: Readings | None = None
    for size in task.sizes:
        buffers = buffers_of(worker, size, task.group.ranks)
        size_bytes = buffers.full.numel() * buffers.full.element_size()
        moved = bus_factor(task.kind, task.group.ranks) * size_bytes
        try:
            run = call_of(task.kind, buffers, group)
            found = readings(worker, run, effort, buffers.refill)
            points.append((size_bytes, checked_s(found.seconds, moved_bytes=moved)))
        except DoubtfulError as error:
            what = f"{task.name}, {size_bytes} bytes"
            rejected.append(Rejected(what=what, reason=str(error)))
    if not points or found is None:
        raise DoubtfulError(f"no size is believed; {rejected[-1].reason}")
    each = {members: found.of(members).seconds for members in task.group.members}
    slowest = max(each, key=each.__getitem__)
    curve = LinkCurve(
        kind=task.kind,
        ranks=task.group.ranks,
        level=task.group.level,
        ranks_per_node=task.group.ranks_per_node,
        points=tuple(points),
        slowest_group=slowest if len(each) > 1 else (),
        slowest_ratio=max(1.0, each[slowest] / median(each.values())),
    )
    return curve, tuple(rejected)


def measure_pairs(worker: Worker, task: PairsTask, effort: Effort) -> tuple[PairLink, ...]:
    """Measure a round of pairs: half of a round trip, then each way alone."""
    small, large = (torch.empty(size // 2, dtype=worker.dtype, device=worker.device)
                    for size in (SMALL_BYTES, task.size))  # fmt: skip
    # least and median are both kept, so a restless link is stored, and seen as one
    any_spread = float("inf")
    own = next((pair for pair in task.pairs if worker.rank in pair), None)

    def there_and_back() -> None:
        _round_trip(own, worker.rank, small)

    trips = readings(worker, there_and_back, effort, most_spread=any_spread)
    links = []
    for forth in (True, False):

        def one_way(forth: bool = forth) -> None:
            _one_way(own, worker.rank, large, forth)

        ways = readings(worker, one_way, effort, most_spread=any_spread)
        for a, b in task.pairs:
            trip, way = trips.of((a, b)), ways.of((a, b))
            checked_s(way.least_s, moved_bytes=task.size)
            links.append(
                PairLink(
                    ranks=(a, b) if forth else (b, a),
                    level=task.level,
                    latency_s=checked_s(trip.least_s / 2),
                    latency_median_s=trip.seconds / 2,
                    bytes_per_s=task.size / way.least_s,
                    bytes_per_s_median=task.size / way.seconds,
                )
            )
    return tuple(links)


def _one_way(pair: tuple[int, int] | None, rank: int, buffer: torch.Tensor, forth: bool) -> None:
    if pair is not None:
        _pass_on(buffer, *(pair if forth else pair[::-1]), rank)


def _round_trip(pair: tuple[int, int] | None, rank: int, buffer: torch.Tensor) -> None:
    _one_way(pair, rank, buffer, True)
    _one_way(pair, rank, buffer, False)


def _pass_on(
    buffer: torch.Tensor,
    source: int,
    target: int,
    rank: int,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Send between two ranks, as one pipeline stage to the next."""
    sends = rank == source
    peer = target if sends else source
    operation = dist.P2POp(dist.isend if sends else dist.irecv, buffer, peer, group)
    for work in dist.batch_isend_irecv([operation]):
        work.wait()


def measure_sharing(
    worker: Worker, task: SharingTask, groups: Groups, effort: Effort
) -> SharingMeasurement:
    """Measure a collective of the first group while its siblings wait, then of all at once."""
    group = groups.own(task.group)
    buffers = buffers_of(worker, task.size, task.group.ranks)
    run = call_of(task.kind, buffers, group)
    first = number_of(task.group, worker.rank) == 0
    alone = readings(worker, run if first else lambda: None, effort, buffers.refill)
    together = readings(worker, run, effort, buffers.refill)
    return SharingMeasurement(
        kind=task.kind,
        ranks=task.group.ranks,
        groups=len(task.group.members),
        level=task.group.level,
        message_bytes=task.size,
        alone_s=checked_s(alone.of(task.group.members[0]).seconds),
        together_s=checked_s(together.seconds),
    )


def measure_overlap(
    worker: Worker, task: OverlapTask, groups: Groups, effort: Effort
) -> OverlapMeasurement:
    """Measure products that take about as long as a collective, that collective, and both."""
    group = groups.own(task.group)
    buffers = buffers_of(worker, task.message, task.group.ranks)
    left, right = (torch.randn(task.size, task.size, device=worker.device).to(worker.dtype)
                   for _ in range(2))  # fmt: skip
    one_s = readings(worker, lambda: left @ right, effort).seconds
    alone = readings(worker, call_of(task.kind, buffers, group), effort, buffers.refill).seconds
    count = max(1, min(1000, round(alone / one_s)))

    def products() -> None:
        for _ in range(count):
            left @ right

    def both() -> None:
        work = call_of(task.kind, buffers, group, later=True)()
        products()
        work.wait()  # type: ignore[attr-defined]

    return OverlapMeasurement(
        compute=f"{count} products of {task.size}",
        collective=task.kind,
        ranks=task.group.ranks,
        message_bytes=task.message,
        compute_s=checked_s(readings(worker, products, effort).seconds),
        collective_s=checked_s(alone),
        together_s=checked_s(readings(worker, both, effort, buffers.refill).seconds),
    )


def buffers_of(worker: Worker, size_bytes: int, ranks: int) -> Buffers:
    """Return buffers of about ``size_bytes`` that ``ranks`` can split."""
    elements = max(1, size_bytes // worker.dtype.itemsize // ranks) * ranks
    full = torch.empty(elements, dtype=worker.dtype, device=worker.device)
    return Buffers(full, torch.empty_like(full), torch.empty_like(full[: elements // ranks]))


def call_of(
    kind: Kind, buffers: Buffers, group: dist.ProcessGroup, later: bool = False
) -> Callable[[], object]:
    """Return one call of the collective; ``later`` returns its handle at once."""
    full, other, part = buffers.full, buffers.other, buffers.part
    # newer torch renamed both, and warns about the old names
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    how = {"group": group, "async_op": later}
    calls: dict[Kind, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(full, **how),  # type: ignore[arg-type]
        "all_gather": lambda: gather(full, part, **how),
        "reduce_scatter": lambda: scatter(part, full, **how),
        "all_to_all": lambda: dist.all_to_all_single(other, full, **how),  # type: ignore[arg-type]
        "send_recv": lambda: _in_group(full, group),
    }
    return calls[kind]


def _in_group(buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
    source, target = (dist.get_global_rank(group, place) for place in (0, 1))
    _pass_on(buffer, source, target, dist.get_rank(), group)
