"""What activation offload costs in time, and in the life of the drives.

While a layer computes, the layer before it in that pass is written (forward) or the next one is
read (backward); both directions of a pass never meet. A layer whose copy takes longer than the
layer it runs behind leaves the difference exposed. Copies do not slow compute down: a product
beside a host copy took 1.00 times its time alone on A100 (grid of Mist, EuroSys 25).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Offload
from planner.layout.stages import Split, StageLayers
from planner.memory.estimate import held_layers
from planner.memory.moments import job_shape
from planner.memory.offload import host_of, moved_bytes, moved_layers, ssd_of
from planner.memory.room import fullest_node
from planner.schedule.kinds import chunks_of
from planner.spec.cluster import ClusterSpec
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

YEAR_S = 365.25 * 24 * 3600


class Rates(NamedTuple):
    """Bytes per second of one GPU to where its activations wait, and back."""

    store_bytes_per_s: float
    load_bytes_per_s: float


def offload_rates(offload: Offload, cluster: ClusterSpec) -> Rates:
    """Return the rates of one GPU while all of its node copy: to the host, to its drives."""
    gpus = min(cluster.gpus, cluster.gpus_per_node)
    link = host_of(cluster).shared_link_bytes_per_s(gpus)
    if offload.target != "ssd":
        return Rates(link, link)
    ssd = ssd_of(cluster)
    return Rates(min(link, ssd.write_bytes_per_s / gpus), min(link, ssd.read_bytes_per_s / gpus))


def exposed_s(prices: Prices, layout: Layout, stage: StageLayers) -> tuple[float, float]:
    """Return the seconds that copies add to one (forward, backward) pass of ``stage``.

    A stage without the head loads its last layer while nothing runs beside it.
    """
    shape = job_shape(prices.job, layout)
    moved = moved_layers(prices.model, shape, prices.job.software, layout, stage)
    if not moved:
        return 0.0, 0.0
    rates = offload_rates(layout.offload, prices.cluster)
    forward = backward = behind_s = 0.0
    for layers in moved:
        cost = prices.layer(layout, layers.moe_layer, layers.recompute)
        store_s = layers.each_bytes / rates.store_bytes_per_s
        load_s = layers.each_bytes / rates.load_bytes_per_s
        forward += layers.count * max(0.0, store_s - cost.forward.total)
        backward += layers.count * max(0.0, load_s - cost.backward.total)
        behind_s = max(behind_s, min(load_s, cost.backward.total))
    return forward, backward + (0.0 if stage.head else behind_s)


def free_fraction(prices: Prices, layout: Layout, stage: StageLayers) -> float:
    """Return the largest fraction whose copies every layer of ``stage`` covers, at most 1.

    SSDTrain sizes its offload so (section 3.3): bytes of a layer against its own seconds.
    """
    whole = replace(layout, offload=replace(layout.offload, fraction=1.0))
    shape = job_shape(prices.job, whole)
    rates = offload_rates(layout.offload, prices.cluster)
    found = 1.0
    for layers in moved_layers(prices.model, shape, prices.job.software, whole, stage):
        cost = prices.layer(layout, layers.moe_layer, layers.recompute)
        covered = min(
            cost.forward.total * rates.store_bytes_per_s,
            cost.backward.total * rates.load_bytes_per_s,
        )
        found = min(found, covered / layers.each_bytes)
    return found


@dataclass(frozen=True, slots=True)
class OffloadFacts:
    """What offload moves in one step and needs of a node.

    ``moved_bytes`` leave the GPU that moves most in one step, and come back. ``needed_bytes_per_s``
    is SSDTrain's criterion, half a step for all writes; offload is free below ``store_bytes_per_s``
    when layers are alike. ``life_years`` is how long the drives of the busiest node endure it, None
    for host memory.
    """

    moved_bytes: float
    needed_bytes_per_s: float
    store_bytes_per_s: float
    life_years: float | None

    @property
    def free(self) -> bool:
        """Whether half a step is long enough to write everything."""
        return self.needed_bytes_per_s <= self.store_bytes_per_s


def step_bytes(model: ModelSpec, job: JobSpec, layout: Layout, split: Split | None) -> list[float]:
    """Return what a rank of each pipeline stage gives away in one step, ``[pp]`` bytes."""
    shape = job_shape(job, layout)
    pipelines = chunks_of(layout) // layout.vpp  # which share the micro-batches
    passes = chunks_of(layout) * layout.micro_batches(job.global_batch) // pipelines
    return [
        passes
        * moved_bytes(model, shape, job.software, layout, held_layers(model, layout, rank, split))
        for rank in range(layout.pp)
    ]


def offload_facts(
    prices: Prices, layout: Layout, split: Split | None, step_time_s: float
) -> OffloadFacts | None:
    """Return what the layout's offload does; None where it has none."""
    if not layout.offload.fraction:
        return None
    cluster = prices.cluster
    each = step_bytes(prices.model, prices.job, layout, split)
    years = None
    if layout.offload.target == "ssd" and max(each):
        written = fullest_node(each, layout, cluster) / step_time_s
        years = ssd_of(cluster).endurance_bytes / written / YEAR_S
    rate = offload_rates(layout.offload, cluster).store_bytes_per_s
    return OffloadFacts(max(each), max(each) / (step_time_s / 2), rate, years)
