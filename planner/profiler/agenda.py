"""The list of tasks for one machine and one model: links first, then the model's own kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.cost.layer import kernels_of
from planner.model.backward import backward
from planner.model.operations import (
    Attention,
    Elementwise,
    Gemm,
    Operation,
    Shape,
    attention_operations,
    embedding_operations,
    head_operations,
    mlp_operations,
    moe_operations,
)
from planner.profiler.groups import GroupKind, group_kinds
from planner.profiler.tasks import (
    AttentionTask,
    CurveTask,
    Effort,
    HostTask,
    KernelTask,
    LaunchTask,
    Machine,
    OverlapTask,
    PairsTask,
    ProductTask,
    SharingTask,
    SpreadTask,
    Task,
)
from planner.spec.job import SoftwareSpec
from planner.spec.measured import Kind
from planner.spec.model import ModelSpec
from planner.spec.software import TORCH_LAUNCHER
from planner.units import MIB

KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
SMALLEST_BYTES, STEP = 4096, 4
ADAM_PARAMETERS = 2**22
# names of model.operations that kernels.py knows how to run
RUNNABLE = ("norm", "residual", "rotary", "swiglu", "gelu", "embedding", "loss",
            "gradient accumulation", "permute", "unpermute")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants measured; degrees of 0 mean: all that the search may choose."""

    model: ModelSpec | None = None
    seq_len: int = 4096
    micro_batches: tuple[int, ...] = (1, 2, 4)
    tp: tuple[int, ...] = ()
    cp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    etp: tuple[int, ...] = ()
    largest_bytes: int = 512 * MIB
    ssd_path: str = ""
    ssd_bytes: int = 256 * MIB


def ladder(largest_bytes: int) -> tuple[int, ...]:
    """Return message sizes from 4 KiB, each four times the one before, to ``largest_bytes``."""
    sizes = [SMALLEST_BYTES]
    while sizes[-1] * STEP <= largest_bytes:
        sizes.append(sizes[-1] * STEP)
    return tuple(sizes)


def tasks_of(machine: Machine, wish: Wish) -> tuple[Task, ...]:
    """Return everything to measure, in order; names are distinct."""
    wanted: list[Task] = [*link_tasks(machine, wish)]
    if wish.model is not None:
        wanted += kernel_tasks(machine, wish.model, wish)
    wanted += _shared_tasks(machine, wish)
    return tuple({task.name: task for task in wanted}.values())


def total_s(tasks: Sequence[Task], machine: Machine, effort: Effort) -> float:
    """Guess how long all tasks take."""
    return sum(task.seconds(machine, effort) for task in tasks)


