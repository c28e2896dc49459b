"""Expert grids against the paper's: MoE Parallel Folding (arXiv 2504.14960), tables 3 and 5.

    python -m benchmarks.folding        (from the root of the repository)

Prints the table of docs/moe-folding.md. The paper prints the best mapping of a model with and
without folding, not micro-batch, recompute or chunks, which stay free here. Its runs drop tokens at
capacity factor 1, so routing is even.
"""

from functools import cache
from typing import NamedTuple

from planner.layout.limits import Limits
from planner.search.recommend import Options, Search, search
from planner.search.targets import TARGETS
from planner.simulate.step import StepEstimate
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec, MoESpec

MEGATRON = TARGETS["megatron"]
NODES = {"qwen2-57b-a14b": 8, "llama-3-8x70b": 32}  # of eight H100; the others 16


class Mapping(NamedTuple):
    """The degrees that the paper prints."""

    tp: int
    pp: int
    ep: int
    etp: int
    cp: int = 1

    def __str__(self) -> str:
        """Return ``tp2 pp8 ep8``: degrees above one."""
        return " ".join(f"{name}{size}" for name, size in self._asdict().items() if size > 1)


class Row(NamedTuple):
    """A cell of table 3: the paper's mapping and its MFU in percent."""

    model: str
    folding: bool
    paper: Mapping
    mfu: float


class LongRow(NamedTuple):
    """A cell of table 5, Mixtral-8x22B on long sequences."""

    nodes: int
    global_batch: int
    seq_len: int
    paper: Mapping
    mfu: float


TABLE_3 = (
    Row("mixtral-8x22b", True, Mapping(2, 8, 8, 1), 49.3),
    Row("mixtral-8x22b", False, Mapping(2, 8, 4, 2), 46.3),
    Row("qwen2-57b-a14b", True, Mapping(2, 4, 4, 1), 39.0),
    Row("qwen2-57b-a14b", False, Mapping(2, 4, 4, 2), 35.3),
    Row("mixtral-8x22b-g8t8", True, Mapping(4, 8, 8, 1), 28.8),
    Row("mixtral-8x22b-g8t8", False, Mapping(2, 8, 8, 2), 17.1),
    Row("llama-3-8x70b", True, Mapping(8, 16, 8, 1), 41.6),
    Row("llama-3-8x70b", False, Mapping(8, 8, 4, 8), 38.8),
)
TABLE_5 = (
    LongRow(16, 1024, 16384, Mapping(2, 8, 8, 1, 4), 47.6),
    LongRow(16, 1024, 16384, Mapping(2, 8, 4, 2, 4), 45.3),
    LongRow(64, 256, 65536, Mapping(4, 8, 8, 1, 8), 44.5),
    LongRow(64, 256, 65536, Mapping(2, 8, 4, 2, 16), 42.6),
)


def spec(name: str) -> ModelSpec:
    """Return a shipped model, or one that the paper makes of a shipped one."""
    if name == "mixtral-8x22b-g8t8":  # eight times as many experts of an eighth of the width
        moe = MoESpec(experts=64, top_k=8, ffn_hidden=2048)
        return load_model("mixtral-8x22b").model_copy(update={"name": name, "moe": moe})
    if name == "llama-3-8x70b":
        moe = MoESpec(experts=8, top_k=2, ffn_hidden=28672)
        return load_model("llama-3-70b").model_copy(update={"name": name, "moe": moe})
    return load_model(name)


@cache
def asked(
    name: str,
    mapping: Mapping | None,
    folding: bool = True,
    nodes: int = 0,
    global_batch: int = 256,
    seq_len: int = 4096,
    precision: str = "bf16",
) -> Search:
    """Search all layouts of a model, or those of one mapping."""
    fixed = tuple(mapping._asdict().items()) if mapping else ()
    machines = load_cluster("dgx-h100").model_copy(update={"nodes": nodes or NODES.get(name, 16)})
    job = JobSpec(
        global_batch=global_batch, seq_len=seq_len, precision=precision, software=MEGATRON.software
    )
    # a mapping of table 5 covers context ranks although experts have the tensor parallelism of the
    # rest, so folding is a lock of the search only
    options = Options(keep=1, limits=Limits(fixed, folding=folding or mapping is not None))
    return search(spec(name), machines, job, MEGATRON, options)


def fastest(row: Row, mapping: Mapping | None) -> StepEstimate:
    """Return the fastest layout of a row's model, with ``mapping`` if one is given."""
    (step,) = asked(row.model, mapping, row.folding).best
    return step


def mapping_of(step: StepEstimate) -> Mapping:
    """Return the degrees of a layout that the paper prints."""
    layout = step.layout
    return Mapping(layout.tp, layout.pp, layout.ep, layout.etp, layout.cp)


def paper_gain(name: str) -> float:
    """Return what folding gains the paper: MFU with ÷ MFU without."""
    mfu = {row.folding: row.mfu for row in TABLE_3 if row.model == name}
    return mfu[True] / mfu[False]


def main() -> None:
    """Print both tables."""
    print("| model | folding | paper's mapping | MFU, paper | ours | our first | paper's ÷ first |"
          " gap allowed |")  # fmt: skip
    print("| --- | --- | --- | ---: | ---: | --- | ---: | ---: |")
    for row in TABLE_3:
        paper, ours = fastest(row, row.paper), fastest(row, None)
        cells = (
            row.model, "on" if row.folding else "off", row.paper, f"{row.mfu} %",
            f"{100 * paper.mfu:.1f} %", mapping_of(ours),
            f"{paper.step_time_s / ours.step_time_s:.3f}", f"{paper_gain(row.model):.3f}",
        )  # fmt: skip
        print("|", " | ".join(map(str, cells)), "|")
    print("\n| GPUs | tokens | mapping | MFU, paper | ours |")
    print("| ---: | ---: | --- | ---: | ---: |")
    for long in TABLE_5:
        nodes, batch, seq_len, mapping, mfu = long
        found = asked("mixtral-8x22b", mapping, True, nodes, batch, seq_len).best[0]
        print(f"| {8 * nodes} | {seq_len} | {mapping} | {mfu} % | {100 * found.mfu:.1f} % |")
    for folding in (True, False):
        (row,) = (one for one in TABLE_3 if one[:2] == ("mixtral-8x22b", folding))
        half, eighth = (
            asked(row.model, row.paper, folding, precision=precision).best[0].step_time_s
            for precision in ("bf16", "fp8")
        )
        print(f"FP8, folding {'on' if folding else 'off'}: {half / eighth:.2f} times")


if __name__ == "__main__":
    main()
