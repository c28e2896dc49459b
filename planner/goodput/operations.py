"""How a cluster is operated: failures, checkpoints, stragglers. Defaults name their source."""

from dataclasses import dataclass
from functools import cache
from math import ceil
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from planner.goodput.failures import optimal_interval_s
from planner.model.parameters import total_parameters
from planner.spec.cluster import ClusterSpec
from planner.spec.files import data_path, load
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec

WEIGHT_BYTES = 2
# MegaScale (NSDI 24), section 4: detection and diagnosis of a failure take under ten minutes.
DETECT_S = 600.0
# The same: training has caught up under 15 minutes after that, repeated work included. New
# processes, groups (under 30 s on more than 10,000 GPUs) and checks are taken as a third of it.
RESTART_S = 300.0
# The same: states are copied to host memory in "several seconds", then written in the background.
STALL_S = 3.0
# PTD-P (SC21), section 5.10: 13.8 TB saved at 273 GB/s and loaded at 1 TB/s by 384 nodes.
SAVE_BYTES_PER_S_PER_NODE = 273e9 / 384
LOAD_BYTES_PER_S_PER_NODE = 1e12 / 384
# MegaScale, section 6.3: 0.5 % of machines are slow; without them MFU rose by 0.7 points of 59.
SLOW_NODE_SHARE = 0.005
SLOWED_BY = 0.7 / 59
HOST_LINK_BYTES_PER_S = 25e9  # PCIe 4 x16, pinned, where the cluster does not say


class ClusterRecord(BaseModel):
    """The interruptions of one real cluster or run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpu: str
    gpus: PositiveInt
    days: PositiveFloat
    interruptions: PositiveInt | None = None
    gpu_hours_per_interruption: PositiveFloat
    source: str


class Reliability(BaseModel):
    """What ``profiles/reliability.yaml`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: tuple[ClusterRecord, ...] = Field(min_length=1)


@cache
def reliability() -> Reliability:
    """Return the shipped records."""
    return load(Reliability, data_path("profiles") / "reliability.yaml")


def gpu_hours_per_interruption(gpu_name: str) -> float:
    """Return the median of the clusters with GPUs of this family, or of all."""
    records = reliability().clusters
    same = [record for record in records if gpu_name.startswith(record.gpu)]
    return median(record.gpu_hours_per_interruption for record in same or records)


@dataclass(frozen=True, slots=True)
class Operations:
    """Failures, checkpoints and stragglers of one job.

    ``save_s``: what a checkpoint takes to reach storage behind training. ``straggling`` is the
    share by which slow nodes are expected to lengthen a step.
    """

    mtbf_s: float
    detect_s: float
    restart_s: float
    stall_s: float
    interval_s: float
    save_s: float
    checkpoint_bytes: float
    straggling: float


@dataclass(frozen=True, slots=True)
class Stated:
    """What a user states instead of the defaults; ``None`` is not stated."""

    gpu_hours_per_interruption: float | None = None
    detect_s: float = DETECT_S
    restart_s: float = RESTART_S
    stall_s: float | None = None
    interval_s: float | None = None
    slow_node_share: float = SLOW_NODE_SHARE


def checkpoint_bytes(model: ModelSpec, software: SoftwareSpec) -> float:
    """Return the bytes of weights and optimizer state, which is what a checkpoint holds."""
    return total_parameters(model) * (WEIGHT_BYTES + float(software.optimizer_bytes))


def operations(
    model: ModelSpec, software: SoftwareSpec, cluster: ClusterSpec, gpus: int, stated: Stated
) -> Operations:
    """Return how ``gpus`` GPUs of the cluster are operated.

    A checkpoint is copied to host memory by all GPUs at once, while training waits, and reaches
    storage behind training; no interval is shorter than that.
    """
    size, nodes = checkpoint_bytes(model, software), ceil(gpus / cluster.gpus_per_node)
    copying = min(gpus, cluster.gpus_per_node)
    host = cluster.host
    link = host.shared_link_bytes_per_s(copying) if host else HOST_LINK_BYTES_PER_S
    each_h = stated.gpu_hours_per_interruption or gpu_hours_per_interruption(cluster.gpu.name)
    mtbf_s = 3600 * each_h / gpus
    stall_s = max(STALL_S, size / gpus / link) if stated.stall_s is None else stated.stall_s
    save_s = size / (nodes * SAVE_BYTES_PER_S_PER_NODE)
    return Operations(
        mtbf_s,
        stated.detect_s,
        stated.restart_s + size / (nodes * LOAD_BYTES_PER_S_PER_NODE),
        stall_s,
        stated.interval_s or max(optimal_interval_s(stall_s, mtbf_s), save_s),
        save_s,
        size,
        SLOWED_BY * (1 - (1 - stated.slow_node_share) ** nodes),
    )
