"""From the results of all tasks to one profile."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from planner.errors import SpecError
from planner.spec.measured import LaunchMeasurement
from planner.spec.model import ModelSpec
from planner.spec.nodes import NodeLinks
from planner.spec.profile import Profile


def assembled(
    head: dict[str, Any], results: Sequence[dict[str, Any]], model: ModelSpec | None
) -> Profile:
    """Return the profile of ``head`` and the records of every task."""
    fields: dict[str, Any] = defaultdict(list)
    host: dict[str, Any] = {}
    for result in results:
        for field, records in result.items():
            if field == "host":
                host |= records
            else:
                fields[field] += records
    profile = Profile.model_validate(head | dict(fields) | ({"host": host} if host else {}))
    update: dict[str, Any] = {"node_links": node_matrix(profile)}
    profile = profile.model_copy(update=update)
    if model is None or not profile.launch:
        return profile
    launch = tuple(_priced(one, profile, model) for one in profile.launch)
    return profile.model_copy(update={"launch": launch})


def node_matrix(profile: Profile) -> NodeLinks | None:
    """Return what every pair of nodes reached; None on one node."""
    per_node = profile.ranks_per_node or profile.world_size
    count = len(profile.hosts)
    across = [pair for pair in profile.pairs if pair.level == "cluster"]
    if count < 2 or not across:
        return None
    rates = [[0.0] * count for _ in range(count)]
    latencies = [[0.0] * count for _ in range(count)]
    for pair in across:
        a, b = (rank // per_node for rank in pair.ranks)
        rates[a][b], latencies[a][b] = pair.bytes_per_s, pair.latency_s
    numbered = [f"{host}-{i}" for i, host in enumerate(profile.hosts)]
    distinct = len(set(profile.hosts)) == count
    return NodeLinks(
        hosts=profile.hosts if distinct else tuple(numbered),
        bytes_per_s=tuple(map(tuple, rates)),
        latency_s=tuple(map(tuple, latencies)),
        source=f"planner profile, {profile.date}",
    )


def _priced(one: LaunchMeasurement, profile: Profile, model: ModelSpec) -> LaunchMeasurement:
    """Return the measurement with what its layer costs by the profile's own kernels.

    Unchanged where too few of them were believed to price a layer.
    """
    from planner.cost.layer import Prices
    from planner.layout.layout import Layout
    from planner.spec.job import JobSpec
    from planner.spec.machine import cluster_of
    from planner.spec.software import TORCH_LAUNCHER

    bare = profile.model_copy(update={"launch": ()})
    seq_len = one.seq_len or one.tokens
    batch = one.tokens // seq_len
    job = JobSpec(global_batch=batch, seq_len=seq_len, software=TORCH_LAUNCHER)
    layout = Layout(tp=one.tp, micro_batch=batch, sequence_parallel=one.tp > 1)
    dense = model.model_copy(update={"moe": None, "mla": None})
    try:
        machine = cluster_of(bare)
    except SpecError:
        return one
    cost = Prices(dense, machine, job).layer(layout, False)
    return one.model_copy(update={"layer_priced_s": cost.forward.compute + cost.backward.compute})
