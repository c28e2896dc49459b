"""Seconds of the matrix products that a layout of this model runs: forward and both backward ones.

All ranks compute at once and the slowest counts: it sets the pace of its stage. Operands are
random (zeros draw less power and run faster) and too large together to stay in cache.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from planner.model.operations import (
    Gemm,
    Operation,
    Shape,
    attention_operations,
    backward,
    head_operations,
    mlp_operations,
    moe_operations,
)
from planner.profiler.worker import Effort, Worker, checked_s, measured_s
from planner.spec.job import SoftwareSpec
from planner.spec.measured import GemmMeasurement
from planner.spec.model import ModelSpec

OUT_OF_CACHE_BYTES = 2**28  # several times the last-level cache of any GPU
MOST_COPIES = 16
READING_FLOPS = 2e11  # products smaller than this share one reading of the clock


@dataclass(frozen=True, slots=True)
class Product:
    """(m, k) times (k, n), stored as training stores it.

    ``forward`` multiplies by a weight (n, k) as ``torch.nn.Linear``, ``dgrad`` by the weight as it
    lies, ``wgrad`` multiplies the transposed input (k, m) by the gradient of the output.
    """

    m: int
    n: int
    k: int
    pass_: str

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.m * self.n * self.k

    @property
    def name(self) -> str:
        """A short name for progress and errors."""
        return f"{self.pass_} product {self.m} x {self.n} x {self.k}"


def products(model: ModelSpec, shape: Shape) -> tuple[Product, ...]:
    """Return the distinct products of one micro-batch, smallest first.

    Of experts, which run in one grouped call, the product of a single one is taken.
    """
    software = SoftwareSpec()
    forward, _ = attention_operations(model, shape, software)
    if model.moe_layers < model.layers:
        forward += mlp_operations(model, shape, software)
    if model.moe is not None:
        forward += moe_operations(model, shape, software)
    forward += head_operations(model, shape, software)
    found = {_product(gemm, "forward") for gemm in forward if isinstance(gemm, Gemm)}
    for operation in forward:
        found |= _backward_products(operation, software)
    return tuple(sorted(found, key=lambda product: (product.flops, product.name)))


def _backward_products(operation: Operation, software: SoftwareSpec) -> set[Product]:
    if not isinstance(operation, Gemm):
        return set()
    gemms = [gemm for gemm in backward(operation, software) if isinstance(gemm, Gemm)]
    return {_product(gemm, gemm.name.rpartition(" ")[2]) for gemm in gemms}


def _product(gemm: Gemm, pass_: str) -> Product:
    m, n, k = (max(1, round(size)) for size in (gemm.m, gemm.n, gemm.k))
    return Product(m, n, k, pass_)


def measure_products(
    worker: Worker, wanted: tuple[Product, ...], effort: Effort
) -> tuple[GemmMeasurement, ...]:
    """Measure each product; all ranks return the same measurements."""
    dtype, label = (torch.bfloat16, "bf16") if worker.on_gpu else (torch.float32, "fp32")
    measured = []
    for product in wanted:
        worker.say(f"kernels: {product.name}")
        inner = 1 if product.flops > READING_FLOPS else effort.inner
        call = _call(product, dtype, worker.device)
        seconds = measured_s(worker, call, replace(effort, inner=inner), lambda: None)
        measured.append(
            GemmMeasurement(
                m=product.m,
                n=product.n,
                k=product.k,
                dtype=label,
                seconds=checked_s(product.name, seconds, flops=product.flops),
            )
        )
    return tuple(measured)


def _call(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """Return one product on the next of several copies of its operands."""
    m, n, k = product.m, product.n, product.k
    left, right = {
        "forward": ((m, k), (n, k)),
        "dgrad": ((m, k), (k, n)),
        "wgrad": ((k, m), (k, n)),
    }[product.pass_]
    one_bytes = (m * k + k * n + m * n) * dtype.itemsize
    copies = min(MOST_COPIES, -(-OUT_OF_CACHE_BYTES // one_bytes)) if device.type == "cuda" else 1
    operands = [
        (torch.randn(left, device=device).to(dtype), torch.randn(right, device=device).to(dtype))
        for _ in range(copies)
    ]
    multiply: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward": torch.nn.functional.linear,
        "dgrad": torch.matmul,
        "wgrad": lambda inputs, gradient: inputs.t() @ gradient,
    }
    turn = 0

    def call() -> Tensor:
        nonlocal turn
        turn = (turn + 1) % copies
        return multiply[product.pass_](*operands[turn])

    return call
