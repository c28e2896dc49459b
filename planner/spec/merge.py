"""Several profiles of one kind of machine as one."""

from collections.abc import Iterable, Sequence
from typing import Any

from planner.errors import SpecError
from planner.spec.profile import Profile

_SAME = ("device", "backend", "ranks_per_core")  # kernels take longer on a shared core
_LISTS = ("links", "pairs", "sharing", "gemms", "attention", "kernels", "launch", "overlaps",
          "spread", "rejected")  # fmt: skip
_MEASURED = {"points", "seconds", "spread", "slowest_group", "slowest_ratio", "latency_s",
             "latency_median_s", "bytes_per_s", "bytes_per_s_median", "compute_s", "collective_s",
             "together_s", "alone_s", "op_s", "layer_s", "layer_issue_s", "layer_priced_s",
             "reason", "compute"}  # fmt: skip


def merged(profiles: Sequence[Profile]) -> Profile:
    """Return one profile of all measurements; what several measured is taken from the last.

    SpecError where they are of different devices or backends. The profile of most ranks says where
    it was measured.
    """
    problems = []
    for field in _SAME:
        found = list(dict.fromkeys(getattr(profile, field) for profile in profiles))
        if len(found) > 1:
            named = ", ".join(map(repr, found))
            problems.append(f"{field}: {named} differ; merge profiles of one kind of machine")
    if problems:
        raise SpecError(problems)
    widest = max(profiles, key=lambda profile: profile.world_size)
    update: dict[str, Any] = {
        field: _last(record for profile in profiles for record in getattr(profile, field))
        for field in _LISTS
    }
    hosts = [profile.host for profile in profiles if profile.host is not None]
    if hosts:
        values: dict[str, Any] = {}
        for host in hosts:
            values |= host.model_dump(exclude_defaults=True)
        update["host"] = type(hosts[0]).model_validate(values)
    matrices = [profile.node_links for profile in profiles if profile.node_links is not None]
    update["node_links"] = max(matrices, key=lambda one: len(one.hosts), default=None)
    dates = sorted({profile.date for profile in profiles if profile.date})
    update["date"] = dates[-1] if dates else ""
    return widest.model_copy(update=update)


def _last(records: Iterable[Any]) -> tuple[Any, ...]:
    """Return the records; of those that describe the same thing the last."""
    found = {}
    for record in records:
        what = {k: v for k, v in record.model_dump().items() if k not in _MEASURED}
        found[(type(record).__name__, str(what))] = record
    return tuple(found.values())
