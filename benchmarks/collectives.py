"""How far collectives are from nccl-tests: ``python -m benchmarks.collectives FITS.csv``.

FITS.csv lists the measured curves; comms.csv beside it holds their points, and
large_message_check.csv the bus bandwidth of large messages over several nodes (both with a line of
column names). Three questions are answered, all through ``cost.collectives.collective_s``:

- ``own``: each curve's points as a profile, ``apply_profile``, and back at the same sizes;
- ``topology``: kind of fabric, line rates and counts alone. Every curve of that hardware is left
  out: references inside a node are the other GPUs', the latency of a network the median of what
  the other hardware on such a network shows. The three shares of a line rate (rings, gathers,
  PCIe) and the start of a kernel are the shipped constants, which saw all of these files;
- ``large``: bus bandwidth of the largest messages over several nodes, with the shipped GPU.

An error is the median over the sizes of a curve of |estimate / measured - 1|.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from benchmarks.fabrics import machine_of
from planner.cost.collectives import Group, collective_s
from planner.cost.priors import prior_curve, shipped_references
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import bus_factor, load_gpu
from planner.spec.machine import apply_profile
from planner.spec.measured import LinkCurve
from planner.spec.profile import Profile

KEY = ("hardware", "interconnect", "collective", "n_gpus", "n_nodes", "algorithm", "library",
       "source")  # fmt: skip
KINDS = {"alltoall": "all_to_all", "sendrecv": "send_recv"}
LARGE_BYTES = 8 * 2**30
SHORT_BYTES = 64 * 1024  # a curve must reach down here to tell a latency


@dataclass(frozen=True)
class Curve:
    """One measured curve: (message bytes, seconds) of one collective on one machine."""

    hardware: str
    interconnect: str
    algorithm: str
    kind: str
    ranks: int
    nodes: int
    points: tuple[tuple[int, float], ...]

    @cached_property
    def machine(self) -> tuple[str, ClusterSpec]:
        """Kind of fabric and the cluster, from topology alone: no measured collective in it."""
        return machine_of(self.hardware, self.interconnect, self.ranks, self.nodes, self.algorithm)

    @property
    def group(self) -> Group:
        """All ranks, in node-sized or rack-sized domains."""
        return Group.place(self.ranks, 1, self.machine[1])

    def profile(self) -> Profile:
        """Return the points as the profiler would write them."""
        across = self.group.domains > 1
        link = LinkCurve(
            kind=self.kind, ranks=self.ranks, level="cluster" if across else "domain",
            ranks_per_node=self.group.inside, points=self.points,
        )  # fmt: skip
        return Profile(device=self.hardware, world_size=self.ranks, backend="nccl", links=(link,))

    def errors(self, cluster: ClusterSpec) -> list[float]:
        """Return estimate ÷ measured - 1 at each size."""
        return [
            collective_s(self.kind, size, self.group, cluster) / seconds - 1
            for size, seconds in self.points
        ]


def read_curves(fits: Path) -> list[Curve]:
    """Return the curves that FITS.csv lists, with their points from comms.csv beside it."""
    points: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
    for row in _rows(fits.parent / "comms.csv"):
        if row["latency_us"] and row["bytes"]:
            seconds = float(row["latency_us"]) * 1e-6
            points[tuple(row[name] for name in KEY)].append((int(row["bytes"]), seconds))
    return [
        Curve(
            row["hardware"], row["interconnect"], row["algorithm"],
            KINDS.get(row["collective"], row["collective"]),
            int(row["n_gpus"]), int(row["n_nodes"]),
            tuple(sorted(points[tuple(row[name] for name in KEY)])),
        )
        for row in _rows(fits)
    ]  # fmt: skip


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        sys.exit(f"{file}: not found; give the folder that holds comms.csv and its fits")
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def own(curve: Curve) -> list[float]:
    """Return the errors with the curve itself as the profile."""
    return curve.errors(apply_profile(curve.machine[1], curve.profile()))


def left_out(curve: Curve, curves: Iterable[Curve], generation: bool = False) -> list[float]:
    """Return the errors from topology, learning from other hardware alone.

    ``generation``: nor from any of the same line rate inside a domain.
    """
    fabric, cluster = curve.machine
    cluster = without_own(cluster, curve.hardware, generation)
    latencies = [
        _latency_s(other)
        for other in curves
        if other.machine[0] == fabric and other.hardware != curve.hardware
        and other.group.domains > 1 and other.kind == "all_reduce"
        and other.points[0][0] <= SHORT_BYTES
    ]  # fmt: skip
    if cluster.scale_out is not None and latencies:
        net = cluster.scale_out.model_copy(update={"latency_s": median(latencies)})
        cluster = cluster.model_copy(update={"scale_out": net})
    return curve.errors(cluster)


def without_own(cluster: ClusterSpec, hardware: str, generation: bool = False) -> ClusterSpec:
    """Return the cluster with the curves that other GPUs' lead to expect of this one."""
    named = {part.split("-")[0] for part in hardware.split("/")}
    others = [
        one
        for one in shipped_references()
        if one.name.split("-")[0] not in named
        and not (generation and one.bytes_per_s == cluster.scale_up.bytes_per_s)
    ]
    kinds = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
    curves = {
        kind: tuple(prior_curve(kind, ranks, cluster, others) for ranks in (2, 4, 8, 16))
        for kind in kinds
    }
    gpu = cluster.gpu.model_copy(update={"collectives": curves})
    return cluster.model_copy(update={"gpu": gpu})


