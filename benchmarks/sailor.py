"""Step times of GH200 nodes from Sailor's layer profile: ``python -m benchmarks.sailor``.

Sailor (SOSP 2025) publishes the seconds of each layer of OPT-350M by micro-batch and
tensor-parallel degree on GH200, and 27 measured runs (tests/data/sailor). The profile takes the
place of the planner's kernel prices; schedule, transfers and gradient reduction are the planner's.
Nothing is fitted to the runs. Its profile of GPT-Neo-2.7B is the same file as OPT-350M's, so those
12 runs cannot be estimated.
"""

import csv
import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from planner.cost.collectives import Group, collective_s, send_recv_s
from planner.simulate.pipeline import pipeline_time
from planner.spec.cluster import ClusterSpec, ScaleOutSpec, ScaleUpSpec, load_gpu
from planner.units import GB

DATA = Path(__file__).parents[1] / "tests" / "data" / "sailor"
MODEL, HIDDEN, SEQ_LEN, VOCAB, LAYERS = "OPT-350", 1024, 2048, 50272, 24
ELEMENT_BYTES = 4  # its llm_info.json counts fp32 activations and gradients
# One rank of a node reaches 22.9 of 25 GB/s (its network_coeffs_all_homo.json), NVLink 4 inside.
CLUSTER = ClusterSpec(
    name="GH200 x 4, Slingshot",
    gpu=load_gpu("H100-SXM-96GB-HBM2e-500W"),
    nodes=64,
    gpus_per_node=4,
    domain_gpus=4,
    scale_up=ScaleUpSpec(kind="nvlink", bytes_per_s=450 * GB),
    scale_out=ScaleOutSpec(
        fabric="slingshot", nics_per_node=4, nic_bytes_per_s=25 * GB, latency_s=10e-6,
        ring_step_s=8e-6, efficiency=0.85, p2p_efficiency=0.917,
    ),
)  # fmt: skip


class LayerSeconds(NamedTuple):
    """Seconds of one layer: forward and backward of a micro-batch, and its optimizer update."""

    forward: float
    backward: float
    update: float


def profile() -> dict[int, dict[int, list[LayerSeconds]]]:
    """Return layers by tensor-parallel degree and micro-batch: embedding, layers, head."""
    data = json.loads((DATA / "OPT-350_GH-96.json").read_text(encoding="utf-8"))
    found: dict[int, dict[int, list[LayerSeconds]]] = {}
    for batch, degrees in data.items():
        for tp, layers in degrees.items():
            seconds = [LayerSeconds(*layers[str(at)]) for at in range(len(layers))]
            found.setdefault(int(tp), {})[int(batch)] = seconds
    return found


def layers_of(by_batch: dict[int, list[LayerSeconds]], batch: int) -> list[LayerSeconds]:
    """Return the layers of a micro-batch, no slower than those of any larger one.

    Two sequences are no less work than one: where the profile says so (3.0 ms of one sequence, 1.5
    of two), the smaller one was timed while the host was late.
    """
    larger = [layers for size, layers in by_batch.items() if size >= batch]
    return [LayerSeconds(*map(min, zip(*each, strict=True))) for each in zip(*larger, strict=True)]


def gradient_bytes(layers: range, tp: int) -> float:
    """Return the gradient bytes of a stage; layer 0 is the embedding, the last the head."""
    each = (12 * HIDDEN**2 + 13 * HIDDEN) / tp
    ends = {0: (VOCAB / tp + SEQ_LEN) * HIDDEN, LAYERS + 1: VOCAB / tp * HIDDEN}
    return ELEMENT_BYTES * sum(ends.get(layer, each) for layer in layers)


def step_s(row: dict[str, str]) -> float:
    """Return the estimated seconds of a run."""
    pp, dp, tp, batch = (int(row[name]) for name in ("pp", "dp", "tp", "micro_batch"))
    micro_batches = int(row["global_batch"]) // (dp * batch)
    layers = layers_of(profile()[tp], batch)
    ends = np.cumsum([0, *map(int, row["layers_per_stage"].split("-"))])
    stages = [range(first, last) for first, last in pairwise(ends)]
    forward, backward, update = (
        np.array([sum(layers[at][part] for at in stage) for stage in stages]) for part in range(3)
    )
    message = ELEMENT_BYTES * batch * SEQ_LEN * HIDDEN  # each of the tensor-parallel ranks sends it
    # its DeepSpeed engine sends and receives in separate blocking calls (deepspeed/p2p.py), so an
    # exchange takes two transfers one after the other
    hops = np.full(pp - 1, 2 * send_recv_s(message, tp * dp, CLUSTER))
    passes = pipeline_time("1f1b", pp, 1, micro_batches, forward, backward, hops, False).total_s
    group = Group.place(dp, tp, CLUSTER)
    reduce = [collective_s("all_reduce", gradient_bytes(s, tp), group, CLUSTER) for s in stages]
    return float(passes + max(np.array(reduce) + update))


def runs() -> list[dict[str, str]]:
    """Return the runs that the profile covers and nobody doubts."""
    with (DATA / "steps.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if row["model"] == MODEL and not row["note"]]


def main() -> None:
    """Print each run and the mean errors."""
    print("| OPT-350M on GH200 | measured s | planner | Sailor |\n| --- | ---: | ---: | ---: |")
    errors: tuple[list[float], list[float]] = ([], [])
    for row in runs():
        measured = float(row["measured_s"])
        both = (step_s(row) / measured - 1, float(row["sailor_s"]) / measured - 1)
        for mine, error in zip(errors, both, strict=True):
            mine.append(abs(error))
        plan = f"{row['plan']}: pp {row['pp']}, dp {row['dp']}, micro-batch {row['micro_batch']}"
        print(f"| {plan} | {measured:.3f} | {both[0]:+.1%} | {both[1]:+.1%} |")
    print(f"| mean of {len(errors[0])} | | {fmean(errors[0]):.1%} | {fmean(errors[1]):.1%} |")


if __name__ == "__main__":
    main()
