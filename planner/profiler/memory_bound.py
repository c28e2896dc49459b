"""Seconds of operations bound by memory, of the optimizer, and of issuing a whole layer.

The launcher's own modules run, so that what is measured is what a plan executes.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from planner.launcher.attention import Rotary
from planner.launcher.context import Context
from planner.launcher.loss import cross_entropy
from planner.launcher.mlp import swiglu
from planner.launcher.model import Block, norm
from planner.launcher.plan_file import ModelConfig
from planner.launcher.tensor_parallel import split_block
from planner.profiler.kernels import Call, backward_of, random
from planner.profiler.tasks import Effort, KernelTask, LaunchTask
from planner.profiler.worker import DoubtfulError, Worker, checked_s, readings
from planner.spec.measured import KernelMeasurement, LaunchMeasurement
from planner.spec.model import ModelSpec

TINY_OPS = 1000


def measure_kernel(
    worker: Worker, task: KernelTask, model: ModelSpec | None, effort: Effort
) -> KernelMeasurement:
    """Measure one memory-bound operation, forward or backward."""
    found = readings(worker, _call(worker, task, model), effort, alone=True)
    return KernelMeasurement(
        name=task.operation,
        backward=task.backward,
        moved_bytes=task.moved_bytes,
        seconds=checked_s(found.seconds, moved_bytes=task.moved_bytes),
        spread=found.spread,
    )


def measure_launch(
    worker: Worker, task: LaunchTask, model: ModelSpec, effort: Effort
) -> LaunchMeasurement:
    """Measure small operators in a row, and one eager layer with and without waiting.

    A split layer waits for others in its collectives, which the clock of a thread leaves out.
    """
    if task.tp > 1 and not (worker.on_gpu or worker.own_clock):
        raise DoubtfulError("several threads a rank: waiting is not told from work; use one")
    layer = _layer(worker, model, task)
    whole = readings(worker, layer, effort, alone=True).seconds
    small = torch.ones(8, device=worker.device)

    def many() -> None:
        for _ in range(TINY_OPS):
            small.add_(1.0)

    return LaunchMeasurement(
        tokens=task.batch * task.seq_len,
        seq_len=task.seq_len,
        op_s=checked_s(_issue_s(worker, many) / TINY_OPS),
        layer_s=checked_s(whole),
        layer_issue_s=checked_s(_issue_s(worker, layer)),
        layer_kernels=task.kernels,
        tp=task.tp,
        in_order=not worker.on_gpu,
    )


def _issue_s(worker: Worker, call: Call) -> float:
    """Return the host's seconds of one call that starts on an idle device; slowest rank."""
    best = float("inf")
    for _ in range(5):
        if worker.on_gpu:
            torch.cuda.synchronize(worker.device)
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return worker.most(best)


def dense_config(model: ModelSpec) -> ModelConfig:
    """Return the launcher's record of a layer with plain attention and one MLP."""
    names = [name for name in ModelConfig.__dataclass_fields__ if name not in ("moe", "mla")]
    return ModelConfig(**{name: getattr(model, name) for name in names if hasattr(model, name)})