def link_tasks(machine: Machine, wish: Wish) -> Iterator[Task]:
    """Yield curves of every kind of group, rounds of pairs, and what siblings take from another."""
    degrees = {*wish.tp, *wish.cp, *wish.ep, *wish.etp}
    kinds = group_kinds(
        machine.world_size, machine.ranks_per_node, machine.domain_ranks, tuple(degrees)
    )
    sizes = ladder(wish.largest_bytes)
    for group in kinds:
        pair: tuple[Kind, ...] = ("send_recv",) if group.ranks == 2 else ()
        for kind in (*KINDS, *pair):
            yield CurveTask(kind, group, sizes)
    yield from pair_tasks(machine, min(64 * MIB, wish.largest_bytes))
    for group in kinds:
        if len(group.members) > 1:
            yield SharingTask("all_reduce", group, sizes[-1] // STEP)


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """Return every pair of ``count`` players in as few rounds of disjoint pairs as there can be.

    One player sits, the others walk around the table: the circle method of round-robin tournaments.
    """
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        across = zip(seats[:half], reversed(seats[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in across if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return [pairs for pairs in found if pairs]


def pair_tasks(machine: Machine, size: int) -> Iterator[PairsTask]:
    """Yield rounds of GPU pairs, in all nodes at once, and of node pairs by their first GPU."""
    per_node = machine.ranks_per_node
    starts = range(0, machine.world_size, per_node)
    for number, pairs in enumerate(rounds(per_node), 1):
        everywhere = tuple((low + a, low + b) for low in starts for a, b in pairs)
        yield PairsTask(number, "domain", everywhere, size)
    for number, pairs in enumerate(rounds(machine.nodes), 1):
        first = tuple((a * per_node, b * per_node) for a, b in pairs)
        yield PairsTask(number, "cluster", first, size)


def shapes(machine: Machine, model: ModelSpec, wish: Wish) -> tuple[Shape, ...]:
    """Return the shapes of every degree that the search may choose on these ranks."""
    powers = [2**p for p in range(machine.world_size.bit_length())]
    tps = wish.tp or tuple(p for p in powers if p <= machine.domain_ranks and not model.heads % p)
    cps = wish.cp or tuple(p for p in powers if not wish.seq_len % (2 * p) or p == 1)
    experts = model.moe.experts if model.moe else 1
    eps = wish.ep or tuple(p for p in powers if not experts % p)
    found: dict[Shape, None] = {}
    for tp in tps:
        for cp in cps:
            for ep in eps:
                for etp in wish.etp or (1,):
                    if tp * cp > machine.world_size or ep * etp > machine.world_size:
                        continue
                    for micro_batch in wish.micro_batches:
                        shape = Shape(micro_batch, wish.seq_len, tp, cp, ep, etp, tp > 1)
                        found[shape] = None
    return tuple(found)


def operations(model: ModelSpec, shape: Shape, software: SoftwareSpec) -> list[Operation]:
    """Return the forward operations of one layer of each kind, the embedding and the head."""
    found = embedding_operations(model, shape)
    found += attention_operations(model, shape, software)[0]
    if model.moe_layers < model.layers:
        found += mlp_operations(model, shape, software)
    if model.moe is not None:
        found += moe_operations(model, shape, software)
    return found + head_operations(model, shape, software)


def kernel_tasks(machine: Machine, model: ModelSpec, wish: Wish) -> list[Task]:
    """Return the model's kernels: products by size, attention, then what moves memory."""
    every = shapes(machine, model, wish)
    products: set[ProductTask] = set()
    attention: dict[AttentionTask, None] = {}
    for shape in every:
        forward = operations(model, shape, TORCH_LAUNCHER)
        for operation in forward:
            products |= _products(operation)
            if isinstance(operation, Attention):
                attention |= dict.fromkeys(_attention(model, shape, operation))
    ordered = sorted(products, key=lambda product: (product.flops, product.name))
    memory, launch = _memory_tasks(model, every), _launch_tasks(machine, model, every)
    return [*ordered, *attention, *memory, *launch]


def _products(operation: Operation) -> set[ProductTask]:
    if not isinstance(operation, Gemm):
        return set()
    found = {_product(operation, "forward")}
    for gemm in backward(operation, TORCH_LAUNCHER):
        if isinstance(gemm, Gemm):
            found.add(_product(gemm, gemm.name.rpartition(" ")[2]))
    if operation.grouped and operation.copies > 1:
        found |= {
            ProductTask(p.m, p.n, p.k, p.pass_, p.copies, True) for p in found if p.pass_ != "wgrad"
        }
    return found


def _product(gemm: Gemm, pass_: str) -> ProductTask:
    m, n, k, copies = (max(1, round(size)) for size in (gemm.m, gemm.n, gemm.k, gemm.copies))
    return ProductTask(m, n, k, pass_, copies)  # type: ignore[arg-type]


def _attention(model: ModelSpec, shape: Shape, core: Attention) -> Iterator[AttentionTask]:
    heads, seq_q = round(core.heads), round(core.seq_q)
    kv_heads = max(1, model.kv_heads // shape.tp)
    if model.mla is None and heads % kv_heads == 0:
        for reverse in (False, True):
            yield AttentionTask(
                shape.micro_batch, heads, kv_heads, seq_q, shape.seq_len, model.head_dim, reverse
            )


def _memory_tasks(model: ModelSpec, every: tuple[Shape, ...]) -> Iterator[Task]:
    """Yield memory-bound kernels at the fewest and the most tokens, so that a line goes through."""
    whole = [shape for shape in every if shape.tp == 1 and shape.ep == 1]
    if not whole:
        return
    ends = {shape.tokens: shape for shape in sorted(whole, key=lambda shape: shape.tokens)}
    for shape in {id(s): s for s in (ends[min(ends)], ends[max(ends)])}.values():
        for operation in operations(model, shape, TORCH_LAUNCHER):
            reverse_parts = backward(operation, TORCH_LAUNCHER)
            for part, reverse in [(operation, False), *((part, True) for part in reverse_parts)]:
                name = part.name.removesuffix(" backward")
                if isinstance(part, Elementwise) and name in RUNNABLE:
                    reverse = reverse and name != "gradient accumulation"
                    yield KernelTask(name, reverse, round(shape.tokens), part.moved_bytes)


def _launch_tasks(
    machine: Machine, model: ModelSpec, every: Sequence[Shape]
) -> Iterator[LaunchTask]:
    """Yield one layer at the fewest and the most tokens, whole and under each tensor parallelism.

    DTensor's part of a split layer is the host's.
    """
    own = [shape for shape in every if shape.cp == shape.ep == shape.etp == 1]
    batches = {shape.micro_batch for shape in own}
    for shape in own:
        if shape.micro_batch not in (min(batches), max(batches)):
            continue
        parted = (machine.world_size, model.heads, model.kv_heads, shape.seq_len)
        splits = not any(size % shape.tp for size in parted) and not (model.moe or model.mla)
        if shape.tp == 1 or splits:
            kernels = layer_kernels(model, shape)
            yield LaunchTask(shape.micro_batch, shape.seq_len, kernels, shape.tp)


def layer_kernels(model: ModelSpec, shape: Shape) -> int:
    """Kernels of one layer, forward and backward, as ``cost.layer`` counts them."""
    make = mlp_operations if model.moe_layers < model.layers else moe_operations
    forward = attention_operations(model, shape, TORCH_LAUNCHER)[0]
    forward = forward + make(model, shape, TORCH_LAUNCHER)
    every = forward + [part for one in forward for part in backward(one, TORCH_LAUNCHER)]
    return kernels_of(every)


def _shared_tasks(machine: Machine, wish: Wish) -> Iterator[Task]:
    """Yield the optimizer, the spread of the ranks, overlap, and the host."""
    size = 8192 if machine.on_gpu else 256
    yield KernelTask("optimizer", False, ADAM_PARAMETERS, 30.0 * ADAM_PARAMETERS)
    yield SpreadTask(size, 20.0 if machine.on_gpu else 1.0)
    domain = _largest_domain(machine)
    if domain is not None:
        for kind in ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"):
            message = min(wish.largest_bytes, (128 if machine.on_gpu else 2) * MIB)
            yield OverlapTask(kind, domain, message, size)
    copied = 256 * MIB if machine.on_gpu else 16 * MIB
    ways = ("h2d", "d2h", "both", "all_h2d", "all_d2h") if machine.on_gpu else ()
    for what in (*ways, "copy", "cpu_adam"):
        yield HostTask(what, copied)
    if wish.ssd_path:
        yield HostTask("ssd", wish.ssd_bytes, wish.ssd_path)


def _largest_domain(machine: Machine) -> GroupKind | None:
    kinds = group_kinds(machine.world_size, machine.ranks_per_node, machine.domain_ranks)
    return max((k for k in kinds if k.level == "domain"), key=lambda k: k.ranks, default=None)