def _latency_s(curve: Curve) -> float:
    """Return the network latency that a measured curve leads to."""
    net = apply_profile(without_own(curve.machine[1], ""), curve.profile()).scale_out
    assert net is not None
    return net.latency_s


def large(file: Path) -> dict[str, list[tuple[str, float]]]:
    """Return estimated ÷ measured bus bandwidth - 1, by collective."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in _rows(file):
        curve = Curve(
            row["hardware"], row["interconnect"], row["algorithm"], row["collective"],
            int(row["n_gpus"]), int(row["n_nodes"]), (),
        )  # fmt: skip
        seconds = collective_s(curve.kind, LARGE_BYTES, curve.group, _shipped(curve.machine[1]))
        rate = bus_factor(curve.kind, curve.ranks) * LARGE_BYTES / seconds
        error = rate / (float(row["measured_busbw"]) * 1e9) - 1
        found[curve.kind].append((f"{row['hardware']}, {row['interconnect']}", error))
    return found


def _shipped(cluster: ClusterSpec) -> ClusterSpec:
    """Return the cluster with what ships of its GPU: the rule needs the rate inside a node."""
    return cluster.model_copy(update={"gpu": load_gpu(cluster.gpu.name)})


def _table(
    title: str, curves: list[Curve], errors: list[list[list[float]]], key: Callable[[Curve], str]
) -> list[str]:
    lines = [f"| {title} | curves | own profile | topology | signed | generation left out |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    names = sorted({key(curve) for curve in curves})
    for name in [*names, "all"]:
        chosen = [at for at, curve in enumerate(curves) if name in (key(curve), "all")]
        each = [[median(map(abs, e[at])) for at in chosen] for e in errors]
        signed = median(median(errors[1][at]) for at in chosen)
        profiled, topology, older = (f"{median(one):.1%}" for one in each)
        cells = f"{profiled} | {topology} | {signed:+.1%} | {older}"
        lines.append(f"| {name} | {len(chosen)} | {cells} |")
    return lines


def main() -> None:
    """Print the tables, by collective and by fabric, and that of large messages."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fits = Path(sys.argv[1])
    curves = read_curves(fits)
    errors = [
        [own(curve) for curve in curves],
        [left_out(curve, curves) for curve in curves],
        [left_out(curve, curves, generation=True) for curve in curves],
    ]
    print("\n".join(_table("collective", curves, errors, lambda curve: curve.kind)), end="\n\n")
    print("\n".join(_table("fabric", curves, errors, lambda curve: curve.machine[0])), end="\n\n")
    print("| large messages over nodes | runs | median | worst |\n| --- | ---: | ---: | --- |")
    for kind, runs in sorted(large(fits.parent / "large_message_check.csv").items()):
        where, worst = max(runs, key=lambda run: abs(run[1]))
        middle = median(abs(error) for _, error in runs)
        print(f"| {kind} | {len(runs)} | {middle:.1%} | {worst:+.0%}: {where} |")


if __name__ == "__main__":
    main()
