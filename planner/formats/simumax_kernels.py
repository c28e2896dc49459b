"""Kernels of a SimuMax system file: each shape has the measured share of a peak.

``accelerator.op.NAME.accurate_efficient_factor`` maps a shape to its share of ``tflops``. A product
counts ``2 m n k`` FLOPs, attention ``2 b h s^2 (d_k + d_v)`` forward and 2.5 times that backward,
causal or not (SimuMax 1.2, ``simu_tools/efficency_test``). Shapes follow the call: a weight
gradient, layout NT, has the output features as m; a grouped gradient keeps the forward shape.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

from planner.spec.measured import AttentionMeasurement, GemmMeasurement, KernelMeasurement, Pass
from planner.units import GIB, MIB

PRODUCTS = {"matmul": "bf16", "fp8_matmul": "fp8"}
GROUPED = {"group_matmul": "bf16", "fp8_group_matmul": "fp8"}
ATTENTION = {"sdp_fwd": False, "sdp_bwd": True}
LAYOUTS: dict[str, Pass] = {
    "TN": "forward",
    "NN": "dgrad",
    "NT": "wgrad",
}
STAGES: dict[str, Pass] = {
    "fwd": "forward",
    "bwd_grad_act": "dgrad",
    "bwd_grad_w": "wgrad",
}
MEMORY = {
    "default": (
        "norm", "residual", "swiglu", "rotary", "latent norm", "latent concat", "top-k",
        "embedding", "qk norm", "optimizer",
    ),
    "permute_fwd": ("permute", "unpermute"),
    "ce_fusion": ("loss",),
}  # fmt: skip
BACKWARD_FLOPS = 2.5  # of forward ones: five products for two
_PART = re.compile(r"(\w+)=(\w+)")


def number(value: object, place: str, problems: list[str], default: float | None = None) -> float:
    """Return a positive number; anything else is a problem, nothing the default."""
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        problems.append(f"{place}: {value!r} is not a number from 0 up; measure it again")
        return 0.0
    return float(value)


def _shapes(
    data: dict[str, Any], name: str, sizes: str, problems: list[str]
) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield (place, parts of the shape, FLOP/s) of one kind of kernel."""
    operation = (data["accelerator"].get("op") or {}).get(name) or {}
    place = f"accelerator.op.{name}"
    for shape, share in (operation.get("accurate_efficient_factor") or {}).items():
        where = f"{place}.accurate_efficient_factor[{shape!r}]"
        parts = dict(_PART.findall(shape))
        missing = [
            one for one in sizes.split() if not parts.get(one, "").isdigit() or not int(parts[one])
        ]
        if missing:
            wanted = ", ".join(f"{one}=..." for one in sizes.split())
            problems.append(f"{where}: names no sizes; write {wanted!r}")
            continue
        before = len(problems)
        factor = number(share, where, problems)
        tflops = number(operation.get("tflops"), f"{place}.tflops", problems)
        if len(problems) > before:
            continue
        if not factor or not tflops:
            problems.append(f"{where}: a speed of 0 is none; measure it again")
            continue
        yield where, parts, tflops * 1e12 * factor


def products(data: dict[str, Any], problems: list[str]) -> Iterator[GemmMeasurement]:
    """Yield the single products that were measured; batched ones are attention's."""
    for name, dtype in PRODUCTS.items():
        for _, parts, rate in _shapes(data, name, "m n k", problems):
            if parts.get("b", "1") != "1":
                continue
            m, n, k = (int(parts[axis]) for axis in "mnk")
            role = LAYOUTS.get(parts.get("layout", ""), "")
            seconds = 2.0 * m * n * k / rate
            if role == "wgrad":
                m, n = n, m
            yield GemmMeasurement(
                m=m,
                n=n,
                k=k,
                pass_name=role,
                dtype=dtype,
                seconds=seconds,
                accumulates=parts.get("accumulate") == "True",
            )


def grouped_products(data: dict[str, Any], problems: list[str]) -> Iterator[GemmMeasurement]:
    """Yield the products over several experts."""
    for name, dtype in GROUPED.items():
        for _, parts, rate in _shapes(data, name, "ng M N K", problems):
            groups, m, n, k = (int(parts[axis]) for axis in ("ng", "M", "N", "K"))
            role = STAGES.get(parts.get("stage", ""), "forward")
            seconds = 2.0 * groups * m * n * k / rate
            shape = {"forward": (m, n, k), "dgrad": (m, k, n)}.get(role, (k, n, m))
            m, n, k = shape
            yield GemmMeasurement(
                m=m,
                n=n,
                k=k,
                copies=groups,
                pass_name=role,
                dtype=dtype,
                seconds=seconds,
                accumulates=parts.get("accumulate") == "True",
            )


def fused_attention(data: dict[str, Any], problems: list[str]) -> Iterator[AttentionMeasurement]:
    """Yield fused attention; of two memory layouts the one that Megatron-Core hands over."""
    sizes = "batch seq_len head_num qk_head_dim v_head_dim"
    for name, backward in ATTENTION.items():
        for _, parts, rate in _shapes(data, name, sizes, problems):
            if parts.get("qkv_contiguous", "True") != "True":
                continue
            batch, seq_len, heads, key, value = (int(parts[size]) for size in sizes.split())
            flops = 2.0 * batch * heads * seq_len**2 * (key + value)
            seconds = flops * (BACKWARD_FLOPS if backward else 1.0) / rate
            yield AttentionMeasurement(
                heads=batch * heads, kv_heads=batch * int(parts.get("kv_head_num", heads)),
                seq_q=seq_len, seq_kv=seq_len, head_dim=(key + value) // 2,
                backward=backward, seconds=seconds,
            )  # fmt: skip


def element_wise(data: dict[str, Any], problems: list[str]) -> Iterator[KernelMeasurement]:
    """Yield kernels bound by memory at the share of bandwidth that the file states for them.

    Its law is ``bytes / (gbps * GiB * factor) + latency`` (``compute_mem_access_time``), so two
    sizes hold it. Forward and backward permute differ by 2 %; the forward share stands for both.
    """
    kinds = data["accelerator"].get("bandwidth") or {}
    for name, operations in MEMORY.items():
        law = kinds.get(name) or {}
        if law.get("efficient_factor") is None:
            continue
        place = f"accelerator.bandwidth.{name}"
        before = len(problems)
        rate = number(law["efficient_factor"], f"{place}.efficient_factor", problems)
        rate *= number(law.get("gbps"), f"{place}.gbps", problems) * GIB
        start_s = number(law.get("latency_us"), f"{place}.latency_us", problems, 0.0) * 1e-6
        if len(problems) > before:
            continue
        if not rate:
            problems.append(f"{place}: a bandwidth of 0 is none; measure it again")
            continue
        for operation, backward, size in product(operations, (False, True), (MIB, GIB)):
            yield KernelMeasurement(
                name=operation, backward=backward, moved_bytes=size, seconds=start_s + size / rate
            )
