"""Seconds of one layer, of the embedding and of the head, for one micro-batch on one rank.

Each distinct case is priced once (``price_layer`` is cached per ``Prices``) and combined by the
callers. Collectives are placed on the cluster; what runs behind a product is only paid where it is
longer than the product.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from planner.cost.collectives import Group, Rows, collective_s
from planner.cost.compute import attention_s, elementwise_s, gemm_s
from planner.cost.imbalance import unbalanced
from planner.cost.overlap import beside_s, cover_kind, in_chunks, lost_beside_products
from planner.layout.layout import Layout, Recompute
from planner.model.adapters import trained_backward, with_adapters
from planner.model.backward import is_weight_gradient
from planner.model.operations import (
    Attention,
    Collective,
    Elementwise,
    Gemm,
    Operation,
    Shape,
    attention_operations,
    embedding_operations,
    head_operations,
    mlp_operations,
    moe_operations,
    with_ordered_shards,
)
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec, SoftwareSpec
from planner.spec.model import ModelSpec
from planner.spec.parts import part_of

KERNELS_PER_COLLECTIVE = 1  # host time of an asynchronous collective, in kernels


class Seconds(NamedTuple):
    """Seconds of one pass by cause; exposed communication only."""

    compute: float = 0.0
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0
    host: float = 0.0
    dp: float = 0.0
    offload: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the pass."""
        return sum(self)

    def plus(self, other: "Seconds", times: float = 1.0) -> "Seconds":
        """Return the sum with ``times`` of another pass."""
        return Seconds(*(a + times * b for a, b in zip(self, other, strict=True)))


class PassCost(NamedTuple):
    """Forward and backward of one block for one micro-batch; ``backward`` includes recompute."""

    forward: Seconds
    backward: Seconds
    recompute: Seconds = Seconds()  # of the backward pass: what is spent on passing forward again
    weight: Seconds = Seconds()  # of a split backward pass: its weight gradients, not in backward


