"""Reader of SimuMax's system files: measured kernels, and the laws of links inside a node.

The kernels are in ``simumax_kernels``. A collective with factors of its own follows
``bytes * scale * (1 + offset/n) / (gbps * GiB * factor) + latency * (n + offset) * scale + fixed``
(SimuMax 1.2, ``compute_net_op_time``), so a few sizes hold all of it. What falls back to a default
of its tier was not measured and is left out, as is the network between nodes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planner.errors import SpecError
from planner.formats.reading import Reading, first
from planner.formats.simumax_kernels import (
    element_wise,
    fused_attention,
    grouped_products,
    number,
    products,
)
from planner.spec.measured import Kind, LinkCurve
from planner.units import GIB, KIB, MIB

SIZES = (64 * KIB, MIB, 16 * MIB, 256 * MIB)
COLLECTIVES: dict[str, Kind] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all2all": "all_to_all",
    "p2p": "send_recv",
}
_PCIE = re.compile(r"intra_node_pcie_(\d+)x")


def is_simumax(text: str) -> bool:
    """Whether a text is a system file of SimuMax."""
    return '"accelerator"' in text and '"sys_name"' in text and '"networks"' in text


def read_simumax(path: Path, text: str, collective: str | None = None) -> Reading:
    """Return products and link curves of a system file; ``collective`` does not apply."""
    del collective
    data = _parsed(path, text)
    problems: list[str] = []
    gemms = tuple(products(data, problems)) + tuple(grouped_products(data, problems))
    attention = tuple(fused_attention(data, problems))
    links = tuple(_links(data, problems))
    kernels = tuple(element_wise(data, problems))
    if not gemms and not links and not problems:
        problems.append("accelerator.op.matmul.accurate_efficient_factor: holds no shapes; "
                        "give a file that SimuMax's efficiency test wrote")  # fmt: skip
    if problems:
        raise SpecError(first([f"{path}: {problem}" for problem in problems]))
    return Reading(
        str(data["sys_name"]),
        int(data.get("num_per_node", 8)),
        "nccl" if data["accelerator"].get("backend") == "cuda" else "other",
        f"SimuMax system file {path.name}",
        links,
        gemms,
        attention,
        kernels,
        notes=("the network between nodes is not taken over",),
    )


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise SpecError(f"{place}: not valid JSON: {error.msg}; copy the file again") from None
    missing = [
        name
        for name, kind in (("sys_name", str), ("accelerator", dict), ("networks", dict))
        if not isinstance(data, dict) or not isinstance(data.get(name), kind)
    ]
    if missing:
        raise SpecError(
            f"{path}: {name}: missing; give a system file of SimuMax" for name in missing
        )
    return data  # type: ignore[no-any-return]


def _links(data: dict[str, Any], problems: list[str]) -> Iterator[LinkCurve]:
    """Yield the collectives inside a node that have factors of their own."""
    per_node = int(data.get("num_per_node", 8))
    for tier, network in data["networks"].items():
        pcie = _PCIE.fullmatch(tier)
        if not isinstance(network, dict) or not (pcie or tier == "high_intra_node"):
            continue
        sizes = [int(pcie[1])] if pcie else [n for n in (2, 4, 8, 16) if n <= per_node]
        for name, operation in (network.get("op") or {}).items():
            if name not in COLLECTIVES or operation.get("efficient_factor") is None:
                continue
            for ranks in [2] if name == "p2p" else sizes:
                place = f"networks.{tier}.op.{name}"
                points = _points(network, operation, name, ranks, per_node, place, problems)
                if points:
                    yield LinkCurve(
                        kind=COLLECTIVES[name], ranks=ranks, level="domain",
                        ranks_per_node=ranks, points=points,
                    )  # fmt: skip


def _points(
    network: dict[str, Any],
    operation: dict[str, Any],
    name: str,
    ranks: int,
    per_node: int,
    place: str,
    problems: list[str],
) -> tuple[tuple[int, float], ...]:
    """Return (bytes, seconds) of the law of one collective."""
    before = len(problems)
    bandwidth = network.get("bandwidth") or {}
    rate = number(bandwidth.get("gbps"), f"{place}: bandwidth.gbps", problems) * GIB
    rate *= number(operation["efficient_factor"], f"{place}.efficient_factor", problems)
    latency = operation.get("latency_us")
    latency = bandwidth.get("latency_us") if latency is None else latency
    start_us = number(latency, f"{place}.latency_us", problems)
    by_ranks = (operation.get("fixed_latency_us_by_comm_num") or {}).get(str(ranks))
    fixed = operation.get("fixed_latency_us") if by_ranks is None else by_ranks
    fixed_us = number(fixed, f"{place}.fixed_latency_us", problems, 0.0)
    if len(problems) > before:
        return ()
    if not rate:
        problems.append(f"{place}: a bandwidth of 0 is none; measure it again")
        return ()
    scale, offset = float(operation.get("scale", 1)), float(operation.get("offset", 0))
    if name != "p2p" and per_node == 8:
        start_us *= (ranks + offset) * scale
    moved = scale * (1 + offset / ranks)
    return tuple((size, size * moved / rate + (start_us + fixed_us) * 1e-6) for size in SIZES)
