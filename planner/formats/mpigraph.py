"""Measured links of nodes: the planner's own file, or the JSON that Pipette keeps of mpiGraph."""

from pathlib import Path
from typing import Any

from planner.errors import SpecError
from planner.spec.files import Document, check, read_document
from planner.spec.nodes import NodeLinks

_BYTES_PER_MB = 1e6


def read_node_links(path: str | Path) -> NodeLinks:
    """Return the links in ``path``.

    mpiGraph measures every pair in both directions, in MB/s. Pipette writes its two tables, receive
    and send, as ``{"0": {"gpus": [...], "bandwidth": [[...]]}, "1": ...}``; a pair gets the lower.
    """
    document = read_document(path)
    if "hosts" in document.data or "0" not in document.data:
        return check(NodeLinks, document)
    tables = [_table(document, name) for name in sorted(document.data)]
    hosts = tables[0][0]
    if any(names != hosts for names, _ in tables):
        raise SpecError(f"{path}: its tables name different nodes; measure all at once")
    rows = [
        [_BYTES_PER_MB * min(values) for values in zip(*row, strict=True)]
        for row in zip(*(rates for _, rates in tables), strict=True)
    ]
    data = {"hosts": hosts, "bytes_per_s": rows, "source": f"mpiGraph, {Path(path).name}"}
    return check(NodeLinks, Document(document.path, document.text, data))


def _table(document: Document, name: str) -> tuple[list[str], list[list[float]]]:
    """Return (nodes, MB/s) of one table; SpecError where it is not square."""
    table: Any = document.data[name]
    place = f"{document.path}: {name}"
    if not isinstance(table, dict) or not {"gpus", "bandwidth"} <= set(table):
        raise SpecError(f"{place}: not a table of mpiGraph; it needs 'gpus' and 'bandwidth'")
    hosts, rates = table["gpus"], table["bandwidth"]
    square = isinstance(rates, list) and all(
        isinstance(row, list) and len(row) == len(hosts) for row in rates
    )
    if not square or len(rates) != len(hosts):
        raise SpecError(f"{place}.bandwidth: not {len(hosts)} rows of as many numbers")
    if not all(isinstance(rate, int | float) for row in rates for rate in row):
        raise SpecError(f"{place}.bandwidth: holds something that is no number; write MB/s")
    return hosts, rates
