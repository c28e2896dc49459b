"""Measured links between each pair of nodes."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from planner.spec.files import load
from planner.spec.gpu import Seconds
from planner.units import parse_rate

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Rate = Annotated[float, BeforeValidator(parse_rate), Field(ge=0)]


class NodeLinks(BaseModel):
    """What each pair of nodes reached, one row per sending node; diagonals are not read.

    Only ratios are used: a healthy pair is what ``scale_out`` of the cluster describes, and every
    other pair is slower than that as measured. So one NIC or all of a node may have been driven.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: tuple[Host, ...] = Field(min_length=1, description="Names of the nodes, in row order.")
    bytes_per_s: tuple[tuple[_Rate, ...], ...] = Field(
        description="bytes_per_s[i][j] from node i to node j; 0 for a broken link."
    )
    latency_s: tuple[tuple[Seconds, ...], ...] = Field(
        (), description="The same of a small message; left out: the same for all pairs."
    )
    healthy_bytes_per_s: _Rate = Field(
        0.0, description="Rate of a pair as scale_out describes it; left out: the fastest pair's."
    )
    healthy_latency_s: Seconds = Field(0.0, description="Left out: the least of all pairs.")
    source: str = Field("", description="Program and date of the measurement.")

    @model_validator(mode="before")
    @classmethod
    def _in_its_unit(cls, data: Any) -> Any:
        """Turn plain numbers in a stated ``unit``, such as GB/s, into bytes per second."""
        if not isinstance(data, dict) or "unit" not in data:
            return data
        one = parse_rate(f"1 {data['unit']}")
        rows = data.get("bytes_per_s")
        if isinstance(rows, list) and all(isinstance(row, list) for row in rows):
            rows = [[one * x if isinstance(x, int | float) else x for x in row] for row in rows]
        rest = {name: value for name, value in data.items() if name != "unit"}
        return rest | {"bytes_per_s": rows}

    @model_validator(mode="after")
    def _square(self) -> Self:
        count = len(self.hosts)
        twice = sorted({host for host in self.hosts if self.hosts.count(host) > 1})
        problems = [f"hosts: {', '.join(twice)} stands twice; name each node once"] * bool(twice)
        for name in ("bytes_per_s", "latency_s"):
            rows = getattr(self, name)
            if name == "latency_s" and not rows:
                continue
            if len(rows) != count:
                problems.append(f"{name}: {len(rows)} rows for {count} hosts; write one per host")
            problems += [
                f"{name}: row {index} ({host}) has {len(row)} values, not {count}; "
                "write one per host, any number on the diagonal"
                for index, (host, row) in enumerate(zip(self.hosts, rows, strict=False))
                if len(row) != count
            ]
        if not problems and not self.healthy_rate:
            problems.append("bytes_per_s: no pair of nodes reaches another; measure again")
        if problems:
            raise ValueError("; and ".join(problems))
        return self

    def __hash__(self) -> int:
        """Hash by names; equality still compares all values."""
        return hash(self.hosts)

    @property
    def healthy_rate(self) -> float:
        """Bytes per second of a pair that nothing is wrong with."""
        return self.healthy_bytes_per_s or max(_off_diagonal(self.bytes_per_s))

    @property
    def healthy_wait_s(self) -> float:
        """Latency of such a pair; 0 where none was measured."""
        return self.healthy_latency_s or min(_off_diagonal(self.latency_s), default=0.0)

    def of(self, nodes: tuple[int, ...]) -> "NodeLinks":
        """Return the links of some nodes, in the order given."""

        def chosen(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(rows[i][j] for j in nodes) for i in nodes) if rows else ()

        return self.model_copy(
            update={
                "hosts": tuple(self.hosts[node] for node in nodes),
                "bytes_per_s": chosen(self.bytes_per_s),
                "latency_s": chosen(self.latency_s),
                "healthy_bytes_per_s": self.healthy_rate,
                "healthy_latency_s": self.healthy_wait_s,
            }
        )


def _off_diagonal(rows: tuple[tuple[float, ...], ...]) -> list[float]:
    return [value for i, row in enumerate(rows) for j, value in enumerate(row) if i != j]


def load_node_links(path: str | Path) -> NodeLinks:
    """Read the links of a cluster's nodes from a YAML or JSON file."""
    return load(NodeLinks, path)
