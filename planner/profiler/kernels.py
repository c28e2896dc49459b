"""Seconds of the kernels that a layout of this model runs: products, attention, memory traffic.

All ranks compute at once and the slowest counts: it sets the pace of its stage. Operands are
random (zeros draw less power and run faster); products take turns on several copies, so that they
do not find their operands in a cache.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from planner.launcher.context import causal
from planner.profiler.tasks import AttentionTask, Effort, ProductTask, SpreadTask
from planner.profiler.worker import Worker, checked_s, readings
from planner.spec.measured import AttentionMeasurement, GemmMeasurement, RankSpread

OUT_OF_CACHE_BYTES = 2**28  # several times the last-level cache of any GPU
MOST_COPIES = 16
Call = Callable[[], object]


def measure_product(worker: Worker, task: ProductTask, effort: Effort) -> GemmMeasurement:
    """Measure one product, or one grouped call over the experts of a rank."""
    call = _grouped(worker, task) if task.copies > 1 else _dense(worker, task)
    found = readings(worker, call, effort, alone=True)
    return GemmMeasurement(
        m=task.m,
        n=task.n,
        k=task.k,
        dtype="bf16",
        seconds=checked_s(found.seconds, flops=task.flops),
        pass_name=task.pass_,
        copies=task.copies,
        skewed=task.skewed,
        spread=found.spread,
    )


def measure_spread(worker: Worker, task: SpreadTask, effort: Effort) -> RankSpread:
    """Measure the same product on all ranks for longer; the slowest of a stage sets its pace."""
    longer = Effort(task.spread_s, effort.warm_up, effort.least_repetitions, 1000)
    product = ProductTask(task.size, task.size, task.size, "forward")
    found = readings(worker, _dense(worker, product), longer)
    each = [found.of([rank]).seconds for rank in range(worker.world_size)]
    for seconds in each:
        checked_s(seconds, flops=product.flops)
    return RankSpread(what=task.name, seconds=tuple(each))


def measure_attention(worker: Worker, task: AttentionTask, effort: Effort) -> AttentionMeasurement:
    """Measure attention as the launcher runs it: zig-zag chunks where a rank has part of them."""
    found = readings(worker, _attention(worker, task), effort, alone=True)
    return AttentionMeasurement(
        heads=task.batch * task.heads,
        kv_heads=task.kv_heads,
        seq_q=task.seq_q,
        seq_kv=task.seq_kv,
        head_dim=task.head_dim,
        backward=task.backward,
        seconds=checked_s(found.seconds, flops=task.flops),
        spread=found.spread,
    )


def turns(calls: Sequence[Call]) -> Call:
    """Return a call that runs the next of ``calls`` each time."""
    order = cycle(calls)
    return lambda: next(order)()


def random(worker: Worker, *shape: int) -> Tensor:
    """Return random numbers in the dtype of training."""
    return torch.randn(shape, device=worker.device).to(worker.dtype)


def _copies(worker: Worker, one_bytes: float) -> int:
    return min(MOST_COPIES, int(OUT_OF_CACHE_BYTES // one_bytes) + 1) if worker.on_gpu else 1


def _dense(worker: Worker, task: ProductTask) -> Call:
    m, n, k = task.m, task.n, task.k
    left, right = {
        "forward": ((m, k), (n, k)),
        "dgrad": ((m, k), (k, n)),
        "wgrad": ((k, m), (k, n)),
    }[task.pass_]
    multiply: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward": functional.linear,
        "dgrad": torch.matmul,
        "wgrad": lambda inputs, gradient: inputs.t() @ gradient,
    }
    run = multiply[task.pass_]
    pairs = [
        (random(worker, *left), random(worker, *right))
        for _ in range(_copies(worker, task.needed_bytes))
    ]
    return turns([lambda a=a, b=b: run(a, b) for a, b in pairs])  # type: ignore[misc]


def _ends(task: ProductTask, rows_each: int, device: torch.device) -> Tensor:
    """Return where the rows of each expert end: equal shares, or half of all for the first."""
    total = rows_each * task.copies
    counts = [rows_each] * task.copies
    if task.skewed:
        rest, left = divmod(total - total // 2, task.copies - 1)
        counts = [total // 2] + [rest + (i < left) for i in range(task.copies - 1)]
    return torch.tensor(counts).cumsum(0, dtype=torch.int32).to(device)


def _grouped(worker: Worker, task: ProductTask) -> Call:
    """Return one grouped call over ``copies`` experts, as the launcher's experts make it."""
    m, n, k, experts = task.m, task.n, task.k, task.copies
    if task.pass_ == "wgrad":  # (k, m)^T (k, n) for each expert: k rows each
        ends = _ends(task, k, worker.device)
        inputs, gradient = random(worker, k * experts, m), random(worker, k * experts, n)
        return lambda: functional.grouped_mm(inputs.t(), gradient, offs=ends)
    ends = _ends(task, m, worker.device)
    rows, weights = random(worker, m * experts, k), random(worker, experts, k, n)
    if task.pass_ == "forward":
        weights = random(worker, experts, n, k).transpose(1, 2)
    return lambda: functional.grouped_mm(rows, weights, offs=ends)


def _attention(worker: Worker, task: AttentionTask) -> Call:
    """Return one pass of attention over this rank's queries."""
    batch, dim = task.batch, task.head_dim
    query = random(worker, batch, task.seq_q, task.heads, dim)
    key, value = (random(worker, batch, task.seq_kv, task.kv_heads, dim) for _ in range(2))
    inputs = [tensor.requires_grad_(task.backward) for tensor in (query, key, value)]

    def forward() -> Tensor:
        if task.seq_q == task.seq_kv:
            return causal(*inputs)
        # the first and the last chunk: what the first rank of a context-parallel group holds
        first, last = inputs[0].chunk(2, 1)
        size = first.shape[1]
        early = causal(first, inputs[1][:, :size], inputs[2][:, :size])
        return torch.cat((early, causal(last, *inputs[1:])), 1)

    if not task.backward:
        return forward
    return backward_of(forward(), inputs)


def backward_of(output: Tensor, inputs: Sequence[Tensor]) -> Call:
    """Return a call that runs the backward pass of ``output`` alone, again and again."""
    gradient = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, tuple(inputs), gradient, retain_graph=True)