@dataclass(frozen=True)
class Prices:
    """Prices of one model on one cluster for one job; every distinct case is priced once."""

    model: ModelSpec
    cluster: ClusterSpec
    job: JobSpec
    _cache: dict[tuple[object, ...], PassCost] = field(default_factory=dict, repr=False)
    _parts: list["Prices"] = field(default_factory=list, repr=False, compare=False)

    def on(self, first: int, slots: int) -> "Prices":
        """Return the prices on ``slots`` GPU slots from ``first``: these, where all are alike."""
        cluster = part_of(self.cluster, first, slots)
        if cluster is self.cluster:
            return self
        for known in self._parts:
            if known.cluster is cluster:
                return known
        self._parts.append(Prices(self.model, cluster, self.job))
        return self._parts[-1]

    def layer(
        self, layout: Layout, moe_layer: bool, recompute: Recompute | None = None
    ) -> PassCost:
        """Return the cost of one transformer layer; ``recompute`` overrides the layout's."""
        block = "moe" if moe_layer else "dense"
        return self._cached(block, layout, layout.recompute if recompute is None else recompute)

    def embedding(self, layout: Layout) -> PassCost:
        """Return the cost of the token embedding."""
        return self._cached("embedding", layout, Recompute.NONE)

    def head(self, layout: Layout) -> PassCost:
        """Return the cost of the final norm, output matrix and loss."""
        return self._cached("head", layout, Recompute.NONE)

    def split_backward(self, block: str, layout: Layout, recompute: Recompute) -> PassCost:
        """Return the cost of ``block`` where weight gradients are a pass of their own.

        ``block`` is dense, moe, embedding or head; ``backward`` is what is left: input gradients
        and recompute. What ran behind a weight gradient has nothing to run behind any more.
        """
        key = ("split", block, replace(layout, schedule="", dp=1, pp=1, vpp=1), recompute,
               self._stalled_step_s(layout))  # fmt: skip
        if key not in self._cache:
            whole = self._cached(block, layout, recompute)
            operations, _ = self.operations(block, layout)
            parts: tuple[list[Operation], list[Operation]] = ([], [])
            for operation in operations:
                for part in trained_backward(operation, self.job):
                    parts[is_weight_gradient(part)].append(part)
            groups, stalled = _groups(layout, self.cluster), self._stalled_step_s(layout)
            inputs, weights = (self._pass(part, groups, stalled) for part in parts)
            self._cache[key] = PassCost(
                whole.forward, inputs.plus(whole.recompute), whole.recompute, weights
            )
        return self._cache[key]

    def _cached(self, block: str, layout: Layout, recompute: Recompute) -> PassCost:
        degrees = (layout.tp, layout.cp, layout.ep, layout.etp)
        stalled = self._stalled_step_s(layout)
        key = (block, *degrees, layout.micro_batch, layout.sequence_parallel, recompute, stalled)
        if key not in self._cache:
            self._cache[key] = self._price(block, layout, recompute)
        return self._cache[key]

    def _stalled_step_s(self, layout: Layout) -> float:
        crosses = layout.pp > 1 and layout.tp * layout.cp * layout.dp >= self.cluster.domain_gpus
        return self.job.software.stalled_step_s if crosses else 0.0

    def operations(self, block: str, layout: Layout) -> tuple[list[Operation], list[Operation]]:
        """Return the forward operations of a block, and of these the core of its attention."""
        model, software = self.model, self.job.software
        shape = Shape(
            layout.micro_batch,
            self.job.seq_len,
            layout.tp,
            layout.cp,
            layout.ep,
            layout.etp,
            layout.sequence_parallel,
        )
        core: list[Operation] = []
        if block == "embedding":
            operations = embedding_operations(model, shape)
        elif block == "head":
            operations = head_operations(model, shape, software)
        else:
            operations, core = attention_operations(model, shape, software)
            make = moe_operations if block == "moe" else mlp_operations
            operations = operations + make(model, shape, software)
        if block == "moe":
            operations = unbalanced(operations, self.job.routing)
        if software.tp_overlap_chunks > 1:
            operations = in_chunks(operations, software.tp_overlap_chunks)
        elif software.copies_sequence_shards and layout.micro_batch > 1:
            operations = with_ordered_shards(operations)
        return with_adapters(operations, self.job), core

    def _price(self, block: str, layout: Layout, recompute: Recompute) -> PassCost:
        software = self.job.software
        operations, core = self.operations(block, layout)
        groups = _groups(layout, self.cluster)
        stalled = self._stalled_step_s(layout)
        graphed = self._graphed(block, operations)
        forward = self._pass(operations, groups, stalled, self._kernels(graphed))
        reverse = [part for one in operations for part in trained_backward(one, self.job)]
        replayed = self._kernels(
            [part for one in graphed for part in trained_backward(one, self.job)]
        )
        again = Seconds()
        if recompute is Recompute.FULL:
            again = forward
        elif recompute is Recompute.SELECTIVE:
            again = self._pass(repeated(operations, core, recompute, software), groups, stalled)
        backwards = self._pass(reverse, groups, stalled, replayed)
        return PassCost(forward, backwards.plus(again), again)

    def _graphed(self, block: str, operations: list[Operation]) -> list[Operation]:
        """Return the operations that are replayed as graphs: all, or those before the experts."""
        graphs = self.job.software.cuda_graphs
        if graphs == "none" or (graphs == "attention" and block not in ("dense", "moe")):
            return []
        if graphs == "all" or block == "dense":
            return operations
        names = [operation.name for operation in operations]
        return operations[: names.index("permute")]

    def _pass(
        self,
        operations: Sequence[Operation],
        groups: dict[str, Group],
        stalled_step_s: float,
        graphed: int = 0,
    ) -> Seconds:
        """Add up one pass; hidden collectives are charged where they outlast what hides them.

        ``graphed`` of its kernels cost the host nothing.
        """
        compute = 0.0
        cover: dict[str, float] = {}
        hidden: list[tuple[Collective, float]] = []
        exposed = {"tp": 0.0, "cp": 0.0, "ep": 0.0, "etp": 0.0}
        for operation in operations:
            if isinstance(operation, Collective):
                seconds = self._collective_s(operation, groups[operation.axis])
                if operation.axis == "tp":
                    seconds += (groups["tp"].ranks - 1) * stalled_step_s
                if operation.hidden_behind:
                    hidden.append((operation, seconds))
                else:
                    exposed[operation.axis] += seconds
                continue
            seconds = self.compute_s(operation)
            compute += seconds
            kind = cover_kind(operation.name)
            cover[kind] = cover.get(kind, 0.0) + seconds
        lost = lost_beside_products(self.cluster.gpu)
        for operation, seconds in hidden:
            available = cover.get(operation.hidden_behind, 0.0)
            covered = min(seconds * (1 - operation.open_chunk), available)
            cover[operation.hidden_behind] = available - covered
            exposed[operation.axis] += seconds - covered + lost * covered
        if self.job.software.overlaps_experts:
            exposed["ep"] = beside_s(exposed["ep"], compute, lost)
        gpu_s = compute + sum(exposed.values())
        host = self._host_op_s(groups["tp"]) * (self._kernels(operations) - graphed)
        return Seconds(
            compute,
            exposed["tp"],
            exposed["cp"],
            exposed["ep"] + exposed["etp"],
            host if self.cluster.gpu.in_order else max(0.0, host - gpu_s),
        )

    def _host_op_s(self, tensor: Group) -> float:
        """Return host seconds of one kernel; ``tensor``: of several ranks where they split it."""
        gpu = self.cluster.gpu
        measured_s = gpu.host_op_s
        if tensor.ranks > 1 and gpu.host_split_op_s is not None:
            measured_s = gpu.host_split_op_s
        return self.job.software.cpu_op_s if measured_s is None else measured_s

    def _kernels(self, operations: Iterable[Operation]) -> int:
        return kernels_of(operations, self.job.input_bytes < 2)

    def _collective_s(self, operation: Collective, group: Group) -> float:
        size = operation.message_bytes
        if operation.of_product and operation.kind == "all_gather":
            size *= self.job.input_bytes / 2
        rows = Rows(operation.copies, operation.open_share)
        return collective_s(operation.kind, size, group, self.cluster, rows)

    def compute_s(self, operation: Gemm | Attention | Elementwise) -> float:
        """Return the seconds of one operation that is no collective."""
        gpu = self.cluster.gpu
        if isinstance(operation, Gemm):
            return gemm_s(operation, gpu, self.job.precision)
        if isinstance(operation, Attention):
            return attention_s(operation, gpu, self.job.software.flash_version)
        return elementwise_s(operation, gpu)


