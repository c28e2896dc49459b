"""Megatron's strings for pipeline stages and expert layers, read and written.

``Et*3|(tt|)*4,m|L``: ``E`` embedding, ``t`` layer, ``m`` prediction layer, ``L`` loss, ``|`` ends a
stage (``core/transformer/pipeline_parallel_layer_layout.py``). ``[0]*3+[1]*58``: which layers hold
experts (``--moe-layer-freq``).
"""

import ast
import re
from collections.abc import Sequence
from itertools import groupby

from planner.spec.model import ModelSpec

MOST = 100_000  # characters of an unrolled string


def read_stages(text: str) -> tuple[int, ...]:
    """Return the layers of each stage; ``ValueError`` with the remedy for any other text."""
    plain = text.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^()]+)\)\*(\d+)", r"(.)\*(\d+)"):
        if sum(int(count) for _, count in re.findall(pattern, plain)) > MOST:
            raise ValueError("write fewer stages")
        plain = re.sub(pattern, lambda match: match[1] * int(match[2]), plain)
    if not plain or set(plain) - set("EtmL|"):
        raise ValueError("write E, t, m, L and |, like Ett|tt|tL")
    return tuple(stage.count("t") for stage in plain.split("|"))


def write_stages(layers: Sequence[int], mtp_layers: int = 0) -> str:
    """Return the string of stages; embedding on the first, loss and prediction on the last."""
    stages = [f"t*{count}" if count > 1 else "t" * count for count in layers]
    stages[0] = "E" + stages[0]
    stages[-1] += f"{'m' * mtp_layers}L"
    return "|".join(stages)


def end_stages(
    layers: int, pp: int, vpp: int, first: int | None, last: int | None
) -> tuple[int, ...]:
    """Return the layers of each virtual stage where the first or last rank's are given.

    ``--decoder-first-pipeline-num-layers`` and ``--decoder-last-pipeline-num-layers``; the ranks
    between share the rest. ``ValueError`` where they cannot share it equally.
    """
    fixed = {0: first} if first else {}
    fixed |= {pp - 1: last} if last else {}
    left, ranks = layers - sum(fixed.values()), pp - len(fixed)
    if left < 0 or (ranks and left % ranks) or (not ranks and left):
        remedy = (last or 0) + (left % ranks if ranks else left)
        raise ValueError(
            f"the {left} layers between the first and the last stage do not divide into {ranks} "
            f"stages; try --decoder-last-pipeline-num-layers {max(1, remedy)}"
        )
    by_rank = [fixed.get(rank, left // ranks if ranks else 0) for rank in range(pp)]
    if any(count % vpp for count in by_rank):
        raise ValueError(f"vpp={vpp} does not divide the layers of each rank, {by_rank}; try vpp 1")
    return tuple(by_rank[rank] // vpp for _ in range(vpp) for rank in range(pp))


def read_expert_layers(text: str, layers: int) -> dict[str, object]:
    """Return ``first_layer`` and ``dense_layers`` of ``MoESpec`` for ``--moe-layer-freq``."""
    value = _pattern(text)
    if isinstance(value, int):
        if value < 1:
            raise ValueError("write a number of at least 1, or a list like [0]*3+[1]*58")
        value = [int(layer % value == 0) for layer in range(layers)]
    if len(value) != layers or set(value) - {0, 1}:
        raise ValueError(f"write one 0 or 1 for each of the {layers} layers, like [0]*3+[1]*58")
    first = value.index(1) if 1 in value else layers
    dense = tuple(layer for layer in range(first, layers) if not value[layer])
    return {"first_layer": first, "dense_layers": dense}


def _pattern(text: str) -> int | list[int]:
    """Evaluate a number, or lists of numbers with ``+`` and ``*``; nothing else."""

    def value(node: ast.expr) -> int | list[int]:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.List):
            return [int(str(value(item))) for item in node.elts]
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
                return left + right
            if isinstance(node.op, ast.Mult) and type(left) is not type(right):
                items, times = (left, right) if isinstance(left, list) else (right, left)
                if isinstance(items, list) and isinstance(times, int) and times <= MOST:
                    return items * times
        raise ValueError("write a number, or a list like [0]*3+[1]*58")

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("write a number, or a list like [0]*3+[1]*58") from None


def write_expert_layers(model: ModelSpec) -> str:
    """Return the list of ``--moe-layer-freq``, runs of equal layers joined."""
    kinds = [int(model.is_moe_layer(layer)) for layer in range(model.layers)]
    runs = [(kind, len(list(group))) for kind, group in groupby(kinds)]
    return "+".join(f"[{kind}]*{count}" for kind, count in runs)
