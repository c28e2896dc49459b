"""Writes files as other programs print them, with numbers of our own."""

import json
from typing import Any

SIZES = [4**power for power in range(6, 15)]
HEADER = (
    "#                                                              out-of-place                "
    "       in-place          \n"
    "#       size         count      type   redop    root     time   algbw   busbw #wrong     time"
    "   algbw   busbw #wrong\n"
    "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)"
    "  (GB/s)  (GB/s)       "
)
OLD_HEADER = (
    "#       size         count    type   redop     time   algbw   busbw  error     time   algbw"
    "   busbw  error"
)
BUS = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "sendrecv": lambda n: 1.0,
}


def seconds(size: int, alpha_s: float = 2e-5, bytes_per_s: float = 2e11) -> float:
    """The law behind every printed time."""
    return alpha_s + size / bytes_per_s


def nccl_tests(
    kind: str = "all_reduce",
    ranks: int = 8,
    nodes: int = 1,
    named: bool = True,
    device: str = "NVIDIA H100 80GB HBM3",
    sizes: list[int] = SIZES,
    **law: float,
) -> str:
    """Return what ``KIND_perf`` prints on ``nodes`` hosts."""
    lines = ["# nccl-tests version 2.17.6 nccl-headers=22803 nccl-library=22803"] if named else []
    lines += [f"# Collective test starting: {kind}_perf"] if named else []
    lines += ["# nThread 1 nGpus 1 minBytes 4096 maxBytes 268435456 step: 4(factor)", "#"]
    lines += ["# Using devices"]
    for rank in range(ranks):
        host = f"node-{rank * nodes // ranks}"
        bus = f"[0000:{rank:02x}:00]"
        lines.append(
            f"#  Rank {rank:2d} Group  0 Pid  {900 + rank} on {host} device  0 {bus} {device}"
        )
    lines += ["#", HEADER]
    redop = "sum" if kind in ("all_reduce", "reduce_scatter", "sendrecv") else "none"
    for size in sizes:
        time = seconds(size, **law)
        algbw = size / time / 1e9
        busbw = algbw * BUS[kind](ranks)
        side = f"{time * 1e6:9.3f} {algbw:7.2f} {busbw:7.2f}"
        lines.append(f"{size:12d} {size // 4:12d} float {redop} -1 {side} 0 {side} 0")
    return "\n".join(
        [*lines, "# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 99.9", "#", ""]
    )


def simumax(**changes: Any) -> dict[str, Any]:
    """Return a system file: three products, a batched one, and two collectives of their own."""
    shapes = {
        "b=1, m=4096, k=8192, n=1024, layout=TN, accumulate=False, out_dtype=bf16": 0.5,
        "b=1, m=4096, k=1024, n=8192, layout=NN, accumulate=False, out_dtype=bf16": 0.4,
        "b=1, m=1024, k=4096, n=8192, layout=NT, accumulate=True, out_dtype=fp32": 0.25,
        "b=32, m=64, k=64, n=64, layout=NN, accumulate=False, out_dtype=bf16": 0.1,
    }
    reduce = {"scale": 2, "offset": -1, "efficient_factor": 0.5, "latency_us": 3.0}
    link = {
        "bandwidth": {"gbps": 400.0, "efficient_factor": 0.9, "latency_us": 20},
        "op": {
            "all_reduce": reduce | {"fixed_latency_us": 10.0},
            "all_gather": {"scale": 1, "offset": -1},
            "p2p": {"scale": 1, "offset": 0, "efficient_factor": 0.8},
        },
    }
    return {
        "sys_name": "our_gpu_bf16",
        "num_per_node": 8,
        "accelerator": {
            "backend": "cuda",
            "op": {"matmul": {"tflops": 1000.0, "accurate_efficient_factor": shapes}},
        },
        "networks": {"intra_with_pcie": False, "high_intra_node": link, "inter_node": link},
    } | changes


def operator(number: int, name: str, dims: Any, dtype: str = "c10::BFloat16") -> dict[str, Any]:
    """Return an operator of a trace; ``dims`` None: recorded without shapes."""
    arguments: dict[str, Any] = {"External id": number}
    if dims is not None:
        arguments |= {"Input Dims": dims, "Input type": [dtype] * len(dims)}
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": 1, "dur": 5, "args": arguments}


def kernel(number: int, micros: Any, name: str = "sm90_gemm") -> dict[str, Any]:
    """Return a kernel that operator ``number`` launched."""
    arguments = {"External id": number, "correlation": 100 + number, "stream": 7}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 9, "dur": micros, "args": arguments}


def torch_trace(events: list[dict[str, Any]], **changes: Any) -> str:
    """Return a trace of these events on one GPU."""
    device = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 85 * 10**9}
    head = {
        "schemaVersion": 1,
        "deviceProperties": [device],
        "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 16},
    }  # fmt: skip
    return json.dumps(head | changes | {"traceEvents": events})