def _layer(worker: Worker, model: ModelSpec, task: LaunchTask) -> Call:
    config = dense_config(model)
    rotary = None if config.positions else Rotary(config.head_dim, Context())
    block = Block(config, 0, False, Context(), rotary).to(worker.device, worker.dtype)
    if task.tp > 1:
        sizes, names = (worker.world_size // task.tp, task.tp), ("others", "tensor")
        mesh = init_device_mesh(worker.device.type, sizes, mesh_dim_names=names)
        split_block(block, mesh["tensor"], sequence_parallel=True)
    inputs = random(worker, task.batch, task.seq_len // task.tp, config.hidden).requires_grad_()
    weights = tuple(block.parameters())

    def call() -> object:
        output = block(inputs)
        return torch.autograd.grad(output, (inputs, *weights), output.detach())

    return call


def _call(worker: Worker, task: KernelTask, model: ModelSpec | None) -> Call:
    """Return one run of the operation of ``task``."""
    if task.operation == "optimizer":
        return _optimizer(worker, task.tokens)
    assert model is not None
    make: dict[str, Callable[[Worker, KernelTask, ModelSpec], tuple[Call, Call]]] = {
        "norm": _norm,
        "residual": _residual,
        "rotary": _rotary,
        "swiglu": _activation,
        "gelu": _activation,
        "embedding": _embedding,
        "loss": _loss,
        "gradient accumulation": _accumulation,
        "permute": _permute,
        "unpermute": _unpermute,
    }
    forward, reverse = make[task.operation](worker, task, model)
    return reverse if task.backward else forward


def _both(forward: Callable[[], Tensor], *inputs: Tensor) -> tuple[Call, Call]:
    return forward, backward_of(forward(), inputs)


def _optimizer(worker: Worker, count: int) -> Call:
    weight = nn.Parameter(torch.randn(count, device=worker.device))
    weight.grad = torch.randn_like(weight)
    adam = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    return adam.step


def _norm(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    config = dense_config(model)
    layer = norm(config).to(worker.device, worker.dtype)
    inputs = random(worker, task.tokens, config.hidden).requires_grad_()
    return _both(lambda: layer(inputs), inputs, *layer.parameters())


def _residual(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    left, right = (random(worker, task.tokens, model.hidden) for _ in range(2))
    return lambda: left + right, lambda: left + right  # backward adds the two gradients


def _rotary(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    turn = Rotary(model.head_dim, Context())
    heads = model.heads + model.kv_heads
    inputs = random(worker, 1, task.tokens, heads, model.head_dim).requires_grad_()
    return _both(lambda: turn(inputs), inputs)


def _activation(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    bytes_each = {"swiglu": 10, "gelu": 12}
    forward_bytes = task.moved_bytes / (2 if task.backward else 1)
    # traffic counts elements: of a dense layer or of the experts of a rank, whichever it was
    elements = max(1, round(forward_bytes / bytes_each[task.operation]))
    gate, up = (random(worker, elements).requires_grad_() for _ in range(2))
    if task.operation == "gelu":
        return _both(lambda: nn.functional.gelu(up), up)
    return _both(lambda: swiglu(gate, up), gate, up)


def _embedding(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    table = random(worker, model.vocab, model.hidden).requires_grad_()
    tokens = torch.randint(model.vocab, (task.tokens,), device=worker.device)
    return _both(lambda: nn.functional.embedding(tokens, table), table)


def _loss(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    logits = random(worker, task.tokens, model.vocab).requires_grad_()
    targets = torch.randint(model.vocab, (task.tokens,), device=worker.device)
    return _both(lambda: cross_entropy(logits, targets, None, model.vocab), logits)


def _accumulation(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    elements = max(1, round(task.moved_bytes / 10))  # reads 2, reads and writes 4 bytes
    total = torch.zeros(elements, device=worker.device)
    added = random(worker, elements)
    return lambda: total.add_(added), lambda: total.add_(added)


def _permute(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    rows, order = _routed(worker, task, model)
    return _both(lambda: rows.index_select(0, order), rows)


def _unpermute(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Call, Call]:
    rows, order = _routed(worker, task, model)
    picked = random(worker, len(order), model.hidden).requires_grad_()
    start = torch.zeros_like(rows)
    return _both(lambda: start.detach().index_add(0, order, picked), picked)


def _routed(worker: Worker, task: KernelTask, model: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return rows of tokens, and each as often as it has experts, in random order."""
    assert model.moe is not None
    rows = random(worker, task.tokens, model.hidden).requires_grad_()
    order = torch.arange(task.tokens, device=worker.device).repeat(model.moe.top_k)
    return rows, order[torch.randperm(len(order), device=worker.device)]
