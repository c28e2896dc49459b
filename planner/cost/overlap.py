"""Which collectives run beside which computation, and how much they slow it down.

Beside one product, a collective costs the SMs that it takes: a layer of 22B on eight A100 whose
all-reduces run behind weight gradients loses 0.14 to 0.15 of their time (Korthikanti et al. 2022,
table 4, with the forward pass right to 2 %); NCCL takes 16 of an A100's 108 SMs or 16 to 24 of an
H100's 132, DeepSeek-V3 20 of 132 (arXiv 2412.19437, 3.2.2).

Weights and gradients of data parallelism move beside everything, kernels that need the memory
bandwidth included. GPT and LLaMA on four A100, H100, MI210 or MI250 (arXiv 2507.03114, means):
compute takes 18.9 % longer than alone, and one after the other takes 10.2 % longer than both at
once. So at least ``1.189 * 1.102 - 1 = 0.31`` of the compute was hidden, and of that 0.189 lost.
"""

from collections.abc import Iterable, Sequence

from planner.cost.collectives import Group, collective_s, inside_s
from planner.model.operations import Collective, Gemm, Operation
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec, bus_factor

SM_SHARE = 20 / 132
STATE_SHARE = 0.61  # 0.189 / 0.31: at the rate of the links inside a domain


def lost_beside_products(gpu: GpuSpec) -> float:
    """Seconds that products lose for each second of a collective inside a layer."""
    return SM_SHARE if gpu.interference is None else gpu.interference


def lost_share(kind: str, message_bytes: float, group: Group, cluster: ClusterSpec) -> float:
    """Seconds that compute loses for each second of an exchange of weights or gradients.

    Its SMs are lost as long as it runs, and memory bandwidth in proportion to what it moves in a
    second: over a slower network less than inside a domain.
    """
    measured = cluster.gpu.interference
    near = STATE_SHARE if measured is None else measured
    if group.domains == 1:
        return near
    seconds = collective_s(kind, message_bytes, group, cluster)
    bus_bytes = bus_factor(kind, group.ranks) * message_bytes
    near_s = inside_s(kind, bus_bytes, min(group.ranks, cluster.domain_gpus), cluster)
    idle = min(SM_SHARE, near)
    return idle + (near - idle) * min(1.0, near_s / seconds)


def beside_s(communication_s: float, compute_s: float, lost: float) -> float:
    """Seconds that communication adds to compute it runs beside: the rest, and the slowdown."""
    covered = min(communication_s, compute_s)
    return communication_s - covered + lost * covered


def cover_kind(name: str) -> str:
    """Return what a hidden collective names as its cover.

    ``dgrad``, ``wgrad``, ``attention``, or the last word of a forward product.
    """
    return "attention" if name.startswith("attention") else name.rpartition(" ")[2]


def in_chunks(operations: Sequence[Operation], chunks: int) -> list[Operation]:
    """Return a forward pass whose tensor-parallel collectives run beside their products.

    A gathering is cut into ``chunks``, of which the product it feeds takes one after the other; a
    reduction follows the chunks of its product. Nothing runs beside the first (or last) chunk:
    ``max(0, t_comm - t_product) + t_comm / chunks`` stays exposed (MegaScale, NSDI 24, section
    3.2). All-reduces stay where they are.
    """
    found = list(operations)
    for place, operation in enumerate(operations):
        if not isinstance(operation, Collective) or operation.axis != "tp":
            continue
        if operation.kind == "all_gather":
            product = _weight_product(operations[place + 1 :])
        elif operation.kind == "reduce_scatter":
            product = _weight_product(reversed(operations[:place]))
        else:
            continue
        if product is not None:
            behind = cover_kind(product.name)
            found[place] = operation._replace(hidden_behind=behind, open_chunk=1 / chunks)
    return found


def _weight_product(operations: Iterable[Operation]) -> Gemm | None:
    """Return the first product with a weight."""
    return next((op for op in operations if isinstance(op, Gemm) and op.weight), None)