def kernels_of(operations: Iterable[Operation], quantises: bool = False) -> int:
    """Return how many operators the host issues for these.

    ``quantises``: a product with a weight first makes 8-bit or 4-bit numbers of its input.
    """
    return sum(
        KERNELS_PER_COLLECTIVE
        if isinstance(operation, Collective)
        else 1 + (quantises and operation.weight)
        if isinstance(operation, Gemm)
        else operation.kernels
        for operation in operations
    )


def repeated(
    operations: list[Operation],
    core: list[Operation],
    recompute: Recompute,
    software: SoftwareSpec,
) -> list[Operation]:
    """Return what recompute repeats: all, nothing, or what is selected.

    Megatron selects the attention core, which a fused attention repeats inside its own backward
    pass. torchtitan (``activation_checkpoint.py``) keeps every other product and the attention
    output.
    """
    if recompute is not Recompute.SELECTIVE:
        return operations if recompute is Recompute.FULL else []
    if software.selective_recomputes_products:
        products = [op for op in operations if isinstance(op, Gemm)]
        return [*products[::2], *(op for op in operations if isinstance(op, Elementwise))]
    return [] if software.flash_attention else core


def _groups(layout: Layout, cluster: ClusterSpec) -> dict[str, Group]:
    """Place the groups that work inside a layer."""
    return {
        "tp": Group.place(layout.tp, 1, cluster),
        "cp": Group.place(layout.cp, layout.tp, cluster),
        "ep": Group.place(layout.ep, layout.etp, cluster),
        "etp": Group.place(layout.etp, 1, cluster),
    }
